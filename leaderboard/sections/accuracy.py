"""Tables of bounded attacks: the share of samples that survive all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar

import pandas as pd

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.numbers.stats import rate
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.flags import marked
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import costs
from robustspike.leaderboard import facts
from robustspike.leaderboard import ranks
from robustspike.leaderboard import seeds
from robustspike.leaderboard import spikes
from robustspike.leaderboard import verdicts
from robustspike.leaderboard.flags import beats
from robustspike.leaderboard.flags import row_flags
from robustspike.leaderboard.owners import Owner
from robustspike.leaderboard.owners import by_owner
from robustspike.leaderboard.sections import certificates
from robustspike.leaderboard.sections.base import NAN
from robustspike.leaderboard.sections.base import Kind
from robustspike.leaderboard.sections.base import Row
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.sections.base import Shared
from robustspike.leaderboard.sections.base import rank_cell
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import figure
from robustspike.leaderboard.text import number
from robustspike.leaderboard.text import percent
from robustspike.leaderboard.text import points
from robustspike.leaderboard.text import share
from robustspike.leaderboard.text import turned
from robustspike.leaderboard.text import with_defense

CLEAN = {
    "n": "samples evaluated",
    "clean": "share of samples classified correctly without attack",
    "clean_low": "lower end of the 95 % Wilson interval of clean",
    "clean_high": "upper end of it",
    "clean_single": verdicts.SINGLE["clean_single"],
    "clean_delta": costs.COLUMNS["clean_delta"],
}

COSTS = {
    **verdicts.ENERGY,
    "training": costs.COLUMNS["training"],
    "propagations": "forward and backward passes per attacked sample, all attacks together",
    "levels": "levels of the standard verdicts among its attacks (quick, standard, full)",
    "flags": "signs that the evaluation is incomplete or misleading",
}


def is_unbounded(record: CellRecord) -> bool:
    """Say whether a record's threat allows the whole input domain: a check, not a competition.

    Any class will do for it: that one given class cannot be reached proves nothing.
    """
    low, high = record.threat.bounds
    eps, goal = record.threat.eps, record.threat.goal
    whole = record.threat.geometry == "linf" and eps is not None and float(eps) >= high - low
    return record.task is Task.CLASSIFY and whole and goal is Goal.UNTARGETED


class OfClassifiers(Kind):
    """What tables of classifiers share, whether attacks are bounded or not."""

    measured: ClassVar[tuple[str, ...]]
    """Columns that a victim without any attack lacks."""

    def result_name(self, section: Section) -> str:
        """Return what the figure that ranks rows is called in the headings of a section."""
        raise NotImplementedError  # pragma: no cover

    def takes(self, record: CellRecord) -> bool:
        mine = record.task is Task.CLASSIFY or certificates.of_classes(record)
        return mine and not is_unbounded(record)

    def order(self, first: CellRecord) -> tuple[Any, ...]:
        threat = first.threat
        size = float("inf") if threat.eps is None else float(threat.eps)
        data = (first.dataset, str(threat.domain), threat.geometry)
        return (*data, size, threat.goal is Goal.TARGETED)

    def rows(self, members: Sequence[CellRecord], shared: Shared) -> list[Row]:
        attacked = by_owner(record for record in members if record.task is Task.CLASSIFY)
        proven = by_owner(record for record in members if record.task is Task.CERTIFY)
        labels = sorted({facts.attack_name(r) for records in attacked.values() for r in records})
        rows = []
        for owner in sorted(attacked.keys() | proven.keys()):
            records, proofs = attacked.get(owner, []), proven.get(owner, [])
            row: Row = {"owner": owner, **certificates.row(proofs)}
            row |= self.figures(records, labels) if records else self._unattacked(proofs[0], labels)
            row["training"] = costs.training(records or proofs)
            row["levels"] = " ".join(sorted({facts.level(r) for r in records} - {""}))
            flags = set(row_flags(records, shared.checks)) if records else {"no_gradient_attack"}
            flags |= {flag for record in proofs for flag in cell_flags(record.measures, record.counts)}
            if certificates.contradicted(proofs, records):
                flags.add("certificate_contradicted")
            rows.append(row | {"flags": " ".join(sorted(flags))})
        costs.add_delta(rows)
        return rows

    def figures(self, records: Sequence[CellRecord], labels: Sequence[str]) -> Row:
        """Return the measured columns of one row: clean accuracy, result, costs, one column an attack."""
        n = records[0].counts["n"]
        row: Row = {
            "n": n,
            **rate("clean", max(record.counts["clean"] for record in records), n),
            **self.result(records),
            **verdicts.energy(records),
            **verdicts.single_draw(records),
            "propagations": verdicts.propagations(records, verdicts.attacked(records)),
        }
        for label in labels:
            own = [record for record in records if facts.attack_name(record) == label]
            row[f"{self.parts}{label}"] = self.alone(own) if own else NAN
        return row

    def result(self, records: Sequence[CellRecord]) -> Row:
        """Return the columns that say how robust a row is."""
        raise NotImplementedError  # pragma: no cover

    def alone(self, records: Sequence[CellRecord]) -> float:
        """Return what one attack leaves."""
        raise NotImplementedError  # pragma: no cover

    def _unattacked(self, proof: CellRecord, labels: Sequence[str]) -> Row:
        """Return the measured columns of a victim that was certified and never attacked."""
        n = proof.counts["n"]
        unknown = (*self.measured, *verdicts.ENERGY, *verdicts.SINGLE, *(self.parts + a for a in labels))
        row: Row = {"n": n, **rate("clean", proof.counts["clean"], n), "propagations": 0.0}
        return row | dict.fromkeys(unknown, NAN)

    def outcome(self, records: Sequence[CellRecord]) -> ranks.Outcome | None:
        return verdicts.outcome([record for record in records if record.task is Task.CLASSIFY])

    def details(self, members: Sequence[CellRecord], names: Mapping[Owner, str]) -> dict[str, pd.DataFrame]:
        attacked = by_owner(record for record in members if record.task is Task.CLASSIFY)
        groups = {owner: attacked[owner] for owner in names if owner in attacked}
        found = {}
        if members[0].threat.is_minimum_norm or members[0].threat.domain is not Domain.STATIC:
            found["attacks"] = spikes.attack_frame(groups, names, beats=beats)
        if members[0].threat.is_minimum_norm:
            found["curves"] = spikes.curve_frame(groups, names)
        proven = by_owner(record for record in members if record.task is Task.CERTIFY)
        return found | {"certificates": certificates.frame(proven, names)}

    def head(self, section: Section) -> tuple[list[str], Callable[[pd.Series[Any]], list[str]]]:
        """Return the headings of the result in the main table, and what makes its cells of a row."""
        raise NotImplementedError  # pragma: no cover

    def main(self, section: Section) -> Table:
        """Return the main table."""
        result, cells = self.head(section)
        best = result[-1]
        proven = len(section.certificates) > 0
        voted = bool((section.frame["draws"] > 1).any())
        headers = ["rank", "victim", "defense", "clean", *result, *["certified [95 %]"] * proven]
        singles = [name for name in verdicts.SINGLE if name in self.columns]
        headers += [", ".join(["one draw: clean", *["attacked"] * (len(singles) > 1)])] * voted
        headers += ["strongest attack", "nJ", "nJ attacked/clean", "passes", "flags"]
        rows = []
        for _, row in section.frame.iterrows():
            shown = [
                rank_cell(row),
                str(row["name"]),
                str(row["defense"]),
                percent(row["clean"]),
                *cells(row),
            ]
            if proven:
                shown.append("n/a" if share(row, "certified") == "-" else share(row, "certified"))
            if voted:
                single = [float(row[name]) for name in singles]
                shown.append("-" if math.isnan(single[0]) else ", ".join(map(percent, single)))
            energy = number(row["energy_nj"])
            shown += [
                self.strongest(row),
                f"{energy} ({row['draws']:.0f} draws)" if row["draws"] > 1 else energy,
                number(row["energy_ratio"]),
                f"{row['propagations']:.0f}",
                marked(str(row["flags"])),
            ]
            rows.append(shown)
        first = ("rank", "victim", "defense", best, "clean", *result[:-1])
        return Table(headers, rows, headers.index(best), first)

    def show(self, value: float) -> str:
        """Return one attack's figure for people."""
        return percent(value)

    def strongest(self, row: pd.Series[Any]) -> str:
        """Return the attack that leaves the least of a row, with what it leaves."""
        values = {c.removeprefix(self.parts): row[c] for c in map(str, row.index) if c.startswith(self.parts)}
        measured = {label: value for label, value in values.items() if value == value}
        if not measured:
            return "-"
        label = min(sorted(measured), key=measured.__getitem__)
        return f"{label} ({self.show(measured[label])})"

    def by_attack(self, section: Section, corner: str) -> Table:
        """Return the result under each attack alone."""
        frame = section.frame
        rows = [
            (column.removeprefix(self.parts), [self.show(value) for value in frame[column]])
            for column in section.part_columns
        ]
        return turned(corner, rows, [with_defense(row) for _, row in frame.iterrows()])

    def tables(self, section: Section, *, narrow: bool = False) -> list[Table]:
        found = [
            self.main(section),
            *self.more(section),
            certificates.table(section.certificates),
            self.by_defense(section),
            by_energy(section),
            spikes.table(section.attacks, section.reach, budgets=bool(len(section.curves)) and not narrow),
        ]
        return [table for table in found if table is not None]

    def more(self, section: Section) -> list[Table | None]:
        """Return the tables right beneath the main one."""
        raise NotImplementedError  # pragma: no cover

    def by_defense(self, section: Section) -> Table | None:
        """Return what each defense buys and costs; None where the section has no defended victim."""
        found = costs.gains(section.frame, self.by[0][0])
        headers = ["what a defense buys and costs", "defense", f"{self.result_name(section)} gained"]
        headers += ["clean gained", "nJ / undefended", "training passes / plain"]
        rows = [
            [
                row["name"],
                row["defense"],
                self.gain(row["result"]),
                points(row["clean_delta"]),
                number(row["energy"]),
                number(row["training"]),
            ]
            for row in found
        ]
        return Table(headers, rows) if rows else None

    def gain(self, difference: float) -> str:
        """Return a difference of the column that rows are ranked by, for people."""
        return points(difference)

    def introductions(self, section: Section) -> list[str]:
        found = [self.introduction, ENERGY]
        if (section.frame["draws"] > 1).any():
            found.append(VOTES)
        if section.is_targeted:
            found.append(TARGETED)
        if len(section.attacks):
            found.append(spikes.INTRODUCTION)
        if len(section.certificates):
            found.append(certificates.INTRODUCTION)
        if self.by_defense(section):
            found.append(costs.INTRODUCTION)
        return found


class Accuracy(OfClassifiers):
    """Bounded attacks: worst case by sample."""

    name = "accuracy"
    columns: ClassVar[Mapping[str, str]] = {
        **CLEAN,
        "worst_case": "share of samples that stay correct under every attack of the section",
        "worst_case_low": "lower end of the 95 % Wilson interval of worst_case",
        "worst_case_high": "upper end of it",
        "worst_case_single": verdicts.SINGLE["worst_case_single"],
        **certificates.COLUMNS,
        "asr": "attack success rate: broken samples over samples correct without attack",
        "asr_low": "lower end of the 95 % Wilson interval of asr",
        "asr_high": "upper end of it",
        **COSTS,
    }
    by = (("worst_case", False), ("clean", False))
    measured = ("worst_case", "worst_case_low", "worst_case_high", "asr", "asr_low", "asr_high")
    introduction = (
        "Accuracy in percent. *Worst case*: a sample counts only if it survives every attack of the table. A "
        "standard verdict says its level wherever its figure stands: what a quick one leaves, a full one may "
        "still break."
    )

    def takes(self, record: CellRecord) -> bool:
        return super().takes(record) and not record.threat.is_minimum_norm

    def result(self, records: Sequence[CellRecord]) -> Row:
        verdict = verdicts.robust_by_sample(records)
        clean, robust = max(record.counts["clean"] for record in records), sum(verdict.values())
        return {**rate("worst_case", robust, len(verdict)), **rate("asr", clean - robust, clean)}

    def alone(self, records: Sequence[CellRecord]) -> float:
        return self.span(records)[0]

    def span(self, records: Sequence[CellRecord]) -> tuple[float, float, float]:
        verdict = verdicts.robust_by_sample(records)
        k, n = sum(verdict.values()), len(verdict)
        return k / n, *wilson(k, n)

    def result_name(self, section: Section) -> str:
        return worst_case(section)

    def head(self, section: Section) -> tuple[list[str], Callable[[pd.Series[Any]], list[str]]]:
        mixed = section.frame["levels"].nunique() > 1

        def cells(row: pd.Series[Any]) -> list[str]:
            own = f" ({row['levels']})" if mixed and row["levels"] else ""
            return [percent(row["asr"]), share(row, "worst_case") + own]

        return ["ASR", f"{worst_case(section)} [95 %]"], cells

    def more(self, section: Section) -> list[Table | None]:
        return [self.by_attack(section, "accuracy under"), by_training_seed(section)]

    def introductions(self, section: Section) -> list[str]:
        found = super().introductions(section)
        return found + [seeds.INTRODUCTION] * (by_training_seed(section) is not None)


ENERGY = (
    "*nJ*: synaptic energy of a clean answer (45 nm: 4.6 pJ a MAC, 0.9 pJ an AC; inputs that are zero cost "
    "nothing, the first layer is paid at every step), and its ratio on the broken samples under attack. "
    "Where a table of *conventions* stands, it also bills every input of a layer on real values (dense, the "
    "usual count of an ANN), and the first layer once for all steps."
)

VOTES = (
    "*Draws*: a victim with noise of its own is decided by the vote of so many draws; its nJ are those of "
    "all of them, and *one draw* is the accuracy of a single one, clean and on each sample's worst input."
)

TARGETED = (
    "*Targeted* sections: success is one given class, drawn for every sample by a hash of its id from all "
    "but its label, the same for all victims, attacks and seeds; any other wrong answer is none."
)


def worst_case(section: Section) -> str:
    """Return what the worst case of a section is called: with the level of the verdicts behind it."""
    levels = sorted(set(section.frame["levels"]))
    if levels == [""]:
        return "worst case"
    return f"worst case ({levels[0]} verdict)" if len(levels) == 1 else "worst case (levels differ)"


def by_energy(section: Section) -> Table | None:
    """Return the energy of a clean answer under every convention; None where records know only one."""
    frame = section.frame[section.frame["energy_dense_nj"].notna()]
    if not len(frame):
        return None
    headers = ["nJ of a clean answer", "non-zero inputs, first layer per step", "non-zero, once"]
    headers += ["dense, per step", "dense, once", "draws"]
    columns = ("energy_nj", "energy_once_nj", "energy_dense_nj", "energy_dense_once_nj")
    return Table(
        headers,
        [
            [with_defense(row), *(number(row[column]) for column in columns), f"{row['draws']:.0f}"]
            for _, row in frame.iterrows()
        ],
    )


def by_training_seed(section: Section) -> Table | None:
    """Return means over training seeds, attack by attack where the attacks are few enough to read.

    None where every victim has one seed.
    """
    parts = section.part_columns
    found = seeds.mean_rows(section.frame, ("clean", "worst_case", *parts))
    if not found:
        return None
    attacks = parts if len(parts) <= seeds.ATTACKS_THAT_FIT else []
    headers = ["mean of k training seeds", "defense", "k", "flagged", "clean [95 %]"]
    headers.append(f"{worst_case(section)} [95 %]")
    rows = []
    for row in found:
        shown = [
            "{} [{}, {}]".format(*(figure(100 * value, 1) for value in row[column])) if column in row else "-"
            for column in ("clean", "worst_case", *attacks)
        ]
        rows.append([row["victim"], row["defense"], str(row["seeds"]), str(row["flagged"]), *shown])
    return Table(headers + [column.removeprefix("acc:") for column in attacks], rows)
