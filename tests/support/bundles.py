"""Small measured bundles, for tests of what checks and uses them."""

from __future__ import annotations

from pathlib import Path

from robustspike.bench.record.bundle import pack
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan

SUITE = """
name = "tiny"
samples = {samples}
shard = 8
{threats}
[[victims]]
name = "{victim}"
{attacks}
"""


def measured(
    out: Path,
    *attacks: str,
    victim: str = "lif_cnn.digits",
    threats: tuple[str, ...] = ('geometry = "linf"\neps = "1/10"',),
    samples: int = 16,
) -> list[CellRecord]:
    """Measure attacks ("name", or the lines of an [[attacks]] table) and pack them: OUT and OUT.zip."""
    tables = [attack if "=" in attack else f'name = "{attack}"' for attack in attacks]
    text = SUITE.format(
        samples=samples,
        victim=victim,
        threats="\n".join(f"[[threats]]\n{threat}" for threat in threats),
        attacks="\n".join(f"[[attacks]]\n{table}" for table in tables),
    )
    path = out.with_suffix(".toml")
    path.write_text(text)
    records = run(make_plan(read_suite(str(path))), Settings(out))
    pack(out, out.with_suffix(".zip"))
    return records
