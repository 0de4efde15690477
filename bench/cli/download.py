"""robustspike download DATASET --to DIR."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from robustspike.bench.cli.completion import names


@click.command("download")
@click.argument("dataset", shell_complete=names("datasets"))
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for --data; made if absent.",
)
@click.option(
    "--mirror",
    default="",
    metavar="URL",
    help="Fetch from this folder (http:, https: or file:) instead; checksums stay those published.",
)
def command(dataset: str, folder: Path, mirror: str) -> None:
    """Fetch the published files of DATASET into --to, checked by their published checksums.

    Files that are there are not fetched again, and a download that was cut short goes on. Then pass
    the folder to other verbs with --data. Every other verb works without network.
    """
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.data.download import fetch
    from robustspike.bench.errors import ConfigError

    data = registry("datasets").get(dataset)
    if not data.downloads:
        known = [name for name in registry("datasets").names() if registry("datasets").get(name).downloads]
        raise ConfigError(
            f"data set '{dataset}': cannot be fetched by this command; these can: {', '.join(known)}. "
            f"{data.source}"
        )
    shown = 0.0

    def report(name: str, done: int, total: int) -> None:
        nonlocal shown
        finished = bool(total) and done >= total
        pause = 0.2 if sys.stderr.isatty() else 10.0  # a line in place on a terminal, few lines in a log
        if time.monotonic() - shown < pause and not finished:
            return
        shown = time.monotonic()
        of = f" of {total / 1e6:.1f} MB ({100 * done / total:.0f} %)" if total else " MB"
        end = "\r" if sys.stderr.isatty() and not finished else "\n"
        click.echo(f"{name}: {done / 1e6:.1f}{of}{end}", err=True, nl=False)

    found = fetch(data.downloads, folder, mirror=mirror, report=report)
    if not data.present(folder):
        raise ConfigError(f"data set '{dataset}': its files are in {folder}, but cannot be found there.")
    for path in found[:12]:
        click.echo(path)
    if len(found) > 12:
        click.echo(f"... and {len(found) - 12} more")
    click.echo(f"{data.source.split(':')[0]}. Use it: --data {folder}", err=True)
