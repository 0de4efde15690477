"""robustspike rescore INPUTS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustspike.bench.cli.options import records_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robustspike.bench.record.schema import CellRecord
    from robustspike.bench.run.rescore import Inputs
    from robustspike.bench.run.rescore import Row

_PATH = click.Path(path_type=Path)


@click.command("rescore")
@click.argument("inputs", type=_PATH, metavar="INPUTS.safetensors")
@click.option("--victim", required=True, help="The victim that they fool, as tables name it.")
@click.option("--defense", default="none", show_default=True)
@click.option("--records", type=_PATH, required=True, metavar="DIR|BUNDLE", help="The board's records.")
@click.option(
    "--threat", metavar="LABEL", help="Threat model, e.g. 'linf 1/10'; default: all that allow them."
)
@click.option("--by", required=True, help="Your name: the row credits it.")
@click.option("--source", default="", help="Where the inputs are described: a paper, a page.")
@click.option("--out", type=_PATH, default=Path("rescored"), show_default=True, help="Folder of the record.")
@records_options
def command(
    inputs: Path,
    victim: str,
    defense: str,
    records: Path,
    threat: str | None,
    by: str,
    source: str,
    out: Path,
    data: Path | None,
    weights: Path | None,
    plugin: tuple[Path, ...],
    trust: tuple[str, ...],
) -> int:
    """Judge adversarial inputs alone, however they were found, on the rows of a victim.

    INPUTS holds "rows" (sample ids) and "x" (the inputs, one a sample; docs/submit.md). They must be legal
    under the row's threat model; each is answered afresh. Where they break what stood, a record is
    written to --out: with it, `robustspike leaderboard` lowers the worst case and credits --by. Exit
    code 1: they are legal, and nothing that stood falls.
    """
    import dataclasses

    from robustspike.bench.cli.verify import opened
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.record.enclosures import enclosed_weights
    from robustspike.bench.record.schema import read_record
    from robustspike.bench.record.store import record_folders
    from robustspike.bench.run.rescore import keep
    from robustspike.bench.run.rescore import load_row
    from robustspike.bench.run.rescore import read_inputs
    from robustspike.bench.run.rescore import rescore

    if not by.strip() or not by.isprintable() or not source.isprintable() or len(by + source) > 400:
        raise ConfigError("--by, --source: expected a name, and at most a line on where they are described.")
    lowered = False
    with opened([records], data=data, weights=weights, plugin=plugin, trust=trust) as (roots, settings):
        known = [read_record(place) for place in record_folders(*roots)]
        tables = _tables(known, victim, defense, threat)
        first = tables[0][0]
        kept = enclosed_weights(*roots, digest=first.digests["weights"])
        settings = dataclasses.replace(settings, out=out, weights=kept or settings.weights)
        rows = [load_row(members[0], settings) for members in tables]
        most = max(rows, key=lambda row: len(row.data))
        handed_in = read_inputs(inputs, most.victim.spec, most.data)
        for row, members in _that_allow(handed_in, rows, tables, inputs):
            own = handed_in.of(row.data)
            found = rescore(row, own, settings, by=by, source=source)
            if _lowers(found.record, members, len(own.ids)):
                keep(found, row, settings)
                lowered = True
    if not lowered:
        click.echo("nothing that stood falls: no row is lowered.", err=True)
        return 1
    click.echo(f"the record is in {out}; see it: robustspike leaderboard {records} {out}", err=True)
    click.echo(f"hand it in: robustspike submit {out}", err=True)
    return 0


def _tables(
    records: Sequence[CellRecord], victim: str, defense: str, threat: str | None
) -> list[list[CellRecord]]:
    """Return the records of a victim and defense, table by table, tight budgets first.

    Raises: ConfigError: there are none, or of several networks of the name.
    """
    from robustspike.bench.contract.specs import Task
    from robustspike.bench.contract.suggest import did_you_mean
    from robustspike.bench.errors import ConfigError
    from robustspike.leaderboard import protocol
    from robustspike.leaderboard.sections.accuracy import is_unbounded

    if not any(record.victim == victim for record in records):
        hint = did_you_mean(victim, {record.victim for record in records})
        raise ConfigError(f"--victim {victim}: no record is of it.{hint}")
    mine = [r for r in records if r.victim == victim and r.defense == defense and r.task is not Task.CERTIFY]
    if not mine:
        known = sorted({record.defense for record in records if record.victim == victim})
        raise ConfigError(f"--defense {defense}: {victim} has rows with {', '.join(known)} only.")
    mine.sort(key=lambda r: (r.threat.geometry, r.threat.eps or 0))
    labels = {r.threat.label: None for r in mine if not is_unbounded(r)}
    if threat is not None and threat not in labels:
        raise ConfigError(f"--threat {threat}: {victim} + {defense} has rows under {', '.join(labels)} only.")
    weights = sorted({record.digests["weights"] for record in mine})
    if len(weights) > 1:
        raise ConfigError(
            f"{victim} + {defense}: the records are of {len(weights)} networks of this name ("
            f"{', '.join(digest[:8] for digest in weights)}). Give the records of one."
        )
    apart = protocol.competing(records)
    found: dict[tuple[str, ...], list[CellRecord]] = {}
    for record in mine:
        if record.threat.label in ([threat] if threat else labels):
            found.setdefault(protocol.rules(record, apart), []).append(record)
    return sorted(found.values(), key=_size)


def _size(members: Sequence[CellRecord]) -> float:
    eps = members[0].threat.eps
    return float("inf") if eps is None else float(eps)


def _that_allow(
    inputs: Inputs, rows: Sequence[Row], tables: Sequence[list[CellRecord]], path: Path
) -> list[tuple[Row, list[CellRecord]]]:
    """Return the tables whose threat model allows all inputs. Raises: ArtefactError: none does; says why."""
    from robustspike.bench.errors import ArtefactError
    from robustspike.bench.run.rescore import illegal

    found, reasons = [], {}
    for row, members in zip(rows, tables, strict=True):
        threat, own = members[0].threat, inputs.of(row.data)
        reason = illegal(own, row.data, threat)
        if reason is not None:
            reasons[threat.label] = reason
        elif len(own.ids):
            found.append((row, members))
    if not found:
        label, reason = [*reasons.items()][-1]
        others = ", ".join([*reasons][:-1])
        more = f" Nor do {others} allow them." if others else ""
        raise ArtefactError(f"{path}: {label}: {reason} Project it, or leave it out.{more}")
    return found


def _lowers(record: CellRecord, members: Sequence[CellRecord], handed_in: int) -> bool:
    """Tell what handed-in inputs do to a row; returns whether it is lowered."""
    from robustspike.leaderboard.verdicts import outcome

    before, now = outcome(members), outcome([*members, record])
    fallen = sum(now[sample] < value for sample, value in before.items())
    line = f"{record.threat.label}: {record.counts['broken']} of {handed_in} inputs fool it, "
    if record.threat.is_minimum_norm:
        line += f"{fallen} of them with less than anything before"
    else:
        n = len(before)
        was, left = (100 * sum(values.values()) / n for values in (before, now))
        line += f"{fallen} of them samples that stood: worst case {was:.1f} -> {left:.1f} %"
    click.echo(line)
    return fallen > 0
