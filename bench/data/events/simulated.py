"""What data sets of a simulated sensor share: its options, and the same scenes seen by another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.errors import ConfigError

OPTIONS = tuple(field.name for field in dataclasses.fields(Sensor))


@dataclass(frozen=True, kw_only=True)
class Simulated(Dataset):
    """Base of data sets that a simulated sensor records; the options are those of `Sensor`."""

    threshold: float = 0.8
    mismatch: float = 0.0
    refractory: int = 0
    background: float = 0.0
    hot_pixels: float = 0.0
    hot_rate_hz: float = 100.0
    lin_log: float = 0.0
    cutoff_hz: float = 0.0
    leak_rate_hz: float = 0.0
    leak_jitter_fraction: float = 0.0
    noise_rate_cov_decades: float = 0.0
    shot_noise_rate_hz: float = 0.0

    def sensor(self) -> Sensor:
        """Return the pixels."""
        return Sensor(**{name: getattr(self, name) for name in OPTIONS})

    def recordings(self, split: SplitName, root: Path | None = None) -> list[Recording]:
        """Return the raw events of a split's samples, in its order. Raises: ArtefactError."""
        raise TypeError(f"{type(self).__name__} does not define recordings().")

    def seen_again(
        self, split: SplitName, rows: range, root: Path | None
    ) -> Callable[[Mapping[str, Any]], Sequence[Recording]]:
        """Return what records the same scenes with some options of the sensor changed."""

        def record(changes: Mapping[str, Any]) -> Sequence[Recording]:
            check_options(self.name, changes, OPTIONS)
            return dataclasses.replace(self, **changes).recordings(split, root)[rows.start : rows.stop]

        return record


def check_options(name: str, changes: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises: ConfigError: a change that the sensor of a data set does not know."""
    for key in changes:
        if key not in known:
            raise ConfigError(
                f"data set '{name}': its sensor's {key} cannot be changed.{did_you_mean(key, known)} These "
                f"can: {', '.join(known)}."
            )
