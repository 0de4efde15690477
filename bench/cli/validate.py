"""robustspike validate NAME|path.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from robustspike.bench.errors import ConfigError


@click.command("validate")
@click.argument("name", metavar="NAME|FILE.py")
@click.option("--kind", type=click.Choice(["attack", "defense", "victim", "estimator", "geometry"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(name: str, kind: str | None, as_json: bool) -> int:
    """Run the contract checks on a registered component, or on those of a Python file.

    Prints every check that ran, its result and its time. Exit code 1 if one failed.
    """
    from robustspike.bench.testing.check import run_checks

    rows = []
    for what, title, component in _components(name, kind):
        for outcome in run_checks(component, _checks(what)):
            rows.append(
                {
                    "component": title,
                    "kind": what,
                    "check": outcome.name,
                    "result": outcome.result,
                    "seconds": round(outcome.seconds, 3),
                    "detail": outcome.detail,
                }
            )
            if not as_json:
                row = rows[-1]
                click.echo(f"{row['result']:8}{row['seconds']:8.2f} s  {title}: {row['check']}")
                if outcome.detail:
                    click.echo(f"{'':20}{outcome.detail}")
    failed = sum(row["result"] == "failed" for row in rows)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        skipped = sum(row["result"] == "skipped" for row in rows)
        click.echo(f"{len(rows) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def _components(name: str, kind: str | None) -> list[tuple[str, str, Any]]:
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.contract.registry import registry

    if name.endswith(".py"):
        return [
            (registry(entry.kind).singular, entry.name, registry(entry.kind).get(entry.name))
            for entry in load_file(Path(name))
        ]
    kinds = ("attacks", "defenses", "victims", "estimators", "geometries")
    found = [
        k for k in kinds if name in registry(k).names() and (kind is None or registry(k).singular == kind)
    ]
    if not found:
        if Path(name).is_dir():
            raise ConfigError(f"'{name}' is a folder and no installed component. Try: pip install ./{name}")
        registry(next((k for k in kinds if registry(k).singular == kind), "attacks")).entry(name)
        raise ConfigError(f"'{name}' is not a {kind}. See: robustspike show {name}.")
    return [(registry(k).singular, name, _loaded(k, name)) for k in found]


def _loaded(kind: str, name: str) -> Any:
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.training.weights import load_victim

    return load_victim(name) if kind == "victims" else registry(kind).get(name)


def _checks(kind: str) -> Any:
    from robustspike.bench.testing.attack_checks import ATTACK_CHECKS
    from robustspike.bench.testing.other_checks import DEFENSE_CHECKS
    from robustspike.bench.testing.other_checks import ESTIMATOR_CHECKS
    from robustspike.bench.testing.other_checks import GEOMETRY_CHECKS
    from robustspike.bench.testing.victim_checks import VICTIM_CHECKS

    return {
        "attack": ATTACK_CHECKS,
        "victim": VICTIM_CHECKS,
        "defense": DEFENSE_CHECKS,
        "estimator": ESTIMATOR_CHECKS,
        "geometry": GEOMETRY_CHECKS,
    }[kind]
