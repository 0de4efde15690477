"""What readers of published quality sets share: rating tables, and files that mix upper and lower case."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError


class Files:
    """The files below a folder by name, upper or lower case: the published sets mix them.

    Args:
        home: the folder; no name leads out of it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._listed: dict[Path, dict[str, Path]] = {}

    def find(self, *folders: str, name: str) -> Path:
        """Return a file, or where it should be.

        Args:
            folders: from `home` downwards.
            name: what a table calls the file.

        Raises: ArtefactError: the name leads elsewhere.
        """
        place = self.home
        for part in (*folders, name):
            if part in ("", ".", "..") or any(sign in part for sign in "/\\:\0"):
                raise ArtefactError(
                    f"{self.home}: a table names the file '{name[:60]}'. Expected a plain file name."
                )
            place = self._inside(place).get(part.lower(), place / part)
        return place

    def _inside(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listed:
            found = sorted(folder.iterdir()) if folder.is_dir() else []
            self._listed[folder] = {path.name.lower(): path for path in found}
        return self._listed[folder]


def needed(home: Path, *names: str) -> Path:
    """Return the first of some files that is there. Raises: ArtefactError: none is; it names them all."""
    found = next((home / name for name in names if (home / name).is_file()), None)
    if found is None:
        raise ArtefactError(
            f"{home}: no {' or '.join(names)}, which is part of the ratings. Unpack the published set whole."
        )
    return found


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file by the names of its columns."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file, skipinitialspace=True)


def read_sheet(path: Path, columns: Sequence[str], *, instead: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Excel file below the first line that names the columns, on any sheet.

    Args:
        instead: the text file that will do in its place, for the error without openpyxl.

    Raises: ConfigError: openpyxl is not installed. ArtefactError: unreadable, or no such line.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise ConfigError(
            f"{path}: an Excel file is read with openpyxl, which is not installed: pip install "
            f"'robustspike[xlsx]'; or put {instead} in its place."
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = [[list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book.worksheets]
        book.close()
    except Exception as error:  # openpyxl promises no set of errors for a damaged file
        raise ArtefactError(f"{path}: cannot be read as an Excel file ({error}).") from error
    for rows in sheets:
        for place, row in enumerate(rows):
            names = ["" if cell is None else str(cell).strip() for cell in row]
            if set(columns) <= set(names):
                yield from (
                    dict(zip(names, line, strict=False))
                    for line in rows[place + 1 :]
                    if any(cell is not None for cell in line)
                )
                return
    raise ArtefactError(f"{path}: no sheet has the columns {', '.join(columns)}. Use the published table.")


def read_mat(path: Path) -> dict[str, Any]:
    """Return the variables of a MATLAB file. Raises: ArtefactError: unreadable."""
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(path)
    except Exception as error:  # scipy promises no set of errors for a damaged file
        raise ArtefactError(f"{path}: cannot be read as a MATLAB file ({error}).") from error
    return found


def strings(cell: np.ndarray) -> list[str]:
    """Return the strings of a MATLAB cell array, 1xN or Nx1."""
    return [str(np.ravel(item)[0]) for item in np.ravel(cell)]
