"""robustspike evaluate NETWORK."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from robustspike.bench.cli.completion import names
from robustspike.bench.cli.inspect import network_options
from robustspike.bench.cli.inspect import request


@click.command("evaluate")
@network_options
@click.option(
    "--eps",
    default="",
    help="Budgets, separated by commas: 2/255,4/255; on events flips, events or steps: 20,50. Default: the "
    "usual one (linf: 8/255); on events the fewest changes.",
)
@click.option(
    "--geometry",
    default="",
    shell_complete=names("geometries"),
    help="What may change, as retime_linf. Default: the first of each attack that is for such inputs.",
)
@click.option(
    "--attack",
    shell_complete=names("attacks"),
    multiple=True,
    help="A registered attack, with parameters as a call: 'pgd.linf(estimator=pdsg)'. Default: the standard "
    "verdict of the domain.",
)
@click.option("--samples", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--shard", type=click.IntRange(min=1), default=125, show_default=True, help="Samples per batch."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes; default: the cores.")
@click.option(
    "--compile",
    "compiles",
    is_flag=True,
    help="Let attacks ask victims through torch.compile: for long runs; cells of their own.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("robustspike-results"), show_default=True
)
def command(
    network: str,
    eps: str,
    geometry: str,
    attack: tuple[str, ...],
    samples: int,
    shard: int,
    seed: int,
    device: str,
    jobs: int | None,
    compiles: bool,
    out: Path,
    plugin: tuple[Path, ...],
    **given: Any,
) -> int:
    """Measure NETWORK (FILE.py:NAME, package.module:NAME or a .nir file) and print its row.

    Builds it, loads the checkpoint, checks it, says what was found, attacks it, and writes the records that
    run writes. Beside them lie a plugin file and the weights, for run, verify and submit: --plugin
    OUT/NAME.py --weights OUT/weights. What is already measured in --out is not measured again.
    """
    from robustspike.bench.cli.leaderboard import publish
    from robustspike.bench.cli.options import choose_device
    from robustspike.bench.cli.progress import progress
    from robustspike.bench.record import provenance
    from robustspike.bench.run.compute import Settings
    from robustspike.bench.run.network import look
    from robustspike.bench.run.network import own_suite
    from robustspike.bench.run.network import prepare
    from robustspike.bench.run.run import run
    from robustspike.bench.suite.plan import make_plan
    from robustspike.bench.victim.compiling import check_usable

    device = choose_device(device)
    if compiles:
        check_usable(device)
    looked = look(request(network, plugin=plugin, **given))
    for line in looked.told:
        click.echo(line, err=True)
    found = prepare(looked, out)
    budgets = [part.strip() for part in eps.split(",") if part.strip()]
    suite = own_suite(
        found, eps=budgets, attacks=attack, samples=samples, shard=shard, seed=seed, geometry=geometry
    )
    settings = Settings(
        out=out,
        weights=found.weights,
        root=given["data_dir"],
        device=device,
        plugins=(*plugin, *found.plugins),
        command=shlex.join(["robustspike", *sys.argv[1:]]),
    )
    plan = make_plan(suite, weights=found.weights, root=settings.root, compiled=compiles)
    workers = jobs or (1 if device != "cpu" else provenance.cores())
    misfits = list(plan.not_applicable)
    with progress(len(plan.cells)) as watcher:
        records = run(
            plan,
            settings,
            jobs=workers,
            on_tick=watcher.on_tick,
            on_start=watcher.on_start,
            on_misfit=misfits.append,
        )
    for misfit in misfits:
        click.echo(f"n/a: {misfit.reason}", err=True)
    about = provenance.lines(provenance.read(out))
    publish(records, about, out=out, csv=out / "leaderboard.csv", title=suite.name, folders=[out])
    failed = [record for record in records if record.errors]
    for record in failed:
        click.echo(f"error in cell {record.label}, {record.threat.label}: {record.errors[0]}", err=True)
    known = " ".join(f"--plugin {path}" for path in settings.plugins)
    check = f"robustspike verify {out} {known} --weights {found.weights}"
    click.echo(f"{len(records)} cells in {out}. Check them: {check}", err=True)
    return 3 if failed else 0
