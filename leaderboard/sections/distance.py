"""Tables of minimum-norm attacks: how small a change is enough, by sample and over all attacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar

import numpy as np
import pandas as pd

from robustspike.bench.numbers.stats import bootstrap_median
from robustspike.bench.numbers.stats import rate
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import verdicts
from robustspike.leaderboard.sections import certificates
from robustspike.leaderboard.sections.accuracy import CLEAN
from robustspike.leaderboard.sections.accuracy import COSTS
from robustspike.leaderboard.sections.accuracy import OfClassifiers
from robustspike.leaderboard.sections.base import Row
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.spikes import BUDGETS
from robustspike.leaderboard.spikes import median
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import number
from robustspike.leaderboard.text import percent


class Distance(OfClassifiers):
    """Attacks without a bound: the median of the smallest distance at which any of them breaks a sample."""

    name = "distance"
    columns: ClassVar[Mapping[str, str]] = {
        **CLEAN,
        "success": "share of attacked samples that some attack breaks at any distance",
        "success_low": "lower end of the 95 % Wilson interval of success",
        "success_high": "upper end of it",
        "median_all": "median over attacked samples of the nearest success of any attack; failures infinite",
        "median_all_low": "lower end of its 95 % bootstrap interval",
        "median_all_high": "upper end of it",
        "median_success": "the same median over the broken samples alone",
        **{f"asr@{b}": f"share of attacked samples broken within distance {b}" for b in BUDGETS},
        **certificates.COLUMNS,
        **COSTS,
    }
    by = (("median_all", False), ("clean", False))
    measured = (
        *(f"{name}{end}" for name in ("success", "median_all") for end in ("", "_low", "_high")),
        "median_success",
        *(f"asr@{budget}" for budget in BUDGETS),
    )
    introduction = (
        "*Median distance*: over all attacked samples, the smallest change with which any attack breaks a "
        "sample, failures counted as infinite. Success over budget, every step of every curve, is drawn in "
        "the page and listed in `curves.csv`."
    )

    def takes(self, record: CellRecord) -> bool:
        return super().takes(record) and record.threat.is_minimum_norm

    def result(self, records: Sequence[CellRecord]) -> Row:
        distances = verdicts.nearest(records)
        values = np.array([distances[key] for key in sorted(distances)])
        reached = values[np.isfinite(values)]
        low, high = bootstrap_median(values)
        within = {
            f"asr@{budget}": float((values <= budget).mean()) if len(values) else math.nan
            for budget in BUDGETS
        }
        return {
            **rate("success", len(reached), len(values)),
            "median_all": median(values),
            "median_all_low": low,
            "median_all_high": high,
            "median_success": median(reached),
            **within,
        }

    def alone(self, records: Sequence[CellRecord]) -> float:
        return median(list(verdicts.nearest(records).values()))

    def span(self, records: Sequence[CellRecord]) -> tuple[float, float, float]:
        distances = np.array(list(verdicts.nearest(records).values()))
        return median(distances), *bootstrap_median(distances)

    def result_name(self, section: Section) -> str:
        del section
        return "median"

    def show(self, value: float) -> str:
        return number(value)

    def gain(self, difference: float) -> str:
        return number(difference)

    def head(self, section: Section) -> tuple[list[str], Callable[[pd.Series[Any]], list[str]]]:
        def cells(row: pd.Series[Any]) -> list[str]:
            ends = ", ".join(number(row[f"median_all_{end}"]) for end in ("low", "high"))
            return [percent(row["success"]), f"{number(row['median_all'])} [{ends}]"]

        return ["success", "median distance [95 %]"], cells

    def more(self, section: Section) -> list[Table | None]:
        return [self.by_attack(section, "median distance under"), self.by_budget(section)]

    def by_budget(self, section: Section) -> Table:
        """Return the success rate at each budget, one line a row."""
        headers = ["victim", "defense", *(f"ASR within {budget}" for budget in BUDGETS)]
        rows = [
            [
                row["name"],
                row["defense"],
                *(percent(row[f"asr@{budget}"]) for budget in BUDGETS),
                number(row["median_success"]),
            ]
            for _, row in section.frame.iterrows()
        ]
        return Table([*headers, "median over successes"], rows)
