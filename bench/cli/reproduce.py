"""robustspike reproduce KEY|ROW."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustspike.bench.cli.options import records_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robustspike.bench.record.schema import CellRecord
    from robustspike.bench.run.compute import Settings

_PATH = click.Path(path_type=Path)
_SHORT = 12


@click.command("reproduce")
@click.argument("what", metavar="KEY|ROW")
@click.option(
    "--records",
    type=_PATH,
    required=True,
    metavar="DIR|BUNDLE",
    help="Where it is recorded; bundles: their folder.",
)
@click.option("--only", multiple=True, metavar="KEY=GLOB", help="Of a row these records, as in leaderboard.")
@click.option("--print", "dry", is_flag=True, help="Print the commands and run nothing.")
@click.option("--out", type=_PATH, default=Path("reproduced"), show_default=True, help="Where to measure.")
@records_options
def command(
    what: str,
    records: Path,
    only: tuple[str, ...],
    dry: bool,
    out: Path,
    data: Path | None,
    weights: Path | None,
    plugin: tuple[Path, ...],
    trust: tuple[str, ...],
) -> int:
    """Print the command that measures a record, or those of a row, run it, and compare every sample.

    KEY is the start of a record's key (cells.csv has them), ROW a victim, "VICTIM + DEFENSE" if it has one.
    The suite file that the command names is written to --out. Exit code 0: all come out as recorded; 1: one
    does not; 3: one cannot be run here.
    """
    from robustspike.bench.cli.options import parse_only
    from robustspike.bench.cli.verify import opened
    from robustspike.bench.files import write_atomic
    from robustspike.bench.record import given
    from robustspike.bench.record.schema import read_record
    from robustspike.bench.record.store import record_folders
    from robustspike.bench.run.assemble import cell_of
    from robustspike.bench.suite.single import suite_text
    from robustspike.leaderboard.filters import chosen

    codes = [0]
    with opened([records], data=data, weights=weights, plugin=plugin, trust=trust) as (roots, settings):
        known = [read_record(place) for place in record_folders(*roots)]
        for record in chosen(_asked(known, what, records), parse_only(only)):
            name = f"{record.victim} + {record.defense}, {record.label}, {record.threat.label}"
            click.echo(f"# {record.key[:_SHORT]}  {name}")
            if given.by(record):
                click.echo(
                    f"# its inputs were handed in by {given.by(record)}, without an attack:\n"
                    f"robustspike verify {shlex.quote(str(records))} --only {record.key[:_SHORT]}"
                )
                continue
            file = out / f"{record.key[:_SHORT]}.toml"
            cell = cell_of(record)
            write_atomic(file, suite_text(cell, record.suite).encode())
            options = [
                f"--{option}={path}" for option, path in (("data", data), ("weights", weights)) if path
            ]
            options += [f"--plugin={path}" for path in plugin] + ["--compile"] * cell.compiled
            click.echo(shlex.join(["robustspike", "run", str(file), "--out", str(out), *options]))
            if not dry:
                codes.append(_run(record, file, roots, dataclasses.replace(settings, out=out)))
    return 1 if 1 in codes else max(codes)


def _asked(records: Sequence[CellRecord], what: str, where: Path) -> list[CellRecord]:
    """Return the records of a key or a row. Raises: ConfigError: none, or several of such a key."""
    from robustspike.bench.contract.suggest import did_you_mean
    from robustspike.bench.errors import ConfigError

    of_key = [record for record in records if record.key.startswith(what)]
    if len(what) >= 4 and len(of_key) == 1:
        return of_key
    victim, _, defense = (part.strip() for part in what.partition("+"))
    of_row = [r for r in records if (r.victim, r.defense) == (victim, defense or "none")]
    if of_row:
        return of_row
    if len(of_key) > 1:
        raise ConfigError(f"{what}: {len(of_key)} records of {where} have such a key. Give more digits.")
    rows = sorted({r.victim + ("" if r.defense == "none" else f" + {r.defense}") for r in records})
    raise ConfigError(
        f"{what}: neither the start of a key nor a row of {where}.{did_you_mean(what, rows)} It has "
        f"{len(rows)} rows: {', '.join(rows[:5])}{', ...' if len(rows) > 5 else ''}"
    )


def _run(record: CellRecord, suite: Path, roots: Sequence[Path], settings: Settings) -> int:
    """Measure a record's cell again and tell how it compares; returns the exit code of this one."""
    from robustspike.bench.errors import BenchError
    from robustspike.bench.record.enclosures import enclosed_weights
    from robustspike.bench.run.assemble import cell_of
    from robustspike.bench.run.assemble import environment
    from robustspike.bench.run.run import run
    from robustspike.bench.run.verify import difference
    from robustspike.bench.run.verify import elsewhere
    from robustspike.bench.run.verify import verdicts_moved
    from robustspike.bench.suite.file import read_suite
    from robustspike.bench.suite.plan import make_plan

    kept = enclosed_weights(*roots, digest=record.digests["weights"])
    if kept is not None:
        settings = dataclasses.replace(settings, weights=kept)
        click.echo(
            f"# with --weights of the bundle: weights/{record.digests['weights'][:_SHORT]}...", err=True
        )
    try:
        plan = make_plan(
            read_suite(str(suite)),
            weights=settings.weights,
            root=settings.root,
            compiled=cell_of(record).compiled,
        )
        (again,) = run(plan, settings)
    except (BenchError, ValueError) as error:
        click.echo(f"cannot be run here: {error}")
        return 3
    for name in ("weights", "data"):
        if again.digests[name] != record.digests[name]:
            click.echo(f"cannot be compared: its {name} are not those here. Give --{name} DIR with them.")
            return 3
    figures = f"{again.counts['robust']} of {again.samples} robust, recorded {record.counts['robust']}"
    line = difference(record, again.rows, again.digests["adversarials"])
    if line is None:
        click.echo(f"{figures}: the same, sample by sample and byte for byte")
        return 0
    others = ["code"] * (again.digests["code"] != record.digests["code"])
    others += elsewhere(record, environment(settings))
    moved = verdicts_moved(record, again.rows)
    click.echo(f"{figures}: {line}, {moved} of them in their verdicts; {_why(others)}")
    return 1 if moved or not others else 0


def _why(others: Sequence[str]) -> str:
    return f"not as when it was measured: {', '.join(others)}" if others else "code and machine are the same"
