"""robustspike submit DIR."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("submit")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle; default: DIR.zip.")
@click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Plugin file to enclose.")
@click.option(
    "--inputs/--no-inputs",
    default=True,
    help="Enclose the adversarial inputs; without them only verify --rerun can check the bundle.",
)
def command(folder: Path, out: Path | None, plugin: tuple[Path, ...], inputs: bool) -> None:
    """Pack the finished records of DIR into one bundle that anyone can verify.

    `robustspike leaderboard` and `robustspike verify` take bundles as they take folders.
    """
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.bundle import pack
    from robustspike.bench.record.schema import read_record
    from robustspike.bench.record.store import record_folders

    records = [read_record(place) for place in record_folders(folder)]
    loose = sorted({r.attack for r in records if r.environment.get("attack_from") == "file"})
    if loose and not plugin:
        raise ConfigError(
            f"{folder}: the attack '{loose[0]}' came from a file; a bundle must enclose it. "
            "Add --plugin FILE.py."
        )
    bundle = out or folder.with_name(f"{folder.resolve().name}.zip")
    count = pack(folder, bundle, plugins=plugin, inputs=inputs)
    click.echo(f"{bundle}: {count} records, {bundle.stat().st_size} bytes")
    click.echo(f"check it: robustspike verify {bundle}{'' if inputs else ' --rerun'}", err=True)
