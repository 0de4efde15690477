"""Tables of attacks on quality models: records to one row per victim and defense."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.numbers.stats import rate
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.flags import cost_rank
from robustspike.bench.record.flags import marked
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.leaderboard import protocol
from robustspike.leaderboard import quality
from robustspike.leaderboard import seeds
from robustspike.leaderboard.row_flags import SIGNIFICANCE
from robustspike.leaderboard.row_flags import declared_flags
from robustspike.leaderboard.row_flags import has_single_surrogate
from robustspike.leaderboard.table import Section

CONTROL = "quality.random_sign"
NOISE_SHARE = 0.5
"""A victim whose score moves under random signs by this share of what attacks achieve follows noise."""

AGREEMENT = ("srocc", "plcc", "krocc")

COLUMNS = {
    "rank": "rank by mae; shared where a paired sign test cannot separate; none where a flag costs it",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name",
    "n": "images evaluated",
    "srocc_clean": "rank correlation of (pseudo-)MOS and clean prediction",
    "srocc_clean_low": "lower end of its 95 % interval (Fisher z, Fieller variance)",
    "srocc_clean_high": "upper end of it",
    "plcc_clean": "Pearson correlation of MOS and clean prediction, through the logistic map fitted on them",
    "krocc_clean": "Kendall correlation of MOS and clean prediction",
    "rmse_clean": "root mean square error of mapped clean prediction against MOS",
    "srocc_attacked": "rank correlation of MOS and attacked prediction, each image under its worst attack",
    "plcc_attacked": "Pearson correlation of MOS and attacked prediction, logistic map fitted on clean ones",
    "krocc_attacked": "Kendall correlation of MOS and attacked prediction",
    "rmse_attacked": "root mean square error of mapped attacked prediction against MOS",
    "srocc_stability": "rank correlation of clean and attacked prediction",
    "plcc_stability": "Pearson correlation of the same",
    "krocc_stability": "Kendall correlation of the same",
    "mae": "mean |attacked - clean|, each image under its worst attack (the control left out)",
    "mae_low": "lower end of its 95 % Student interval",
    "mae_high": "upper end of it",
    "rmse": "root mean square of attacked - clean",
    "robustness": "R: mean log10(largest possible change / change) on the declared score range",
    "robustness_low": "lower end of its 95 % Student interval",
    "robustness_high": "upper end of it",
    "robustness_scaled": "R on scores scaled by the clean predictions, range 0 to 1",
    "absolute_gain": "mean change of the scaled score",
    "absolute_gain_low": "lower end of its 95 % Student interval",
    "absolute_gain_high": "upper end of it",
    "relative_gain": "mean of change / (score + 1) on scaled scores",
    "relative_gain_low": "lower end of its 95 % Student interval",
    "relative_gain_high": "upper end of it",
    "wasserstein": "signed Wasserstein distance of scaled clean and attacked scores",
    "energy_distance": "signed energy distance of the same",
    "used_room": "mean change as a share of the largest possible one",
    "moved": "share of images whose score moves by more than a tenth of the range",
    "moved_low": "lower end of the 95 % Wilson interval of moved",
    "moved_high": "upper end of it",
    "mae_hidden": "mae over attacks that stay imperceptible on an image (SSIM >= 0.99, PSNR >= 40)",
    "mae_random": "mean |attacked - clean| under random signs of the same size: the control",
    "ssim": "mean SSIM of the worst attacks to the clean images",
    "psnr": "mean PSNR of the same in dB",
    "haarpsi": "mean HaarPSI of the same: 100 (1 - this) is how far the pseudo-MOS itself may have fallen",
    "linf": "largest change of a pixel among them",
    "gradient_l1": "mean l1 norm of the input gradient (for a spiking victim a surrogate quantity)",
    "slope": "mean |score change| / h along the sign of that gradient, h = 1/255",
    "propagations": "forward and backward passes per image, all attacks together",
    "flags": "signs that the evaluation is incomplete or misleading",
}


def sections(records: Iterable[CellRecord]) -> list[Section]:
    """Build the tables of the quality records, one per data set, threat model and shard size."""
    unique = {record.key: record for record in records if record.task is Task.QUALITY}
    apart = protocol.competing(unique.values())
    grouped: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
    for record in (unique[name] for name in sorted(unique)):
        grouped[protocol.rules(record, apart)].append(record)

    def order(key: tuple[str, ...]) -> tuple[object, ...]:
        eps = grouped[key][0].threat.eps
        return key[0], grouped[key][0].threat.goal, math.inf if eps is None else float(eps), key

    made = []
    for key in sorted(grouped, key=order):
        first = grouped[key][0]
        low, high = _range(first)
        rounding = f", rounded to {first.threat.levels + 1} levels" if first.threat.levels else ""
        title = (
            f"{first.dataset} ({first.split}, n = {first.samples}), {first.threat.label}{rounding}, "
            f"scores {low:g} to {high:g}"
        )
        if first.dataset.startswith("photopatch"):
            title += ", pseudo-MOS (HaarPSI)"
        title += protocol.remarks(first, apart)
        line = protocol.line(grouped[key])
        made.append(Section(title, "quality", _frame(grouped[key]), protocol=line))
    return made


def _range(record: CellRecord) -> tuple[float, float]:
    low, high = record.measures.get("score_range", (0.0, 1.0))
    return float(low), float(high)


def _frame(members: Sequence[CellRecord]) -> pd.DataFrame:
    groups: dict[tuple[str, str], list[CellRecord]] = defaultdict(list)
    for record in members:
        groups[(record.victim, record.defense)].append(record)
    labels = sorted({record.label for record in members})
    rows = [
        {"victim": victim, "defense": defense, **_row(records, labels)}
        for (victim, defense), records in sorted(groups.items())
    ]
    frame = pd.DataFrame(rows)
    frame["ranked"] = [not cost_rank(flags) for flags in frame["flags"]]
    frame = frame.sort_values(
        ["ranked", "mae", "victim", "defense"], ascending=[False, True, True, True], ignore_index=True
    )
    frame.insert(0, "rank", _ranks(frame, groups))
    ordered = [c for c in COLUMNS if c != "flags"] + [f"mae:{label}" for label in labels] + ["flags"]
    return frame[ordered]


def worst(records: Sequence[CellRecord], *, hidden: bool = False) -> dict[int, SampleRecord]:
    """Return for every image the row of the attack that moves its score farthest.

    Images with an error under any attack are left out. With `hidden`, attacks that can be seen on an image
    count as if they had not moved it.
    """
    found: dict[int, SampleRecord] = {}
    failed = {row.row for record in records for row in record.rows if row.status is Status.ERROR}
    for record in records:
        for row in record.rows:
            if row.row in failed:
                continue
            if row.row not in found or _moved(row, hidden) > _moved(found[row.row], hidden):
                found[row.row] = row
    return found


def _moved(row: SampleRecord, hidden: bool = False) -> float:
    if hidden and any(not row.extras.get(name, -math.inf) >= least for name, least in quality.HIDDEN.items()):
        return 0.0
    return abs(row.adv_score - row.clean_score)


def attacks_of(records: Sequence[CellRecord]) -> list[CellRecord]:
    """Return the records of attacks proper, without the control (all of them if nothing else is there)."""
    return [record for record in records if record.attack != CONTROL] or list(records)


def _row(records: Sequence[CellRecord], labels: Sequence[str]) -> dict[str, object]:
    score_range = _range(records[0])
    real = attacks_of(records)
    found = worst(real)
    n = records[0].counts["n"]
    row: dict[str, object] = dict.fromkeys(COLUMNS, math.nan)
    row |= {"n": n, "flags": " ".join(_flags(records))}
    spent = sum(record.cost["forwards"] + record.cost["backwards"] for record in records)
    row["propagations"] = spent / max(n, 1)
    for label in labels:
        same = [record for record in records if record.label == label]
        moved = [_moved(r) for r in worst(same).values()]
        row[f"mae:{label}"] = float(np.mean(moved)) if moved else math.nan
    if found:
        row |= _figures([found[key] for key in sorted(found)], score_range)
        hidden = worst(real, hidden=True)
        row["mae_hidden"] = float(np.mean([_moved(r, hidden=True) for r in hidden.values()]))
    control = worst([record for record in records if record.attack == CONTROL])
    if control:
        row["mae_random"] = float(np.mean([_moved(r) for r in control.values()]))
    del row["rank"], row["victim"], row["defense"]
    return row


def _figures(rows: Sequence[SampleRecord], score_range: tuple[float, float]) -> dict[str, object]:
    s, a, m = (np.array([getattr(r, name) for r in rows]) for name in ("clean_score", "adv_score", "label"))
    mapping = quality.fit_mapping(s, m)
    pairs = {
        "clean": quality.agreement(s, m, mapping),
        "attacked": quality.agreement(a, m, mapping),
        "stability": quality.agreement(a, s),
    }
    low, high = quality.srocc_interval(pairs["clean"].srocc, len(s))
    means = {
        "mae": quality.mae(s, a),
        "robustness": quality.robustness(s, a, score_range),
        "absolute_gain": quality.absolute_gain(s, a),
        "relative_gain": quality.relative_gain(s, a),
    }

    def extra(name: str) -> float:
        values = [r.extras[name] for r in rows if not math.isnan(r.extras.get(name, math.nan))]
        return float(np.mean(values)) if values else math.nan

    return {
        "srocc_clean_low": low,
        "srocc_clean_high": high,
        **{f"{name}_{pair}": getattr(found, name) for pair, found in pairs.items() for name in AGREEMENT},
        "rmse_clean": pairs["clean"].rmse,
        "rmse_attacked": pairs["attacked"].rmse,
        "rmse": pairs["stability"].rmse,
        **{name: mean.value for name, mean in means.items()},
        **{f"{name}_low": mean.low for name, mean in means.items()},
        **{f"{name}_high": mean.high for name, mean in means.items()},
        "robustness_scaled": quality.scaled_robustness(s, a).value,
        "wasserstein": quality.wasserstein(s, a),
        "energy_distance": quality.energy(s, a),
        "used_room": quality.used_room(s, a, score_range),
        **rate("moved", sum(r.status is Status.BROKEN for r in rows), len(rows)),
        "linf": max(r.distance for r in rows),
        **{name: extra(name) for name in ("ssim", "psnr", "haarpsi", "gradient_l1", "slope")},
    }


def _flags(records: Sequence[CellRecord]) -> list[str]:
    raised = {flag for record in records for flag in cell_flags(record.measures, record.counts)}
    raised |= declared_flags(records)
    real = attacks_of(records)
    control = [record for record in records if record.attack == CONTROL]
    found = worst(real)
    scores = [row.clean_score for row in found.values()]
    if len(scores) > 1 and np.ptp(scores) <= 1e-9 * max(1.0, abs(scores[0])):
        raised.add("constant_score")
    if not control:
        raised.add("no_noise_control")
    elif found and real[0].attack != CONTROL:
        noise = float(np.mean([_moved(row) for row in worst(control).values()] or [0.0]))
        if noise and noise >= NOISE_SHARE * float(np.mean([_moved(row) for row in found.values()])):
            raised.add("noise_sensitive")
    white = [record for record in real if record.threat.access is Access.WHITE]
    black = [record for record in real if record.threat.access is not Access.WHITE]
    if not white:
        raised.add("no_gradient_attack")
    elif has_single_surrogate(white):
        raised.add("single_surrogate")
    if white and black:
        by_white, by_black = worst(white), worst(black)
        if _farther(by_black, by_white) and np.mean([_moved(r) for r in by_black.values()]) > np.mean(
            [_moved(r) for r in by_white.values()]
        ):
            raised.add("black_box_beats_white_box")
    return sorted(raised)


def _farther(one: dict[int, SampleRecord], other: dict[int, SampleRecord]) -> bool:
    """Say whether scores move farther in one set of rows than in another, beyond chance."""
    both = one.keys() & other.keys()
    wins = sum(_moved(one[i]) > _moved(other[i]) for i in both)
    losses = sum(_moved(one[i]) < _moved(other[i]) for i in both)
    return wins > losses and sign_test(wins, losses) < SIGNIFICANCE


def _ranks(frame: pd.DataFrame, groups: dict[tuple[str, str], list[CellRecord]]) -> list[int | None]:
    """Rank rows; a row shares the rank of its leader where the sign test cannot separate them."""
    ranks: list[int | None] = []
    leader: dict[int, SampleRecord] | None = None
    leading = 0
    for position, row in enumerate(frame.itertuples(index=False), start=1):
        if not row.ranked:
            ranks.append(None)
            continue
        own = worst(attacks_of(groups[(str(row.victim), str(row.defense))]))
        if leader is None or _farther(own, leader):
            leader, leading = own, position
        ranks.append(leading)
    return ranks


Table = tuple[list[str], list[list[str]]]


def figure(value: float, digits: int = 2) -> str:
    """Return a number for people; a dash where it was not measured."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def tables(section: Section) -> list[Table]:
    """Return the tables of a section for people: scores, score change under each attack, visibility."""
    frame = section.frame
    headers = ["rank", "victim", "defense", "SROCC clean", "SROCC attacked", "MAE [95 %]", "R", "moved %"]
    headers += ["hidden MAE", "random MAE", "|grad|1", "slope", "flags"]
    rows = []
    for _, row in frame.iterrows():
        span = f"[{figure(row['mae_low'], 1)}, {figure(row['mae_high'], 1)}]"
        rows.append(
            [
                "-" if pd.isna(row["rank"]) else str(int(row["rank"])),
                str(row["victim"]),
                str(row["defense"]),
                figure(row["srocc_clean"]),
                figure(row["srocc_attacked"]),
                f"{figure(row['mae'], 1)} {span}",
                figure(row["robustness"]),
                figure(100 * row["moved"], 0),
                figure(row["mae_hidden"], 1),
                figure(row["mae_random"], 1),
                figure(row["gradient_l1"], 0),
                figure(row["slope"], 0),
                marked(str(row["flags"])),
            ]
        )
    names = [
        r["victim"] + ("" if r["defense"] == "none" else f" + {r['defense']}") for _, r in frame.iterrows()
    ]
    attacks = [c for c in frame.columns if c.startswith("mae:")]
    by_attack = [[c.removeprefix("mae:"), *(figure(v, 1) for v in frame[c])] for c in attacks]
    means = by_training_seed(frame)
    return [(headers, rows), (["MAE under", *names], by_attack), *([means] if means else [])]


def by_training_seed(frame: pd.DataFrame) -> Table | None:
    """Return means over training seeds with 95 % Student intervals; None where every victim has one."""
    shown = {"srocc_clean": 3, "srocc_attacked": 2, "mae": 1, "gradient_l1": 0, "slope": 0}
    headers = ["mean of k training seeds", "defense", "k", "SROCC clean", "SROCC attacked", "MAE"]
    rows = []
    for victim, defense, members in seeds.trained_alike(frame):
        cells = []
        for column, digits in shown.items():
            mean = quality.mean_of(sorted(float(row[column]) for row in members))
            cells.append(
                f"{figure(mean.value, digits)} [{figure(mean.low, digits)}, {figure(mean.high, digits)}]"
            )
        rows.append([victim, defense, str(len(members)), *cells])
    return ([*headers, "|grad|1", "slope"], rows) if rows else None
