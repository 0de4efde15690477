"""robustspike leaderboard DIR..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from robustspike.bench.record.schema import CellRecord
    from robustspike.leaderboard.table import Section

LINES_THAT_FIT = 30
"""Lines up to which a table beneath the main one is printed in the terminal too."""

_SORT = ("worst_case", "clean", "asr", "propagations", "victim", "defense")


@click.command("leaderboard")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR|BUNDLE...")
@click.option(
    "--csv", type=click.Path(path_type=Path), help="Also write this CSV file (and .attacks.csv, .curves.csv)."
)
@click.option("--md", type=click.Path(path_type=Path), help="Also write this Markdown file.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write this page.")
@click.option("--sort", type=click.Choice(_SORT), help="Sort rows by this column instead of by rank.")
def command(
    folders: tuple[Path, ...], csv: Path | None, md: Path | None, html: Path | None, sort: str | None
) -> int:
    """Build the tables of the records in folders and bundles; no model is run.

    Records measured under another protocol are refused, a line a folder; the others make the tables, and
    the exit code is 1.
    """
    records, about, refused = read_folders(folders)
    for line in refused:
        click.echo(line, err=True)
    if records or not refused:
        publish(records, about, csv=csv, md=md, html=html, sort=sort)
    return 1 if refused else 0


def read_folders(folders: Sequence[Path]) -> tuple[list[CellRecord], list[str], list[str]]:
    """Read every record of folders and bundles.

    Returns: the records, the lines that say how they were made, and a line for every folder some of whose
        records were measured under another protocol and left out.

    Raises: ArtefactError: no record is there, or one is damaged.
    """
    from contextlib import nullcontext

    from robustspike.bench.errors import ProtocolError
    from robustspike.bench.record import provenance
    from robustspike.bench.record.bundle import unpacked
    from robustspike.bench.record.schema import read_record
    from robustspike.bench.record.store import record_folders

    records: list[CellRecord] = []
    sessions: list[provenance.Session] = []
    refused: list[str] = []
    for folder in folders:
        reasons: list[str] = []
        try:
            with unpacked(folder) if folder.is_file() else nullcontext(folder) as root:
                for place in record_folders(root):
                    try:
                        records.append(read_record(place))
                    except ProtocolError as error:
                        reasons.append(str(error))
                sessions += provenance.read(root)
        except ProtocolError as error:
            reasons.append(str(error))
        if reasons:
            more = f" (and {len(reasons) - 1} more records of {folder})" if len(reasons) > 1 else ""
            refused.append(f"refused: {reasons[0]}{more}")
    return records, provenance.lines(sessions), refused


def publish(
    records: Sequence[CellRecord],
    about: Sequence[str] = (),
    *,
    csv: Path | None = None,
    md: Path | None = None,
    html: Path | None = None,
    sort: str | None = None,
    title: str = "",
) -> None:
    """Print the tables and write the files asked for; `about` says how the records were made."""
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.files import write_atomic
    from robustspike.leaderboard.quality_matched import sections as matched_sections
    from robustspike.leaderboard.quality_table import sections as quality_sections
    from robustspike.leaderboard.render import details_csv
    from robustspike.leaderboard.render import sort_sections
    from robustspike.leaderboard.render import to_csv
    from robustspike.leaderboard.render import to_html
    from robustspike.leaderboard.render import to_markdown
    from robustspike.leaderboard.table import sections

    built = sections(records) + quality_sections(records) + matched_sections(records)
    if sort:
        built = sort_sections(built, sort)
    left_out = registry("defenses").left_out()
    for path, text in (
        (csv, lambda: to_csv(built)),
        (md, lambda: to_markdown(built, about, left_out)),
        (html, lambda: to_html(built, about, left_out)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text().encode())
    if csv is not None:
        for name, content in details_csv(built).items():
            write_atomic(csv.with_name(f"{csv.stem}.{name}.csv"), content.encode())
    _print(built, title)


def _print(built: Sequence[Section], title: str) -> None:
    import shutil
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from robustspike.leaderboard.render import COLUMNS_THAT_FIT
    from robustspike.leaderboard.render import legend
    from robustspike.leaderboard.render import tables

    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 200
    console = Console(width=width)
    for section in built:
        console.print(Text(section.title, style="bold"))
        console.print(Text(section.protocol, style="dim"))
        shown = tables(section, narrow=True)
        if len(section.frame) > COLUMNS_THAT_FIT and section.kind != "visibility":
            del shown[1]
        for number, (headers, rows) in enumerate(shown):
            if number and len(rows) > LINES_THAT_FIT:
                columns = f"{headers[0]}, {headers[1]}, ..."
                left_out = f"{len(rows)} lines ({columns}): in the Markdown and the page."
                console.print(Text(left_out, style="dim"))
                console.print()
                continue
            table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
            for header in headers:
                left = header in ("victim", "defense", "flags", "strongest attack", "attack alone")
                left |= "under" in header
                table.add_column(Text(header), justify="left" if left else "right", overflow="fold")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            console.print(table)
            console.print()
    if any(flags for section in built for flags in section.frame["flags"]):
        for line in legend(built):
            console.print(Text(line.replace("`", ""), style="dim"))
        console.print()
    if title:
        click.echo(f"suite {title}; worst case over all attacks of a table.", err=True)
