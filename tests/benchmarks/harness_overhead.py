"""What the harness costs: the processor time of a cell over that of the passes its attack asked for.

    python tests/benchmarks/harness_overhead.py [ROUNDS]

FGSM, PGD-20 and the quick ensemble on lif_cnn.digits, 125 samples at eps 1/10, one thread. A cell is all that
`robustspike run` does for it: the victim checked afterwards, verdict, energy, flags. Its passes are those
that the oracle ran, each under its estimator and at the batch size that it had; what the harness asks for
itself (clean answer, probe, verification, energy) is overhead. Prints, a line an attack, the first cell of a
victim and the median of later ones, for which clean samples need no answer any more, and samples a second.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from robustspike.bench.attack.oracle import Oracle
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.run.run import prepare
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.loading import VICTIMS
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.victim.module import ModuleVictim

SUITE = """
name = "overhead"
samples = 125
shard = 125
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "fgsm.linf"
[[attacks]]
name = "pgd.linf"
[[attacks]]
name = "autoattack.snn"
params = { level = "quick" }
"""


class Clock:
    """Adds up processor seconds inside the passes that oracles ask of victims."""

    def __init__(self) -> None:
        self.seconds, self.passes, self._asked, self._inside = 0.0, 0, 0, 0

    def asking(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a method of the oracle: passes inside it are the attack's."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._asked += 1
            try:
                return own(*args, **kwargs)
            finally:
                self._asked -= 1

        return call

    def timed(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a pass of a victim."""

        def call(victim: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._asked or self._inside:
                return own(victim, x, *args, **kwargs)
            self._inside += 1
            start = time.process_time()
            try:
                return own(victim, x, *args, **kwargs)
            finally:
                self.seconds += time.process_time() - start
                self.passes += len(x)
                self._inside -= 1

        return call


def main(rounds: int = 7) -> None:
    clock = Clock()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(
            Oracle, _pass=clock.asking(Oracle._pass), loss_and_grad=clock.asking(Oracle.loss_and_grad)
        ),
        mock.patch.multiple(
            ModuleVictim,
            logits=clock.timed(ModuleVictim.logits),
            loss_and_grad=clock.timed(ModuleVictim.loss_and_grad),
        ),
    ):
        suite = Path(folder) / "suite.toml"
        suite.write_text(SUITE)
        settings = Settings(out=Path(folder) / "out")
        prepare(settings)
        for cell in make_plan(read_suite(str(suite))).cells:
            VICTIMS.drop(cell, weights=None, device="cpu")
            VICTIMS.pristine(cell, weights=None, device="cpu").victim.neurons  # noqa: B018  (looked for once)
            ratios, speed = [], []
            for _ in range(1 + rounds):
                clock.seconds, clock.passes = 0.0, 0
                start = time.process_time()
                result = compute(Unit(cell, "key", 0), settings)
                total = time.process_time() - start
                assert not result.errors, result.errors
                ratios.append(total / clock.seconds)
                speed.append(clock.passes / total)
            later = ratios[1:]
            print(  # noqa: T201
                f"{cell.label}: first cell {ratios[0]:.2f}, later {statistics.median(later):.2f} (median "
                f"of {rounds}, {min(later):.2f} to {max(later):.2f}); {statistics.median(speed[1:]):.0f} "
                "samples answered a second",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
