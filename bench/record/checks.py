"""What a check of records found, kept as a file: why a board may call a row verified.

One CSV line a record: its key, a digest of what was checked, the finding, how and when. The digest
binds a line to the bytes that were looked at: a record that was written anew is unchecked again.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from robustspike.bench.contract.decode import decode
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import write_atomic
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import digest
from robustspike.bench.record.types import Line

MAX_BYTES = 64 << 20


class Found(StrEnum):
    """What a check may find that a board needs to know."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"


class How(StrEnum):
    """How a record was checked."""

    RERUN = "rerun"
    INPUTS = "inputs"


@dataclass(frozen=True)
class Check:
    """One record, checked.

    Args:
        key: of the record.
        stored: `stored_digest` of it.
        found: whether it holds.
        how: the attack was run again to the same verdicts, or the stored inputs were answered afresh.
        date: the day, ISO 8601.
        version: of the package that checked it.
    """

    key: Line
    stored: Line
    found: Found
    how: How
    date: Line
    version: Line


def stored_digest(record: CellRecord) -> str:
    """Return the digest of what a check looks at: the key, the verdicts and the inputs of a record."""
    return digest([record.key, *(record.digests.get(name, "") for name in ("samples", "adversarials"))])


def read_checks(path: Path) -> list[Check]:
    """Read a file of checks. Raises: ArtefactError: naming the line at fault."""
    names = [field.name for field in dataclasses.fields(Check)]
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path}: a link, or more than {MAX_BYTES} bytes. It is no file of checks.")
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtefactError(f"{path}: no readable file of checks ({error}).") from error
    if not lines or lines[0] != names:
        raise ArtefactError(f"{path}: line 1 must name the columns {','.join(names)}.")
    found: list[Check] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            found.append(decode(dict(zip(names, line, strict=True)), Check, ""))
        except (ValueError, ConfigError) as error:
            raise ArtefactError(f"{path}: line {number} is not a check ({error}).") from error
    return found


def write_checks(path: Path, checks: Iterable[Check]) -> None:
    """Write checks, ordered by key, into a file; those of the same records that it holds are replaced."""
    known = {check.key: check for check in read_checks(path)} if path.exists() else {}
    known |= {check.key: check for check in checks}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Check))
    writer.writerows(dataclasses.astuple(known[key]) for key in sorted(known))
    write_atomic(path, out.getvalue().encode())


def best(checks: Iterable[Check]) -> Mapping[str, Check]:
    """Return the check that counts of each record, by stored digest: a refutation, else the deepest."""
    weight = {(Found.CONFIRMED, How.INPUTS): 0, (Found.CONFIRMED, How.RERUN): 1}
    found: dict[str, Check] = {}
    for check in checks:
        known = found.get(check.stored)
        if known is None or weight.get((known.found, known.how), 2) < weight.get((check.found, check.how), 2):
            found[check.stored] = check
    return found
