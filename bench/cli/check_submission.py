"""robustspike check-submission BUNDLE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustspike.bench.cli.options import records_options

if TYPE_CHECKING:
    from robustspike.bench.record.schema import CellRecord
    from robustspike.bench.run.verify import Verdict

SHARE = "2%"
LINES = 20
"""Records that are told one by one, of each finding; what is more is counted."""

_PATH = click.Path(path_type=Path)
_MARKS = {"confirmed": "confirmed", "refuted": "**refuted**", "cannot check": "cannot be checked here"}


@dataclass
class _Checked:
    """What was found of a bundle: of each record the verdict, and which of them were run again."""

    verdicts: list[Verdict] = field(default_factory=list)
    again: set[Path] = field(default_factory=set)


@click.command("check-submission")
@click.argument("bundles", nargs=-1, required=True, type=_PATH, metavar="BUNDLE...")
@click.option(
    "--against", multiple=True, type=_PATH, metavar="BUNDLE", help="Records of the board to compare with."
)
@click.option("--share", default=SHARE, show_default=True, metavar="N|P%", help="Records to run again.")
@records_options
@click.option("--note", type=_PATH, help="Keep what was found in this CSV file, for a board.")
@click.option("--out", type=_PATH, help="Write the report to this file instead of printing it.")
def command(
    bundles: tuple[Path, ...],
    against: tuple[Path, ...],
    share: str,
    data: Path | None,
    weights: Path | None,
    plugin: tuple[Path, ...],
    trust: tuple[str, ...],
    note: Path | None,
    out: Path | None,
) -> int:
    """Check bundles that were handed in and report what they would change, as Markdown.

    Names, sizes and digests first; then every stored input is answered afresh; then a share of the records of
    every kind is run again. Which ones follows from a bundle's bytes, so that everybody runs the same. Exit
    code 0: all of it holds; 1: a bundle is damaged, or a record is refuted; 3: some could not be checked.
    """
    from robustspike.bench.errors import ArtefactError
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.files import write_atomic
    from robustspike.bench.run.sampling import parse_share

    if absent := [bundle for bundle in bundles if not bundle.is_file()]:
        raise ConfigError(f"{absent[0]}: no such file. Give a bundle: robustspike submit DIR writes one.")
    part = parse_share(share)
    codes, text = set(), ""
    for bundle in bundles:
        found = _Checked()
        try:
            _check(found, bundle, part, note, data=data, weights=weights, plugin=plugin, trust=trust)
        except ArtefactError as error:
            code, lines = 1, [f"**The bundle cannot be taken.** {error}"]
        else:
            code, lines = _report(found, against)
        codes.add(code)
        text += "\n".join([f"### `{bundle.name}`", "", *lines]) + "\n"
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomic(out, text.encode())
    return 1 if 1 in codes else max(codes)


def _check(
    found: _Checked,
    bundle: Path,
    part: float | int,
    note: Path | None,
    *,
    data: Path | None,
    weights: Path | None,
    plugin: Sequence[Path],
    trust: Sequence[str],
) -> None:
    """Verify the records of a bundle. Raises: ArtefactError: it is damaged."""
    from robustspike.bench.cli.verify import keep
    from robustspike.bench.cli.verify import opened
    from robustspike.bench.files import sha256
    from robustspike.bench.record.store import record_folders
    from robustspike.bench.run.sampling import sample
    from robustspike.bench.run.verify import verify

    seed = int(sha256(bundle.read_bytes())[:15], 16)
    with opened([bundle], data=data, weights=weights, plugin=plugin, trust=trust) as (roots, settings):
        places = record_folders(*roots)
        found.again = {place for members in sample(places, part, seed=seed).values() for place in members}
        for number, place in enumerate(places, start=1):
            again = place in found.again
            click.echo(f"{number}/{len(places)} {place.name[:12]}{', run again' if again else ''}", err=True)
            found.verdicts.append(verify(place, settings, rerun=again))
    if note is not None:
        for again in (False, True):
            keep(note, [v for v in found.verdicts if (v.where in found.again) is again], rerun=again)


def _report(found: _Checked, against: Sequence[Path]) -> tuple[int, list[str]]:
    """Return the exit code and the report."""
    from collections import Counter

    from robustspike.bench.run.verify import Finding

    counts = Counter(verdict.finding for verdict in found.verdicts)
    confirmed, broken = (
        sum(getattr(verdict, name) for verdict in found.verdicts) for name in ("confirmed", "broken")
    )
    told = ", ".join(f"{counts[finding]} {_MARKS[finding]}" for finding in Finding if counts[finding])
    lines = [
        f"{len(found.verdicts)} records: {told}. {confirmed} of {broken} broken samples were answered "
        f"afresh and are broken; {len(found.again)} records were run again.",
        "",
    ]
    for finding in (Finding.REFUTED, Finding.CANNOT):
        lines += _told(finding, [v for v in found.verdicts if v.finding is finding])
    records = [v.record for v in found.verdicts if v.record is not None]
    if counts[Finding.REFUTED]:
        lines += ["No table is shown: what is refuted must be mended first.", ""]
    else:
        lines += _changes(records, against)
    return 1 if counts[Finding.REFUTED] else 3 if counts[Finding.CANNOT] else 0, lines


def _told(finding: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Return a list of records with what was found of each."""
    lines = []
    for verdict in verdicts[:LINES]:
        record = verdict.record
        name = f"{record.victim} + {record.defense}, {record.label}, {record.threat.label}" if record else ""
        why = "; ".join(verdict.problems or verdict.missing)
        lines.append(f"- {_MARKS[finding]}: `{verdict.where.name[:12]}` {name}: {why}")
    if len(verdicts) > LINES:
        lines.append(f"- and {len(verdicts) - LINES} more: `robustspike verify` lists them all")
    return [*lines, ""] if lines else []


def _changes(records: Sequence[CellRecord], against: Sequence[Path]) -> list[str]:
    """Return the tables that the board would have, and how they differ from those that it has."""
    from robustspike.bench.cli.leaderboard import read_folders
    from robustspike.leaderboard.compare import compare
    from robustspike.leaderboard.compare import table
    from robustspike.leaderboard.sections import build
    from robustspike.leaderboard.write.markdown import legend
    from robustspike.leaderboard.write.markdown import table_text

    known, _, refused = read_folders(against)
    lines = [f"- {line}" for line in refused]
    pairs, _, new = compare(known, [*known, *records])
    changed = [pair for pair in pairs if pair.changed]
    if changed:
        lines += [
            "Rows of the board that it changes (A: now, B: with it):",
            "",
            table_text(table(changed)),
            "",
        ]
    if known:
        names = new[:LINES] + ([f"and {len(new) - LINES} more"] if len(new) > LINES else [])
        lines += [*(["Rows that are new:", "", *(f"- {name}" for name in names), ""] if new else [])]
        if not changed and not new:
            lines += ["It changes no row of the board.", ""]
    built = build(records)
    for section in built:
        lines += [f"<details><summary>{section.title}</summary>", "", table_text(section.tables()[0]), ""]
        lines += ["</details>", ""]
    return [*lines, *(f"- {line}" for line in legend(built))]
