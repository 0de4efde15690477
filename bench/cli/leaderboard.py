"""robustspike leaderboard DIR..."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import click

if TYPE_CHECKING:
    from robustspike.bench.errors import ProtocolError
    from robustspike.bench.record.provenance import Session
    from robustspike.bench.record.schema import CellRecord
    from robustspike.leaderboard.board import Board
    from robustspike.leaderboard.board import Edition
    from robustspike.leaderboard.sections import Section
    from robustspike.leaderboard.text import Table
    from robustspike.leaderboard.write.cards import Components

LINES_THAT_FIT = 30
"""Lines up to which a table beneath the main one is printed in the terminal too."""

_PATH = click.Path(path_type=Path)


@click.command("leaderboard")
@click.argument("folders", nargs=-1, type=_PATH, metavar="DIR|BUNDLE...")
@click.option("--only", multiple=True, metavar="KEY=GLOB", help="Records to keep; one key twice: either.")
@click.option("--sort", metavar="COLUMN[:desc]", help="Sort rows by this column instead of by rank.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the whole leaderboard as JSON instead of tables."
)
@click.option("--wide", is_flag=True, help="Print every column and table, whatever the terminal's width.")
@click.option("--board", "kept", type=_PATH, help="The board's folder: checks, disputes, editions.")
@click.option("--edition", metavar="NAME", help="The tables of an edition of --board, from its bundles.")
@click.option("--cut", metavar="NAME", help="Keep these bundles and the board's notes as an edition.")
@click.option("--editions", "listed", is_flag=True, help="List the editions of --board, and nothing else.")
@click.option("--out", type=_PATH, help="Write leaderboard.json, .md, .html, rows.csv, cells.csv there.")
@click.option("--csv", type=_PATH, help="Write one wide CSV: a row a table row, a column an attack.")
@click.option("--md", type=_PATH, help="Write this Markdown file.")
@click.option("--html", type=_PATH, help="Write this page, and beside it those that it links to.")
def command(
    folders: tuple[Path, ...],
    only: tuple[str, ...],
    sort: str | None,
    as_json: bool,
    wide: bool,
    kept: Path | None,
    edition: str | None,
    cut: str | None,
    listed: bool,
    out: Path | None,
    csv: Path | None,
    md: Path | None,
    html: Path | None,
) -> int:
    """Build the tables of the records in folders, bundles and folders of bundles; no model is run.

    --only filters by victim, defense, attack, dataset, threat or weights, e.g. --only 'victim=lif_*'; a
    worst case is then over the attacks that are left. --sort takes any column of rows.csv or "acc:ATTACK".
    Records measured under another protocol are refused, a line a folder; the others make the tables, and
    the exit code is 1.

    --board adds what its maintainers keep on file: the status of every row, disputes and withdrawals. An
    edition is made with --cut NAME from bundles, and built again with --edition NAME from the same ones.
    """
    from robustspike.bench.cli.editions import choose
    from robustspike.bench.cli.editions import cut_edition
    from robustspike.bench.cli.editions import tell
    from robustspike.bench.cli.options import parse_only
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.bundle import sources
    from robustspike.leaderboard.board import NO_BOARD
    from robustspike.leaderboard.board import read_board
    from robustspike.leaderboard.filters import chosen

    if kept is None and (edition or cut or listed):
        raise ConfigError("--edition, --cut and --editions: of which board? Add --board DIR.")
    if (edition or cut) and (only or (edition and cut)):
        raise ConfigError("an edition is a whole board: give --edition or --cut, and neither with --only.")
    board = NO_BOARD if kept is None else read_board(kept)
    if listed:
        return tell(board)
    if not folders:
        raise ConfigError(
            "no folder of records and no bundle was given: robustspike leaderboard DIR|BUNDLE..."
        )
    folders = tuple(sources(folders))
    chosen_edition = None
    if kept is not None and edition is not None:
        chosen_edition = board.edition(edition)
        folders, board = choose(chosen_edition, folders, kept)
    records, about, refused = read_folders(folders)
    for line in refused:
        click.echo(line, err=True)
    if kept is not None and cut is not None:
        if refused:
            raise ConfigError(f"--cut {cut}: an edition cannot hold records that are refused.")
        chosen_edition = cut_edition(cut, folders, kept, board, records)
        board = read_board(kept)
    records = chosen(records, parse_only(only))
    if records or not refused:
        publish(
            records,
            about,
            csv=csv,
            md=md,
            html=html,
            out=out,
            sort=sort,
            only=only,
            as_json=as_json,
            wide=wide,
            board=board,
            edition=chosen_edition,
            folders=folders,
        )
    return 1 if refused else 0


def read_folders(folders: Sequence[Path]) -> tuple[list[CellRecord], list[str], list[str]]:
    """Read every record of folders, bundles and folders of bundles.

    Returns: the records, the lines that say how they were made, and a line for every folder some of whose
        records were measured under another protocol and left out.

    Raises: ArtefactError: no record is there, or one is damaged.
    """
    from robustspike.bench.errors import ProtocolError
    from robustspike.bench.record import provenance
    from robustspike.bench.record.bundle import parts_missing
    from robustspike.bench.record.bundle import sources

    found = sources(folders)
    records: list[CellRecord] = []
    sessions: list[provenance.Session] = []
    refused: list[str] = []
    for folder in found:
        reasons: list[str] = []
        try:
            for record in _of_bundle(folder, sessions) if folder.is_file() else _of_folder(folder, sessions):
                if isinstance(record, ProtocolError):
                    reasons.append(str(record))
                else:
                    records.append(record)
        except ProtocolError as error:
            reasons.append(str(error))
        if reasons:
            more = f" (and {len(reasons) - 1} more records of {folder})" if len(reasons) > 1 else ""
            refused.append(f"refused: {reasons[0]}{more}")
    if not refused:
        for line in parts_missing(folder for folder in found if folder.is_file()):
            click.echo(line, err=True)
    return records, provenance.lines(sessions), refused


def _of_folder(folder: Path, sessions: list[Session]) -> Iterator[CellRecord | ProtocolError]:
    from robustspike.bench.errors import ProtocolError
    from robustspike.bench.record import provenance
    from robustspike.bench.record.index import Index
    from robustspike.bench.record.store import record_folders

    places = record_folders(folder)
    with Index(folder, len(places)) as index:
        for place in places:
            try:
                yield index.read(place)
            except ProtocolError as error:
                yield error
    if index.problem:
        click.echo(index.problem, err=True)
    sessions += provenance.read(folder)


def _of_bundle(bundle: Path, sessions: list[Session]) -> Iterator[CellRecord | ProtocolError]:
    from robustspike.bench.record import provenance
    from robustspike.bench.record.bundle import count_records
    from robustspike.bench.record.index import Index

    with Index(bundle, count_records(bundle)) as index:
        yield from index.read_bundle(
            lambda data: sessions.extend(provenance.parse(data, bundle / provenance.NAME))
        )
    if index.problem:
        click.echo(index.problem, err=True)


def publish(
    records: Sequence[CellRecord],
    about: Sequence[str] = (),
    *,
    csv: Path | None = None,
    md: Path | None = None,
    html: Path | None = None,
    out: Path | None = None,
    sort: str | None = None,
    only: Sequence[str] = (),
    as_json: bool = False,
    wide: bool = False,
    title: str = "",
    board: Board | None = None,
    edition: Edition | None = None,
    folders: Sequence[Path] = (),
) -> None:
    """Print the tables and write the files asked for.

    Args:
        records: finished cells.
        about: how the records were made, a line each.
        csv, md, html: files for the wide CSV, the Markdown and the page.
        out: folder for all files but the wide CSV.
        sort: "COLUMN" or "COLUMN:desc" to sort rows by.
        only: filters that the records passed, to be told.
        as_json: print JSON instead of tables.
        wide: print every column and table.
        title: the suite, for a closing line.
        board: what the board says of the records; None for no board.
        edition: the edition that the tables are.
        folders: folders and bundles whose enclosed inputs the page shows.
    """
    from functools import partial

    from robustspike.bench.contract.registry import registry
    from robustspike.bench.files import write_atomic
    from robustspike.leaderboard.board import NO_BOARD
    from robustspike.leaderboard.filters import sort_sections
    from robustspike.leaderboard.sections import build
    from robustspike.leaderboard.write.csv import tidy_csv
    from robustspike.leaderboard.write.csv import wide_csv
    from robustspike.leaderboard.write.json import document
    from robustspike.leaderboard.write.json import edition_entry
    from robustspike.leaderboard.write.json import json_pieces
    from robustspike.leaderboard.write.json import to_json
    from robustspike.leaderboard.write.markdown import to_markdown
    from robustspike.leaderboard.write.page import READING
    from robustspike.leaderboard.write.page import to_pages
    from robustspike.leaderboard.write.page import to_reading
    from robustspike.leaderboard.write.thumbnails import enclosed

    board = board or NO_BOARD
    built = build(records, board)
    made = None if edition is None else edition_entry(edition, built)
    if edition and made and not made["reproduced"]:
        click.echo(
            f"edition {edition.name}: this version builds other tables from its records than robustspike "
            f"{edition.version} did; cite what that version prints.",
            err=True,
        )
    if sort:
        built = sort_sections(built, sort)
    left_out = registry("defenses").left_out()
    cited = [] if edition is None else [f"edition {edition.name} of {edition.date}, sha256 {edition.digest}"]
    told = [
        *about,
        *cited,
        *(f"--only {value}: worst cases are over what passes this filter" for value in only),
    ]

    def whole() -> dict[str, Any]:
        return document(built, records, about, only, board=board, edition=made)

    wanted: list[tuple[Path | None, Callable[[], str | Iterator[str]]]]
    wanted = [(csv, lambda: wide_csv(built)), (md, lambda: to_markdown(built, told, left_out))]
    pages = [html] if html is not None else []
    if out is not None:
        pages.append(out / "leaderboard.html")
        wanted += [
            (out / "leaderboard.json", lambda: json_pieces(whole())),
            (out / "leaderboard.md", lambda: to_markdown(built, told, left_out)),
            *((out / f"{n}.csv", lambda t=t: t) for n, t in tidy_csv(built, records).items()),
        ]
    if pages:
        pictures = enclosed(folders, {record.key for record in records})
    for page in pages:
        drawn = to_pages(page.name, built, told, _components(records), pictures)
        wanted += [(page.with_name(name), partial(str, text)) for name, text in drawn.items()]
        wanted.append((page.with_name(READING), lambda: to_reading(built, told, left_out)))
    for path, text in wanted:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = text()
            write_atomic(path, written.encode() if isinstance(written, str) else map(str.encode, written))
    if as_json:
        click.echo(to_json(whole()), nl=False)
    else:
        _print(built, title, wide=wide)


def _components(records: Sequence[CellRecord]) -> Components:
    """Return what the registry says of the attacks, defenses and victims of records; of others nothing."""
    from robustspike.bench.cli.catalogue import description
    from robustspike.bench.cli.catalogue import row
    from robustspike.bench.contract.registry import registry
    from robustspike.leaderboard.write.cards import Component
    from robustspike.leaderboard.write.cards import base

    named = {("attacks", base(r.attack)) for r in records} | {("certifiers", base(r.attack)) for r in records}
    named |= {("defenses", base(r.defense)) for r in records} | {("victims", base(r.victim)) for r in records}
    found = {}
    for kind, name in sorted(named):
        if name in registry(kind).names():
            said = row(kind, name)
            steps = said.get("T")
            found[kind, name] = Component(
                said.get("about", ""),
                str(description(kind, name).get("source", "")),
                said.get("family", ""),
                steps if isinstance(steps, int) else None,
            )
    return found


def _print(built: Sequence[Section], title: str, *, wide: bool) -> None:
    from robustspike.leaderboard.write.markdown import legend
    from robustspike.leaderboard.write.terminal import fits
    from robustspike.leaderboard.write.terminal import lines

    width = None if wide else terminal_width()
    for section in built:
        click.secho(section.title, bold=True)
        click.secho(section.protocol, dim=True)
        for number, table in enumerate(section.tables(narrow=not wide)):
            if number and not wide and (len(table.rows) > LINES_THAT_FIT or not fits(table, width)):
                click.secho(_left_out(table), dim=True)
                click.echo()
                continue
            text = lines(table, width)
            click.secho("\n".join(text.head), bold=True)
            click.echo("\n".join([*text.rows, ""]))
            if text.dropped:
                click.secho(f"not shown: {', '.join(text.dropped)} (--wide)\n", dim=True)
    if any(flags for section in built for flags in section.frame["flags"]):
        for line in legend(built):
            click.secho(line.replace("`", ""), dim=True)
        click.echo()
    if title:
        click.echo(f"suite {title}; worst case over all attacks of a table.", err=True)


def terminal_width() -> int:
    """Return how many characters a line may have: COLUMNS, else the terminal's width, else 200."""
    import shutil
    import sys

    return shutil.get_terminal_size((100 if sys.stdout.isatty() else 200, 24)).columns


def _left_out(table: Table) -> str:
    named = ", ".join(table.headers[:2])
    return f"{len(table.rows)} lines ({named}, ...): with --wide, in the Markdown and the page."
