"""Editions of a board: listed, made, and built again."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.files import write_atomic
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.board import Board
from robustspike.leaderboard.board import Edition
from robustspike.leaderboard.board import encode_edition
from robustspike.leaderboard.board import file_digests
from robustspike.leaderboard.board import read_board
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write.json import rows_digest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


def tell(board: Board) -> int:
    """Print the editions of a board, the oldest first."""
    for edition in board.editions:
        bundles = ", ".join(edition.bundles)
        click.echo(f"{edition.name}  {edition.date}  {edition.rows} rows  {edition.digest[:12]}  {bundles}")
    if not board.editions:
        click.echo(
            "no edition was made yet: robustspike leaderboard BUNDLE... --board DIR --cut NAME", err=True
        )
    return 0


def choose(edition: Edition, given: Sequence[Path], kept: Path) -> tuple[tuple[Path, ...], Board]:
    """Return the bundles of an edition among those given, and the board as it was then.

    Raises: ConfigError: one of its bundles was not given. ArtefactError: a file of the board changed.
    """
    known = {sha256(path.read_bytes()): path for path in given if path.is_file()}
    for name, digest in edition.bundles.items():
        if digest not in known:
            raise ConfigError(
                f"--edition {edition.name}: needs the bundle {name} (sha256 {digest[:12]}), which is none of "
                "those given. Give it too; the version of the repository that made the edition has it."
            )
    left = [str(path) for digest, path in known.items() if digest not in edition.bundles.values()]
    left += [str(path) for path in given if not path.is_file()]
    if left:
        click.echo(f"not part of edition {edition.name}: {', '.join(left)}", err=True)
    return tuple(known[digest] for digest in edition.bundles.values()), read_board(kept, edition.files)


def cut_edition(
    name: str, given: Sequence[Path], kept: Path, board: Board, records: Sequence[CellRecord]
) -> Edition:
    """Write what makes the tables of some bundles into the board's folder, under a name.

    Raises: ConfigError: the name is taken or unusable, or a folder was given, which no digest can name.
    """
    if not _NAME.fullmatch(name) or any(edition.name == name for edition in board.editions):
        raise ConfigError(
            f"--cut {name}: expected a name such as 2026.2 (letters, digits, '.', '_', '-') that no edition "
            f"has yet; editions: {', '.join(edition.name for edition in board.editions) or 'none'}."
        )
    if loose := [str(path) for path in given if not path.is_file()]:
        raise ConfigError(
            f"--cut {name}: {loose[0]} is a folder. An edition is made of bundles: "
            f"robustspike submit {loose[0]}."
        )
    built = build(records, board)
    edition = Edition(
        name=name,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        bundles={path.name: sha256(path.read_bytes()) for path in given},
        files=file_digests(kept),
        rows=sum(len(section.frame) for section in built),
        digest=rows_digest(built),
        version=version("robustspike"),
    )
    if len(edition.bundles) < len(given):
        raise ConfigError(f"--cut {name}: two of the bundles have one name. Rename one.")
    path = kept / "editions" / f"{name}.toml"
    write_atomic(path, encode_edition(edition))
    click.echo(f"edition {name}: {path}", err=True)
    return edition
