"""robustspike submit DIR."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robustspike.bench.record.schema import CellRecord


@click.command("submit")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle; default: DIR.zip.")
@click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Plugin file to enclose.")
@click.option(
    "--inputs/--no-inputs",
    default=True,
    help="Enclose the adversarial inputs; without them only verify --rerun can check the bundle.",
)
@click.option(
    "--inputs-of",
    multiple=True,
    metavar="KEY=GLOB",
    help="Enclose those of these records alone, chosen as by leaderboard --only.",
)
def command(
    folder: Path, out: Path | None, plugin: tuple[Path, ...], inputs: bool, inputs_of: tuple[str, ...]
) -> None:
    """Pack the finished records of DIR into a bundle that anyone can verify.

    More files than a bundle may have (30,000) make several; give all of them to the verb that reads them.
    Plugin files and weights that came from no package are enclosed: the run kept them in DIR.
    `robustspike leaderboard` and `robustspike verify` take bundles as they take folders.
    """
    from robustspike.bench.cli.options import parse_only
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.bundle import pack
    from robustspike.bench.record.enclosures import enclosed_files
    from robustspike.bench.record.enclosures import keep_plugin
    from robustspike.bench.record.index import Index
    from robustspike.bench.record.store import record_folders
    from robustspike.leaderboard.filters import chosen

    places = record_folders(folder)
    with Index(folder, len(places)) as index:
        records = [index.read(place) for place in places]
    for path in plugin:
        if not path.is_file():
            raise ConfigError(f"--plugin {path}: no such file.")
        keep_plugin(folder, path)
    _everything_is_kept(records, folder)
    bundle = out or folder.with_name(f"{folder.resolve().name}.zip")
    if inputs_of and not inputs:
        raise ConfigError("--no-inputs encloses none: leave it or --inputs-of away.")
    kept: bool | set[str] = inputs
    if inputs_of:
        asked = parse_only(inputs_of, option="--inputs-of")
        kept = {record.key for record in chosen(records, asked, option="--inputs-of")}
    made = pack(folder, bundle, inputs=kept)
    for path, count in made.items():
        click.echo(f"{path}: {count} records, {path.stat().st_size} bytes")
    for name in enclosed_files(folder):
        click.echo(f"encloses {name}", err=True)
    named = " ".join(map(str, made))
    again = "" if inputs and not inputs_of else " --rerun"
    click.echo(f"check it: robustspike verify {named}{again}", err=True)


def _everything_is_kept(records: Sequence[CellRecord], folder: Path) -> None:
    """Check that what records need and no package brings lies beside them. Raises: ConfigError."""
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.enclosures import enclosed_plugins
    from robustspike.bench.record.enclosures import enclosed_weights

    plugins = enclosed_plugins(folder)
    for record in records:
        made = record.environment
        wanted = made.get("plugins", "").split()
        unnamed = made.get("attack_from") == "file" and not wanted  # a record older than the field
        if (unnamed and not plugins) or any(digest not in plugins for digest in wanted):
            raise ConfigError(
                f"{folder}: the record of '{record.label}' on {record.victim} needs a plugin file that is "
                f"not in {folder / 'plugins'}; a bundle must enclose it. Add --plugin FILE.py."
            )
        if (
            made.get("weights_from") == "file"
            and enclosed_weights(folder, digest=record.digests["weights"]) is None
        ):
            raise ConfigError(
                f"{folder}: the weights of {record.victim} + {record.defense} came from a folder and are not "
                f"in {folder / 'weights'}; a bundle must enclose them. Run the suite again."
            )
