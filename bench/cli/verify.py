"""robustspike verify DIR|BUNDLE."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("verify")
@click.argument("source", type=click.Path(path_type=Path), metavar="DIR|BUNDLE")
@click.option("--rerun", is_flag=True, help="Also run every attack again and compare all samples.")
@click.option("--only", "keys", multiple=True, metavar="KEY", help="Verify only records whose key starts so.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of published data sets.")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of weights from robustspike train.")
@click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Python file with a plugin.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    source: Path,
    rerun: bool,
    keys: tuple[str, ...],
    data: Path | None,
    weights: Path | None,
    plugin: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Answer the stored adversarial inputs afresh and say which records hold.

    Exit code 1 if any does not.
    """
    from contextlib import nullcontext

    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.bundle import unpacked
    from robustspike.bench.record.store import record_folders
    from robustspike.bench.run.compute import Settings
    from robustspike.bench.run.run import prepare
    from robustspike.bench.run.verify import verify

    if not source.exists():
        raise ConfigError(f"{source}: no such folder or bundle.")
    settings = Settings(
        out=source,
        weights=existing_folder(weights, "--weights"),
        root=existing_folder(data, "--data"),
        plugins=tuple(plugin),
    )
    prepare(settings)
    rows = []
    with unpacked(source) if source.is_file() else nullcontext(source) as root:
        places = [p for p in record_folders(root) if not keys or p.name.startswith(keys)]
        if not places:
            raise ConfigError(f"--only {keys[0]}: no record's key starts so.")
        for place in places:
            verdict = verify(place, settings, rerun=rerun)
            record = verdict.record
            rows.append(
                {
                    "key": place.name,
                    "holds": not verdict.problems,
                    "victim": record.victim if record else "",
                    "defense": record.defense if record else "",
                    "attack": record.label if record else "",
                    "threat": record.threat.label if record else "",
                    "confirmed": verdict.confirmed,
                    "broken": verdict.broken,
                    "problems": list(verdict.problems),
                }
            )
            if not as_json:
                _line(rows[-1])
    failed = [row for row in rows if not row["holds"]]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        how = "attacks run again" if rerun else "stored inputs answered afresh"
        click.echo(f"{len(rows) - len(failed)} of {len(rows)} records hold ({how}).")
    return 1 if failed else 0


def _line(row: dict[str, object]) -> None:
    name = f"{row['victim']} + {row['defense']}, {row['attack']}, {row['threat']}"
    state = "holds" if row["holds"] else "FAILS"
    click.echo(f"{state}  {str(row['key'])[:12]}  {name}: {row['confirmed']} of {row['broken']} confirmed")
    problems = row["problems"]
    assert isinstance(problems, list)
    for problem in problems:
        click.echo(f"       {problem}")
