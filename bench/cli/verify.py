"""robustspike verify DIR|BUNDLE..."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import click

from robustspike.bench.cli.options import records_options

if TYPE_CHECKING:
    from robustspike.bench.run.compute import Settings
    from robustspike.bench.run.verify import Verdict

_PATH = click.Path(path_type=Path)


@click.command("verify")
@click.argument("given", nargs=-1, required=True, type=_PATH, metavar="DIR|BUNDLE...")
@click.option("--rerun", is_flag=True, help="Also run every attack again and compare all samples.")
@click.option("--only", "keys", multiple=True, metavar="KEY", help="Verify only records whose key starts so.")
@click.option("--sample", "share", metavar="N|P%", help="Verify a share, or about N, drawn from every kind.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which records --sample draws.")
@records_options
@click.option("--note", type=_PATH, help="Keep what was found in this CSV file, for a board.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    given: tuple[Path, ...],
    rerun: bool,
    keys: tuple[str, ...],
    share: str | None,
    seed: int,
    data: Path | None,
    weights: Path | None,
    plugin: tuple[Path, ...],
    trust: tuple[str, ...],
    note: Path | None,
    as_json: bool,
) -> int:
    """Judge the stored adversarial inputs afresh and say which records hold.

    A folder that holds bundles and no records stands for all of its bundles.
    Each is confirmed, refuted, or cannot be checked here, with what is missing. Exit code 0: all are
    confirmed; 1: one or more are refuted; 3: none is refuted, but some could not be checked.
    """
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.store import record_folders
    from robustspike.bench.run.sampling import parse_share
    from robustspike.bench.run.sampling import sample
    from robustspike.bench.run.verify import Finding
    from robustspike.bench.run.verify import verify

    part = None if share is None else parse_share(share)
    verdicts = []
    with opened(given, data=data, weights=weights, plugin=plugin, trust=trust) as (roots, settings):
        known = record_folders(*roots)
        places = [p for p in known if not keys or p.name.startswith(keys)]
        if not places:
            raise ConfigError(f"--only {keys[0]}: no record's key starts so.")
        if part is not None:
            drawn = sample(places, part, seed=seed)
            chosen = {place for members in drawn.values() for place in members}
            kinds = ", ".join(f"{len(members)} {kind}" for kind, members in drawn.items())
            click.echo(f"sample, seed {seed}: {len(chosen)} of {len(places)} records: {kinds}", err=True)
            places = [place for place in places if place in chosen]
        for place in places:
            verdicts.append(verify(place, settings, rerun=rerun))
            if not as_json:
                _print(verdicts[-1])
    if note is not None:
        keep(note, verdicts, rerun=rerun)
    counts = Counter(verdict.finding for verdict in verdicts)
    if as_json:
        click.echo(json.dumps([_row(verdict) for verdict in verdicts], indent=1))
    else:
        how = "attacks run again" if rerun else "stored inputs judged afresh; robust samples need --rerun"
        parts = [f"{counts[finding]} {finding}" for finding in Finding if counts[finding]]
        click.echo(f"{len(verdicts)} records: {', '.join(parts)} ({how}).")
    return 1 if counts[Finding.REFUTED] else 3 if counts[Finding.CANNOT] else 0


@contextmanager
def opened(
    given: Sequence[Path],
    *,
    data: Path | None = None,
    weights: Path | None = None,
    plugin: Sequence[Path] = (),
    trust: Sequence[str] = (),
) -> Iterator[tuple[list[Path], Settings]]:
    """Open folders and bundles of records for the length of the block, with what their records need loaded.

    Returns: the folders, and the settings to check their records with.

    Raises: ConfigError: it is not there, or a digest that no enclosed file has. ArtefactError: no bundle.
    """
    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.bundle import sources
    from robustspike.bench.record.bundle import unpacked_all
    from robustspike.bench.run.compute import Settings
    from robustspike.bench.run.run import prepare

    if absent := [path for path in given if not path.exists()]:
        raise ConfigError(f"{absent[0]}: no such folder or bundle.")
    with unpacked_all(given) as roots:
        settings = Settings(
            out=given[0],
            weights=existing_folder(weights, "--weights"),
            root=existing_folder(data, "--data"),
            plugins=(*plugin, *_trusted(dict(zip(sources(given), roots, strict=True)), plugin, trust)),
        )
        prepare(settings)
        yield roots, settings


def keep(path: Path, verdicts: Sequence[Verdict], *, rerun: bool) -> None:
    """Write what was found of records into a file of checks; what could not be checked is left out."""
    import datetime
    from importlib.metadata import version

    from robustspike.bench.record.checks import Check
    from robustspike.bench.record.checks import Found
    from robustspike.bench.record.checks import How
    from robustspike.bench.record.checks import stored_digest
    from robustspike.bench.record.checks import write_checks

    day, package = datetime.datetime.now(datetime.UTC).date().isoformat(), version("robustspike")
    found = {"confirmed": Found.CONFIRMED, "refuted": Found.REFUTED}
    write_checks(
        path,
        [
            Check(
                key=verdict.record.key,
                stored=stored_digest(verdict.record),
                found=found[verdict.finding],
                how=How.RERUN if rerun else How.INPUTS,
                date=day,
                version=package,
            )
            for verdict in verdicts
            if verdict.record is not None and verdict.finding in found
        ],
    )


def _trusted(roots: Mapping[Path, Path], given: Sequence[Path], trust: Sequence[str]) -> list[Path]:
    """Return the enclosed plugin files that may be run, and say which others there are.

    Args:
        roots: the opened folder of every source.
        given: plugin files that were given.
        trust: the first digits of the sha256 of those that may be run.

    Raises: ConfigError: a digest that no enclosed file has.
    """
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.files import sha256
    from robustspike.bench.record.enclosures import enclosed_plugins

    enclosed, source_of = {}, {}
    for source, root in roots.items():
        for digest, path in enclosed_plugins(root).items():
            enclosed[digest], source_of[digest] = path, source
    for digest in trust:
        if len(digest) < 8 or not any(known.startswith(digest) for known in enclosed):
            names = ", ".join(f"{known[:12]} ({path.name})" for known, path in enclosed.items())
            raise ConfigError(
                f"--trust {digest}: expected the first 8 or more digits of the sha256 of an enclosed plugin "
                f"file; {', '.join(map(str, roots))} encloses: {names or 'none'}."
            )
    known_here = {sha256(path.read_bytes()) for path in given if path.is_file()}
    found = []
    for digest, path in enclosed.items():
        if digest in known_here:
            continue
        if any(digest.startswith(start) for start in trust):
            found.append(path)
            continue
        source, lines = source_of[digest], path.read_bytes().count(b"\n")
        where = path if source.is_dir() else f"python -m zipfile -e {source} FOLDER"
        click.echo(
            f"encloses the plugin file {path.name} ({lines} lines, sha256 {digest[:12]}), which was not run. "
            f"Read it first ({where}), then: robustspike verify {source} --trust {digest[:12]}",
            err=True,
        )
    return found


def _row(verdict: Verdict) -> dict[str, Any]:
    record = verdict.record
    return {
        "key": verdict.where.name,
        "verdict": str(verdict.finding),
        "victim": record.victim if record else "",
        "defense": record.defense if record else "",
        "attack": record.label if record else "",
        "threat": record.threat.label if record else "",
        "confirmed": verdict.confirmed,
        "broken": verdict.broken,
        "problems": list(verdict.problems),
        "missing": list(verdict.missing),
        "notes": list(verdict.notes),
    }


def _print(verdict: Verdict) -> None:
    row = _row(verdict)
    name = f"{row['victim']} + {row['defense']}, {row['attack']}, {row['threat']}"
    count = f"{verdict.confirmed} of {verdict.broken} broken samples confirmed"
    click.echo(f"{verdict.finding!s:<12}  {row['key'][:12]}  {name}: {count}")
    for mark, lines in (("refuted: ", verdict.problems), ("missing: ", verdict.missing), ("", verdict.notes)):
        for line in lines:
            click.echo(f"{'':14}{mark}{line}")
