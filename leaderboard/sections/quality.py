"""Tables of attacks on quality models: how far they move the score."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.flags import marked
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard import metrics
from robustspike.leaderboard import ranks
from robustspike.leaderboard import seeds
from robustspike.leaderboard.flags import declared_flags
from robustspike.leaderboard.flags import has_single_surrogate
from robustspike.leaderboard.owners import by_owner
from robustspike.leaderboard.sections.base import NAN
from robustspike.leaderboard.sections.base import Row
from robustspike.leaderboard.sections.base import ScoreKind
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.sections.base import Shared
from robustspike.leaderboard.sections.base import rank_cell
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import figure
from robustspike.leaderboard.text import span
from robustspike.leaderboard.text import turned
from robustspike.leaderboard.text import with_defense
from robustspike.leaderboard.verdicts import propagations

CONTROLS = ("quality.random_sign", "quality.random_gauss")
"""Noise of the size of the budget, in L-inf and in l2."""

NOISE_SHARE = 0.5
"""A victim whose score moves under random signs by this share of what attacks achieve follows noise."""

AGREEMENT = ("srocc", "plcc", "krocc")

COLUMNS = {
    "n": "images evaluated",
    "sources": "photographs that they were made from; images of one are not independent",
    "srocc_clean": "rank correlation of (pseudo-)MOS and clean prediction",
    "srocc_clean_low": "lower end of its 95 % interval (Fisher z over sources, see the page)",
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
    "mae_low": "lower end of its 95 % Student interval over sources",
    "mae_high": "upper end of it",
    "rmse": "root mean square of attacked - clean",
    "robustness": "R: mean log10(largest possible change / change) on the declared score range",
    "robustness_low": "lower end of its 95 % Student interval over sources",
    "robustness_high": "upper end of it",
    "robustness_scaled": "R on scores scaled by the clean predictions, range 0 to 1",
    "absolute_gain": "mean change of the scaled score",
    "absolute_gain_low": "lower end of its 95 % Student interval over sources",
    "absolute_gain_high": "upper end of it",
    "relative_gain": "mean of change / (score + 1) on scaled scores",
    "relative_gain_low": "lower end of its 95 % Student interval over sources",
    "relative_gain_high": "upper end of it",
    "wasserstein": "signed Wasserstein distance of scaled clean and attacked scores",
    "energy_distance": "signed energy distance of the same",
    "used_room": "mean change as a share of the largest possible one",
    "moved": "share of images whose score moves by more than a tenth of the range",
    "moved_low": "lower end of the 95 % Wilson interval of moved, for as many images as these are worth",
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
    if hidden and any(not row.extras.get(name, -math.inf) >= least for name, least in metrics.HIDDEN.items()):
        return 0.0
    return abs(row.adv_score - row.clean_score)


def attacks_of(records: Sequence[CellRecord]) -> list[CellRecord]:
    """Return the records of attacks proper, without the control (all of them if nothing else is there)."""
    return [record for record in records if record.attack not in CONTROLS] or list(records)


def _row(records: Sequence[CellRecord], labels: Sequence[str]) -> Row:
    score_range = _range(records[0])
    real = attacks_of(records)
    found = worst(real)
    n = records[0].counts["n"]
    row: Row = dict.fromkeys(COLUMNS, math.nan)
    row |= {"n": n, "flags": " ".join(_flags(records)), "propagations": propagations(records, n)}
    for label in labels:
        same = [record for record in records if facts.attack_name(record) == label]
        moved = [_moved(r) for r in worst(same).values()]
        row[f"mae:{label}"] = float(np.mean(moved)) if moved else math.nan
    if found:
        ordered = [found[key] for key in sorted(found)]
        row |= _figures(ordered, score_range, sources_of(records[0], ordered))
        hidden = worst(real, hidden=True)
        row["mae_hidden"] = float(np.mean([_moved(r, hidden=True) for r in hidden.values()]))
    control = worst([record for record in records if record.attack in CONTROLS])
    if control:
        row["mae_random"] = float(np.mean([_moved(r) for r in control.values()]))
    return row


def sources_of(record: CellRecord, rows: Sequence[SampleRecord]) -> NDArray[np.float64]:
    """Return which photograph each image of a record was made from."""
    return np.array([facts.source(record, row) for row in rows])


def _figures(
    rows: Sequence[SampleRecord], score_range: tuple[float, float], sources: NDArray[np.float64]
) -> Row:
    s, a, m = (np.array([getattr(r, name) for r in rows]) for name in ("clean_score", "adv_score", "label"))
    mapping = metrics.fit_mapping(s, m)
    pairs = {
        "clean": metrics.agreement(s, m, mapping),
        "attacked": metrics.agreement(a, m, mapping),
        "stability": metrics.agreement(a, s),
    }
    rank = metrics.srocc_of(s, m, sources)
    means = {
        "mae": metrics.mae(s, a, sources),
        "robustness": metrics.robustness(s, a, score_range, sources),
        "absolute_gain": metrics.absolute_gain(s, a, sources),
        "relative_gain": metrics.relative_gain(s, a, sources),
        "moved": metrics.share_of([r.status is Status.BROKEN for r in rows], sources),
    }

    def extra(name: str) -> float:
        values = [r.extras[name] for r in rows if not math.isnan(r.extras.get(name, math.nan))]
        return float(np.mean(values)) if values else math.nan

    return {
        "sources": len(np.unique(sources)),
        "srocc_clean_low": rank.low,
        "srocc_clean_high": rank.high,
        **{f"{name}_{pair}": getattr(found, name) for pair, found in pairs.items() for name in AGREEMENT},
        "rmse_clean": pairs["clean"].rmse,
        "rmse_attacked": pairs["attacked"].rmse,
        "rmse": pairs["stability"].rmse,
        **{name: mean.value for name, mean in means.items()},
        **{f"{name}_low": mean.low for name, mean in means.items()},
        **{f"{name}_high": mean.high for name, mean in means.items()},
        "robustness_scaled": metrics.scaled_robustness(s, a).value,
        "wasserstein": metrics.wasserstein(s, a),
        "energy_distance": metrics.energy(s, a),
        "used_room": metrics.used_room(s, a, score_range),
        "linf": max(r.distance for r in rows),
        **{name: extra(name) for name in ("ssim", "psnr", "haarpsi", "gradient_l1", "slope")},
    }


def _flags(records: Sequence[CellRecord]) -> list[str]:
    raised = {flag for record in records for flag in cell_flags(record.measures, record.counts)}
    raised |= declared_flags(records)
    real = attacks_of(records)
    control = [record for record in records if record.attack in CONTROLS]
    found = worst(real)
    scores = [row.clean_score for row in found.values()]
    if len(scores) > 1 and np.ptp(scores) <= 1e-9 * max(1.0, abs(scores[0])):
        raised.add("constant_score")
    if not control:
        raised.add("no_noise_control")
    elif found and real[0].attack not in CONTROLS:
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
        by_white, by_black = _by_image(white), _by_image(black)
        if ranks.is_ahead(by_white, by_black) and np.mean([*by_black.values()]) < np.mean(
            [*by_white.values()]
        ):
            raised.add("black_box_beats_white_box")
    return sorted(raised)


def _by_image(records: Sequence[CellRecord]) -> ranks.Outcome:
    return {i: -_moved(row) for i, row in worst(records).items()}


def _range(record: CellRecord) -> tuple[float, float]:
    low, high = record.measures.get("score_range", (0.0, 1.0))
    return float(low), float(high)


class Quality(ScoreKind):
    """Attacks on quality models, at one budget."""

    name = "quality"
    place = 1
    columns = COLUMNS
    by = (("mae", True),)
    parts = "mae:"
    introduction = (
        "Quality models: SROCC is the rank correlation with (pseudo-)MOS, MAE the mean change of the "
        "score under each image's worst attack, hidden MAE that of attacks nobody sees (SSIM >= 0.99 and "
        "PSNR >= 40 dB), random MAE that of noise of the same size, R the mean log10 of the largest "
        "possible change over the change, on the score range in the title (larger is more robust). "
        "*slope*: the true mean change over h = 1/255 along the gradient's sign; |grad|1 of a spiking "
        "model is a surrogate's and may fall alone. Images made from one photograph are not independent: "
        "intervals and ranks count photographs, not images, and few of them separate nothing."
    )

    def takes(self, record: CellRecord) -> bool:
        return record.task is Task.QUALITY

    def title(self, first: CellRecord, rows: Sequence[Row]) -> str:
        low, high = _range(first)
        title = super().title(first, rows)
        title += f", rounded to {first.threat.levels + 1} levels" if first.threat.levels else ""
        labels = facts.score_label(first)
        counts = {row["sources"] for row in rows if not math.isnan(row["sources"])}
        title += f", {max(counts)} photographs" if counts and max(counts) < first.samples else ""
        return f"{title}, scores {low:g} to {high:g}" + (f", {labels}" if labels else "")

    def rows(self, members: Sequence[CellRecord], shared: Shared) -> list[Row]:
        del shared
        labels = sorted({facts.attack_name(record) for record in members})
        return [{"owner": owner, **_row(records, labels)} for owner, records in by_owner(members).items()]

    def outcome(self, records: Sequence[CellRecord]) -> ranks.Outcome | None:
        """Return for every photograph how far its images' scores stay where they were, in the mean."""
        moved = defaultdict(list)
        for row in worst(attacks_of(records)).values():
            moved[int(facts.source(records[0], row))].append(_moved(row))
        return {source: -sum(values) / len(values) for source, values in moved.items()}

    def span(self, records: Sequence[CellRecord]) -> tuple[float, float, float]:
        rows = list(worst(records).values())
        if not rows:
            return NAN, NAN, NAN
        mean = metrics.mean_of([_moved(row) for row in rows], sources_of(records[0], rows))
        return mean.value, mean.low, mean.high

    def tables(self, section: Section, *, narrow: bool = False) -> list[Table]:
        del narrow
        frame = section.frame
        headers = ["rank", "victim", "defense", "SROCC clean", "SROCC attacked", "MAE [95 %]", "R", "moved %"]
        headers += ["hidden MAE", "random MAE", "|grad|1", "slope", "flags"]
        rows = [
            [
                rank_cell(row),
                str(row["name"]),
                str(row["defense"]),
                figure(row["srocc_clean"]),
                figure(row["srocc_attacked"]),
                span(row, "mae"),
                figure(row["robustness"]),
                figure(100 * row["moved"], 0),
                figure(row["mae_hidden"], 1),
                figure(row["mae_random"], 1),
                figure(row["gradient_l1"], 0),
                figure(row["slope"], 0),
                marked(str(row["flags"])),
            ]
            for _, row in frame.iterrows()
        ]
        main = Table(headers, rows, headers.index("MAE [95 %]"), ("rank", "victim", "defense", "MAE [95 %]"))
        parts = [
            (column.removeprefix(self.parts), [figure(value, 1) for value in frame[column]])
            for column in section.part_columns
        ]
        by_attack = turned("MAE under", parts, [with_defense(row) for _, row in frame.iterrows()])
        means = by_training_seed(frame)
        return [main, by_attack, *([means] if means else [])]

    def introductions(self, section: Section) -> list[str]:
        labels = facts.score_label(section.first)
        found = super().introductions(section)
        if labels:
            found.append(
                f"Labels that are {labels}, computed from the undegraded photograph, say nothing about human "
                "opinion, and only ranks within their own set are comparable."
            )
        return found + [seeds.INTRODUCTION] * (by_training_seed(section.frame) is not None)


def by_training_seed(frame: pd.DataFrame) -> Table | None:
    """Return means over training seeds with 95 % Student intervals; None where every victim has one."""
    shown = {"srocc_clean": 3, "srocc_attacked": 2, "mae": 1, "gradient_l1": 0, "slope": 0}
    headers = ["mean of k training seeds", "defense", "k", "SROCC clean", "SROCC attacked", "MAE"]
    rows = []
    for victim, defense, members in seeds.trained_alike(frame):
        cells = []
        for column, digits in shown.items():
            mean = metrics.mean_of(sorted(float(row[column]) for row in members))
            ends = f"[{figure(mean.low, digits)}, {figure(mean.high, digits)}]"
            cells.append(f"{figure(mean.value, digits)} {ends}")
        rows.append([victim, defense, str(len(members)), *cells])
    return Table([*headers, "|grad|1", "slope"], rows) if rows else None
