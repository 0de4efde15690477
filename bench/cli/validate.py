"""robustspike validate NAME|path.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import click

from robustspike.bench.cli.completion import names
from robustspike.bench.errors import ConfigError

if TYPE_CHECKING:
    from robustspike.bench.testing.check import Checks

KINDS = {
    "attack": "attacks",
    "defense": "defenses",
    "certifier": "certifiers",
    "victim": "victims",
    "dataset": "datasets",
    "estimator": "estimators",
    "geometry": "geometries",
}


@click.command("validate")
@click.argument("name", metavar="NAME|FILE.py", shell_complete=names(*KINDS.values(), files=True))
@click.option("--kind", type=click.Choice(list(KINDS)), help="Where several components have the name.")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of weights of victims.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of published data sets.")
@click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Python file with a plugin.")
@click.option("--full", is_flag=True, help="Attacks on quality models at their own lengths.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    name: str,
    kind: str | None,
    weights: Path | None,
    data: Path | None,
    plugin: tuple[Path, ...],
    full: bool,
    as_json: bool,
) -> int:
    """Run the contract checks on a registered component, or on those of a Python file.

    Prints every check that ran, its result and its time; a check that was skipped says why. A victim
    without weights is checked as an untrained network, an attack on quality models with fewer queries,
    iterations and images than its own, unless --full. Exit code 1 if a check failed.
    """
    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.testing.check import run_checks

    weights, data = existing_folder(weights, "--weights"), existing_folder(data, "--data")
    for path in plugin:
        load_file(path)
    rows = []
    for what, title in _components(name, kind):
        for component, checks in _batteries(what, title, weights, data, full=full):
            for outcome in run_checks(component, checks):
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


def _components(name: str, kind: str | None) -> list[tuple[str, str]]:
    """Return the kind and the name of every component to check."""
    from robustspike.bench.contract.calls import parse_call
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.contract.registry import registry

    if name.endswith(".py"):
        found = [(registry(entry.kind).singular, entry.name) for entry in load_file(Path(name))]
        chosen = [pair for pair in found if kind is None or pair[0] == kind]
        if not chosen:
            raise ConfigError(f"{name}: defines no {kind}; it has: {', '.join(k for k, _ in found)}.")
        return chosen
    bare, _ = parse_call(name)  # parameters may be changed: 'quality.uap(images=16)'
    known = [k for k, kinds in KINDS.items() if bare in registry(kinds).names()]
    here = [k for k in known if kind in (None, k)]
    if not here:
        if (Path(name) / "train").is_dir() and (Path(name) / "test").is_dir():
            raise ConfigError(
                f"'{name}' is a folder of samples and no component. Check it as a data set: robustspike "
                f"validate \"recordings(folder='{name}')\"."
            )
        if Path(name).is_dir():
            raise ConfigError(f"'{name}' is a folder and no installed component. Try: pip install ./{name}")
        if known:
            raise ConfigError(f"'{bare}' is no {kind}, but: {', '.join(known)}.")
        registry(KINDS[kind or "attack"]).entry(bare)
    return [(k, name) for k in here]


def _batteries(
    kind: str, name: str, weights: Path | None, data: Path | None, *, full: bool
) -> Iterator[tuple[Any, Checks]]:
    """Yield what is checked of a component, and by which checks."""
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.contract.specs import Task
    from robustspike.bench.testing.attack_checks import ATTACK_CHECKS
    from robustspike.bench.testing.certifier_checks import CERTIFIER_CHECKS
    from robustspike.bench.testing.certifier_checks import SCORE_CERTIFIER_CHECKS
    from robustspike.bench.testing.dataset_checks import DATASET_CHECKS
    from robustspike.bench.testing.dataset_checks import DatasetAt
    from robustspike.bench.testing.other_checks import DEFENSE_CHECKS
    from robustspike.bench.testing.other_checks import ESTIMATOR_CHECKS
    from robustspike.bench.testing.other_checks import GEOMETRY_CHECKS
    from robustspike.bench.testing.quality_checks import QUALITY_CHECKS
    from robustspike.bench.testing.quality_checks import shortened
    from robustspike.bench.testing.recipe_checks import RECIPE_CHECKS
    from robustspike.bench.testing.recipe_checks import victim_of_recipe
    from robustspike.bench.testing.victim_checks import VICTIM_CHECKS

    component = registry(KINDS[kind]).get(name)
    if kind == "attack":
        if Task.CLASSIFY in component.spec.tasks:
            yield component, ATTACK_CHECKS
        if Task.QUALITY in component.spec.tasks:
            short, lengths = (component, {}) if full else shortened(component)
            if lengths:
                said = ", ".join(f"{key}={value}" for key, value in lengths.items())
                click.echo(f"{name}: checked with {said} (its own lengths: --full)", err=True)
            yield short, QUALITY_CHECKS
    elif kind == "certifier":
        if Task.CLASSIFY in component.spec.tasks:
            yield component, CERTIFIER_CHECKS
        if Task.QUALITY in component.spec.tasks:
            yield component, SCORE_CERTIFIER_CHECKS
    elif kind == "victim":
        yield component, RECIPE_CHECKS
        victim, which = victim_of_recipe(component, weights=weights)
        click.echo(f"{name}: the checks of the victim are on {which}", err=True)
        yield victim, VICTIM_CHECKS
    elif kind == "dataset":
        yield DatasetAt(component, data), DATASET_CHECKS
    else:
        yield (
            component,
            {
                "defense": DEFENSE_CHECKS,
                "estimator": ESTIMATOR_CHECKS,
                "geometry": GEOMETRY_CHECKS,
            }[kind],
        )
