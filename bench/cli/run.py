"""robustspike run [SUITE]."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustspike.bench.cli.completion import names

if TYPE_CHECKING:
    from robustspike.bench.suite.cell import NotApplicable


@click.command("run")
@click.argument("suite", default="quick", shell_complete=names("suites", files=True))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("robustspike-results"), show_default=True
)
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=GLOB",
    help="Measure only cells whose KEY (victim, defense, attack, dataset, threat) matches; of one KEY given "
    "twice either, of different KEYs all.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Samples per cell instead of the suite's.")
@click.option("--seed", type=click.IntRange(min=0), help="Attack seed instead of the suite's.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Worker processes; default: the cores that it may use."
)
@click.option(
    "--part",
    metavar="NUMBER/OF",
    help="Measure one part of the cells, e.g. 3/8 on the third of eight machines; robustspike leaderboard "
    "joins their folders.",
)
@click.option(
    "--ray",
    "cluster",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Work on a Ray cluster: auto, HOST:PORT, or none to start one here (extra: ray).",
)
@click.option(
    "--compile",
    "compiles",
    is_flag=True,
    help="Let attacks ask victims through torch.compile: for long runs; cells of their own.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of published data sets.")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of weights from robustspike train.")
@click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Python file with a plugin.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    help="Seconds an attack may take on one shard; 0 for no limit.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0),
    help="GiB an attack may add to its process on one shard; 0 for no limit; default: 80 % of the machine's "
    "memory, shared out among the jobs (none with --device cuda). Without --jobs, as many workers start as "
    "have it.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the tables and errors alone.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line for every shard that is done.")
def command(
    suite: str,
    out: Path,
    only: tuple[str, ...],
    samples: int | None,
    seed: int | None,
    device: str,
    jobs: int | None,
    part: str | None,
    cluster: str | None,
    compiles: bool,
    data: Path | None,
    weights: Path | None,
    plugin: tuple[Path, ...],
    timeout: float,
    memory: float | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Measure SUITE (a shipped suite or a .toml file) and print the leaderboard.

    What is already measured in --out is not measured again. Writes leaderboard.json, .md and
    .html, rows.csv (a line a table row), cells.csv (a line a cell) and leaderboard.csv (rows
    with a column an attack) to --out; for attacks on spikes and for minimum-norm attacks also
    attacks.csv (what each attack had to change) and curves.csv (its success over its budget).
    """
    from robustspike.bench.attack.limits import Limits
    from robustspike.bench.cli.leaderboard import publish
    from robustspike.bench.cli.options import choose_device
    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.cli.options import parse_only
    from robustspike.bench.cli.progress import progress
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.files import write_atomic
    from robustspike.bench.record import provenance
    from robustspike.bench.run.compute import Settings
    from robustspike.bench.run.pool import memory_share
    from robustspike.bench.run.pool import workers_for
    from robustspike.bench.run.run import run
    from robustspike.bench.suite.file import read_suite
    from robustspike.bench.suite.part import WHOLE
    from robustspike.bench.suite.part import Part
    from robustspike.bench.suite.plan import make_plan
    from robustspike.bench.suite.plan import recipes_of
    from robustspike.bench.victim.compiling import check_usable

    share = WHOLE if part is None else Part.parse(part)
    if cluster is not None and jobs is not None:
        raise ConfigError(
            "--jobs counts worker processes of a run without Ray; with --ray every processor of the cluster "
            "works. Give one of the two; to limit Ray here, `ray start --head --num-cpus N`, then --ray auto."
        )
    for path in plugin:
        load_file(path)
    device = choose_device(device)
    if compiles:
        check_usable(device)
    workers = jobs or (1 if device != "cpu" else workers_for(provenance.cores(), memory))
    if memory is None and device == "cpu":  # drivers of other devices reserve memory as they like
        memory = memory_share(workers)
    settings = Settings(
        out=out,
        weights=existing_folder(weights, "--weights"),
        root=existing_folder(data, "--data"),
        device=device,
        plugins=tuple(plugin),
        limits=Limits(timeout or None, memory or None),
        command=shlex.join(["robustspike", *sys.argv[1:]]),
    )
    for line in settings.limits.cannot():
        click.echo(line, err=True)
    parsed = read_suite(suite)
    for recipe in recipes_of(parsed):
        with building(recipe.dataset) as on_build:
            recipe.data().prepare(on_build)
    plan = make_plan(
        parsed,
        only=parse_only(only),
        samples=samples,
        seed=seed,
        weights=settings.weights,
        root=settings.root,
        compiled=compiles,
    )
    misfits = list(plan.not_applicable)
    with progress(len(plan.cells), quiet=quiet, verbose=verbose) as watcher:
        records = run(
            plan,
            settings,
            jobs=workers,
            part=share,
            cluster=cluster,
            on_tick=watcher.on_tick,
            on_start=watcher.on_start,
            on_misfit=misfits.append,
        )
    if not records:
        click.echo(f"part {share} holds none of the {len(plan.cells)} cells; the other parts do.", err=True)
        return 0
    listed = _tell_misfits(misfits, quiet=quiet)
    about = provenance.lines(provenance.read(out))
    publish(records, about, out=out, csv=out / "leaderboard.csv", title=plan.suite.name, folders=[out])
    if listed:
        write_atomic(out / "not_applicable.csv", listed.encode())
        if not quiet:
            click.echo(f"n/a pairs are listed in {out / 'not_applicable.csv'}", err=True)
    failed = [record for record in records if record.errors]
    for record in failed:
        where = f"{record.victim}, {record.defense}, {record.label}, {record.threat.label}"
        click.echo(f"error in cell {where}: {record.errors[0]}", err=True)
    if not quiet:
        wrote = "leaderboard.html, how-to-read.html, leaderboard.md, .json, .csv, rows.csv and cells.csv"
        click.echo(f"{len(records)} cells in {out}; wrote {wrote} there.", err=True)
    return 3 if failed else 0


@contextlib.contextmanager
def building(dataset: str) -> Iterator[Callable[[int, int], None]]:
    """Say that a data set is being built, once; count on a terminal."""
    started = False

    def on_build(done: int, total: int) -> None:
        nonlocal started
        if sys.stderr.isatty():
            click.echo(f"\rbuilding {dataset} (first use): {done}/{total}", err=True, nl=done == total)
        elif not started:
            click.echo(f"building {dataset} (first use)", err=True)
        started = True

    yield on_build


def _tell_misfits(misfits: Sequence[NotApplicable], *, quiet: bool = False) -> str:
    """Say which pairs are left out and why, by reason; returns them as CSV, empty where there are none."""
    by_reason: dict[str, list[str]] = {}
    for misfit in misfits:
        by_reason.setdefault(misfit.reason, []).append(f"{misfit.victim} + {misfit.defense}")
    for reason, pairs in by_reason.items():
        more = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
        if not quiet:
            click.echo(f"n/a: {pairs[0]}{more}: {reason}", err=True)
    lines = [f'"{pair}","{reason}"\n' for reason, pairs in by_reason.items() for pair in pairs]
    return "".join(["pair,reason\n", *lines]) if lines else ""
