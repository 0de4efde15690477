"""robustspike list KIND."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

_KINDS = ("victims", "attacks", "defenses", "certifiers", "datasets", "estimators", "geometries", "suites")


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(kind: str, as_json: bool) -> None:
    """List what is registered, with who brought it; for defenses also what is not implemented, and why."""
    rows = suites() if kind == "suites" else components(kind)
    omitted = left_out(kind)
    if as_json:
        click.echo(json.dumps(rows + omitted, indent=1))
        return
    _print(rows)
    if omitted:
        click.echo(f"\nNot implemented, and why ({len(omitted)}):\n")
        _print([{"name": row["name"], "why": row["left_out"]} for row in omitted])


def left_out(kind: str) -> list[dict[str, Any]]:
    """Describe what the registered packages leave out: {"name", "left_out": the reason}."""
    from robustspike.bench.contract.registry import registry

    known = {} if kind == "suites" else registry(kind).left_out()
    return [{"name": name, "left_out": reason} for name, reason in known.items()]


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0] if rows else ("name",):
        table.add_column(column, no_wrap=True, overflow="ellipsis" if column == "about" else "fold")
    for row in rows:
        table.add_row(*(str(v) for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 250).print(table)


def suites() -> list[dict[str, Any]]:
    """Describe the shipped suites."""
    from robustspike.bench.suite.file import read_suite
    from robustspike.bench.suite.file import shipped_suites

    found = [read_suite(name) for name in shipped_suites()]
    return [
        {"name": s.name, "version": s.version, "samples": s.samples, "about": s.description} for s in found
    ]


def components(kind: str) -> list[dict[str, Any]]:
    """Describe every registered component of a kind in one line."""
    from robustspike.bench.contract.registry import registry

    known = registry(kind)
    rows = []
    for name in known.names():
        entry = known.entry(name)
        component = known.get(name)
        row: dict[str, Any] = {"name": name, **_details(kind, component)}
        row["from"] = f"{entry.distribution} {entry.version}"
        rows.append(row)
    return rows


def _details(kind: str, component: Any) -> dict[str, Any]:
    about = first_sentence(component)
    if kind == "attacks":
        spec = component.spec
        return {
            "geometry": ", ".join(spec.geometries),
            "domain": ", ".join(spec.domains),
            "access": str(spec.access),
            "about": about,
        }
    if kind == "defenses":
        spec = component.spec
        needs = ", ".join(spec.adaptive) or "-"
        return {"trains": "yes" if spec.trains else "no", "adaptive attack": needs, "about": about}
    if kind == "certifiers":
        return {"norm": component.spec.norm, "about": about}
    if kind == "victims":
        return {**_victim(component), "about": about}
    if kind == "datasets":
        return {
            "shape": "x".join(map(str, component.shape)),
            "classes": component.classes,
            "needs": "--data DIR" if component.needs_root else "nothing",
            "about": about,
        }
    return {"about": about}


def _victim(recipe: Any) -> dict[str, Any]:
    from robustspike.bench.errors import BenchError
    from robustspike.bench.training.weights import find_weights
    from robustspike.bench.training.weights import read_certificate
    from robustspike.bench.training.weights import stated

    row = {"family": recipe.family, "data": recipe.dataset, "T": recipe.spec().steps or "-"}
    path = find_weights(recipe, "none", 0, None)
    clean, energy = "not shipped", "-"
    if path is not None:
        try:
            certificate = read_certificate(path)
        except BenchError:
            certificate = {}
        if certificate.get("test") and not recipe.shares:
            clean = stated(certificate)
            energy = f"{certificate['energy']['energy_nj']:.0f}" if "energy" in certificate else "-"
        elif recipe.shares:
            clean = f"weights of {recipe.shares}"
    return {**row, "clean on test": clean, "nJ": energy}


def first_sentence(component: Any) -> str:
    """Return the first sentence of a component's docstring."""
    kind = component if isinstance(component, type) else type(component)
    text = " ".join((kind.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""
