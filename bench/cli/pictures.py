"""robustspike pictures DIR|BUNDLE..."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from robustspike.bench.record.schema import CellRecord

_PATH = click.Path(path_type=Path)
_INPUTS = "adversarials.safetensors"


@click.command("pictures")
@click.argument("folders", nargs=-1, required=True, type=_PATH, metavar="DIR|BUNDLE...")
@click.option("--out", type=_PATH, required=True, help="Folder for the files.")
@click.option("--only", multiple=True, metavar="KEY=GLOB", help="Records to draw; one key twice: either.")
@click.option("--victim", help="The same as --only 'victim=...'.")
@click.option("--attack", help="The same as --only 'attack=...' (the attack's name in tables).")
@click.option("--count", type=click.IntRange(min=1), default=6, show_default=True, help="Inputs a sheet.")
@click.option("--data", type=_PATH, help="Folder of published data sets.")
@click.option("--plugin", multiple=True, type=_PATH, help="Python file with a plugin (a data set).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "svg"]),
    default="png",
    show_default=True,
    help="png: sheets of attacked inputs; svg: curves for papers.",
)
def command(
    folders: tuple[Path, ...],
    out: Path,
    only: tuple[str, ...],
    victim: str | None,
    attack: str | None,
    count: int,
    data: Path | None,
    plugin: tuple[Path, ...],
    form: str,
) -> int:
    """Draw what attacks did: inputs as sheets, or accuracy and success as curves.

    A sheet shows inputs that an attack broke, as they were, as attacked, and what changed: the amplified
    difference of images with the victim's answers and margins (or quality scores); for event frames what
    was added and removed, frame by frame and as a scatter in space and time. Curves are robust accuracy over
    eps, where rows were measured at several, and success over flips or distance. Paths are printed.

    Records without their inputs are named with the command that stores them; then the exit code is 1.
    """
    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.cli.options import parse_only
    from robustspike.bench.contract.registry import load_file

    for path in plugin:
        load_file(path)
    asked = parse_only(only)
    asked += [(key, value) for key, value in (("victim", victim), ("attack", attack)) if value is not None]
    if form == "svg":
        return _curves(folders, out, asked)
    return _sheets(folders, out, asked, count, existing_folder(data, "--data"))


def _sheets(
    folders: tuple[Path, ...], out: Path, asked: list[tuple[str, str]], count: int, data: Path | None
) -> int:
    from PIL import Image

    from robustspike.bench.contract.specs import Task
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.run.pictures import file_names
    from robustspike.bench.run.pictures import panels_of
    from robustspike.bench.run.pictures import sheet_of

    code = matching = 0
    names = file_names()
    for record, place in _records(folders, asked):
        title = f"{record.victim}+{record.defense} {record.label} {record.threat.label}"
        if record.task is Task.CERTIFY:
            click.echo(f"{title}: a certificate attacks nothing, no sheet", err=True)
            continue
        matching += 1
        if not (place / _INPUTS).is_file():
            click.echo(f"{title}: its inputs are not enclosed. {_stores_inputs(record)}", err=True)
            code = 1
            continue
        panels = panels_of(record, place, count=count, root=data)
        if not panels:
            click.echo(f"{title}: no input was broken, no sheet", err=True)
            continue
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{names(title)}.png"
        Image.fromarray(sheet_of(record, panels, title=title)).save(path)
        click.echo(str(path))
    if not matching:
        raise ConfigError("pictures: no record of an attack matches. See: robustspike leaderboard DIR.")
    return code


def _records(folders: tuple[Path, ...], asked: list[tuple[str, str]]) -> Iterator[tuple[CellRecord, Path]]:
    """Yield the records that pass the filters, with the folders that they lie in while they are used.

    Raises: ConfigError: none of a folder passes. ArtefactError, ProtocolError: unreadable.
    """
    from robustspike.bench.record.bundle import sources
    from robustspike.bench.record.bundle import unpacked_all
    from robustspike.bench.record.schema import read_record
    from robustspike.bench.record.store import record_folders
    from robustspike.leaderboard.filters import chosen

    for folder in sources(folders):
        with unpacked_all([folder]) as roots:
            places = {place.name: place for place in record_folders(*roots)}
            for record in chosen([read_record(place) for place in places.values()], asked):
                yield record, places[record.key]


def _stores_inputs(record: CellRecord) -> str:
    """Return what to type so that a record lies beside its inputs."""
    import shlex

    from robustspike.bench.suite.file import shipped_suites

    if record.suite not in shipped_suites():
        return "Take a bundle that was packed without --no-inputs, or run its suite again."
    filters = {
        "victim": record.victim,
        "defense": record.defense,
        "attack": record.label,
        "threat": record.threat.label,
    }
    only = " ".join(f"--only {shlex.quote(f'{key}={value}')}" for key, value in filters.items())
    again = f"robustspike run {record.suite} {only} --samples {record.samples} --out with-inputs"
    return f"Store them: {again}"


def _curves(folders: tuple[Path, ...], out: Path, asked: list[tuple[str, str]]) -> int:
    from robustspike.bench.cli.leaderboard import read_folders
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.files import write_atomic
    from robustspike.bench.run.pictures import file_names
    from robustspike.leaderboard.filters import chosen
    from robustspike.leaderboard.sections import build
    from robustspike.leaderboard.write.figures import figures

    records, _, refused = read_folders(folders)
    for line in refused:
        click.echo(line, err=True)
    found = figures(build(chosen(records, asked)))
    if not found:
        raise ConfigError(
            "pictures --format svg: nothing is a curve here. Robust accuracy needs one threat model at two "
            "eps or more (in a suite: several [[threats]]; robustspike evaluate --eps 2/255,4/255), success "
            "over a budget needs attacks on spikes, or attacks that minimise a distance."
        )
    out.mkdir(parents=True, exist_ok=True)
    names = file_names()
    for title, text in found.items():
        path = out / f"{names(title)}.svg"
        write_atomic(path, text.encode())
        click.echo(str(path))
    return 1 if refused else 0
