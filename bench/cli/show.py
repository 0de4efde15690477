"""robustspike show NAME."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import click

from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError


@click.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(name: str, as_json: bool) -> None:
    """Describe the component or suite NAME."""
    found = describe(name)
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
        return
    for number, item in enumerate(found):
        if number:
            click.echo()
        for key, value in item.items():
            if isinstance(value, dict):
                click.echo(f"{key}:")
                for inner, shown in value.items():
                    click.echo(f"  {inner} = {shown}")
            elif "\n" in str(value):
                click.echo(f"{key}:")
                click.echo("\n".join(f"  {line}".rstrip() for line in str(value).splitlines()))
            else:
                click.echo(f"{key}: {value}")


def describe(name: str) -> list[dict[str, Any]]:
    """Describe everything that has a name, whatever its kind. Raises: ConfigError: nothing has it."""
    from robustspike.bench.contract.registry import KINDS
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.suite.file import read_suite
    from robustspike.bench.suite.file import shipped_suites

    found = []
    known: list[str] = []
    for kind in KINDS:
        names = registry(kind).names()
        known += names
        if name in names:
            found.append(_component(kind, name))
    known += shipped_suites()
    if name in shipped_suites():
        suite = read_suite(name)
        found.append(
            {
                "suite": suite.name,
                "version": suite.version,
                "about": suite.description,
                "samples": suite.samples,
                "shard": suite.shard,
                "seeds": list(suite.seeds),
                "threats": "\n".join(json.dumps(t) for t in suite.threats),
                "victims": "\n".join(json.dumps(v) for v in suite.victims),
                "attacks": "\n".join(json.dumps(a) for a in suite.attacks),
                "digest": suite.digest,
            }
        )
    if not found:
        hint = did_you_mean(name, known, cutoff=0.4)
        raise ConfigError(f"nothing is named '{name}'.{hint} See: robustspike list {'|'.join(KINDS)}|suites.")
    return found


def _component(kind: str, name: str) -> dict[str, Any]:
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.training.weights import plain

    known = registry(kind)
    entry, component = known.entry(name), known.get(name)
    spec = getattr(component, "spec", None)
    spec = spec() if callable(spec) else spec
    about = {
        known.singular: name,
        "from": f"{entry.distribution} {entry.version} ({entry.target})",
        "about": inspect.getdoc(type(component)) or "",
        "source": getattr(component, "source", "") or getattr(spec, "source", ""),
        "parameters": plain(component),
    }
    if spec is not None and dataclasses.is_dataclass(spec):
        about["declares"] = {
            field.name: _plainly(getattr(spec, field.name))
            for field in dataclasses.fields(spec)
            if field.name not in ("name", "source")
        }
    if kind == "victims":
        about["weights"] = _weights(component)
    return about


def _plainly(value: Any) -> Any:
    """Return a declared value as people write it: enumerations by their names."""
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "none"
    return value


def _weights(recipe: Any) -> dict[str, Any]:
    from robustspike.bench.training.weights import made_on
    from robustspike.bench.training.weights import read_certificate
    from robustspike.bench.training.weights import shipped_weights
    from robustspike.bench.training.weights import stated

    shown: dict[str, Any] = {}
    base = recipe.shares or recipe.name
    for path in sorted(shipped_weights(recipe).glob(f"{base}*.safetensors")):
        stem = path.name.removesuffix(".safetensors")
        if stem != base and stem[len(base)] not in "+@(":
            continue
        certificate = read_certificate(path)
        shown[stem] = (
            f"clean {stated(certificate)}, "
            f"{certificate['bytes']} bytes, sha256 {certificate['sha256'][:12]}..."
        )
        if "energy" in certificate:
            energy = certificate["energy"]
            shown[stem] += (
                f"; {energy['energy_nj']:.1f} nJ an answer ({energy['ac']:.0f} AC at {energy['ac_pj']} pJ, "
                f"{energy['mac']:.0f} MAC at {energy['mac_pj']} pJ, first layer at every step)"
            )
        measured = certificate.get("measured", {})
        if "latency" in measured:
            curve = sorted((int(t), k) for t, k in measured["latency"].items())
            shown[stem] += f"; of {measured['n']} right: ANN {measured['ann']}, " + ", ".join(
                f"T={t} {k}" for t, k in curve
            )
        shown[stem] += f"; made on: {made_on(certificate)}"
        for note in recipe.notes(certificate):
            shown[stem] += f"; NOTE: {note}"
    return shown or {"none": f"train it: robustspike train {base}"}
