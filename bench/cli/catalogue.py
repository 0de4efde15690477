"""What `list` and `show` say of components; of ours from a file, for importing them takes torch, and seconds.

catalogue.json holds, by kind and name, what was said of a component and the digest of the files that it was
said of. A component of another package, or one whose files have changed since, is imported and described
afresh. `python -m robustspike.bench.cli.catalogue` writes the file again; with --check it only compares.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import importlib.util
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.contract.registry import KINDS
from robustspike.bench.contract.registry import Registered
from robustspike.bench.contract.registry import registry
from robustspike.bench.files import write_atomic

FILE = Path(__file__).with_name("catalogue.json")
_OURS = "robustspike"


def row(kind: str, name: str) -> dict[str, Any]:
    """Describe a registered component in one line of a table."""
    entry = registry(kind).entry(name)
    said = _said(entry)["row"]
    return {"name": name, **said, "from": f"{entry.distribution} {entry.version}"}


def description(kind: str, name: str) -> dict[str, Any]:
    """Describe a registered component in full."""
    known = registry(kind)
    entry = known.entry(name)
    origin = f"{entry.distribution} {entry.version} ({entry.target})"
    return {known.singular: name, "from": origin, **_said(entry)["shown"]}


def _said(entry: Registered) -> dict[str, Any]:
    kept = _kept().get(entry.kind, {}).get(entry.name)
    if kept is not None and kept["of"] == _digest(entry, kept["weights"]):
        return dict(kept)
    return _afresh(entry)


@cache
def _kept() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    return found


def _digest(entry: Registered, weights: str) -> str:
    """Return the digest of a component's module and of the certificates whose names begin with `weights`."""
    total = hashlib.blake2b(digest_size=8)
    spec = importlib.util.find_spec(entry.target.partition(":")[0]) if entry.distribution == _OURS else None
    if spec is None or spec.origin is None:
        return ""
    total.update(Path(spec.origin).read_bytes())
    folder = Path(str(importlib.resources.files("robustspike.victims"))) / "weights"
    for path in sorted(folder.glob(f"{weights}*.json")) if weights else ():
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def _afresh(entry: Registered) -> dict[str, Any]:
    """Import a component and describe it."""
    component = registry(entry.kind).get(entry.name)
    weights = (component.shares or component.name) if entry.kind == "victims" else ""
    said = {
        "of": _digest(entry, weights),
        "weights": weights,
        "row": _row(entry.kind, component),
        "shown": _shown(entry.kind, component),
    }
    plainly: dict[str, Any] = json.loads(json.dumps(said, default=str))
    return plainly


def first_sentence(component: Any) -> str:
    """Return the first sentence of a component's docstring."""
    kind = component if isinstance(component, type) else type(component)
    text = " ".join((kind.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def _about(kind: str, component: Any) -> str:
    """Return the first sentence of a component, after what sets it apart from others of its class."""
    return ": ".join(filter(None, [_apart(kind, component), first_sentence(component)]))


_NAMING = ("name", "dataset", "schedule", "starts", "shares")
"""Fields that every recipe of a class sets, beside what its network is."""


def _apart(kind: str, component: Any) -> str:
    """Return the parameters that are not the defaults, and the data where others differ by that alone."""
    if isinstance(component, type) or not dataclasses.is_dataclass(component):
        return ""
    said = [f"{name}={value}" for name, value in _changed(component).items()]
    known = registry(kind)
    others = [known.get(name) for name in known.names() if known.entry(name).distribution == _OURS]
    alike = [o for o in others if type(o) is type(component) and _changed(o) == _changed(component)]
    data = getattr(component, "dataset", None)
    if any(getattr(other, "dataset", None) != data for other in alike):
        said.append(f"on {data}")
    return ", ".join(said)


def _changed(component: Any) -> dict[str, Any]:
    values = {f.name: (getattr(component, f.name), f.default) for f in dataclasses.fields(component)}
    return {n: value for n, (value, usual) in values.items() if value != usual and n not in _NAMING}


def _row(kind: str, component: Any) -> dict[str, Any]:
    about = _about(kind, component)
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
        return {**_victim_row(component), "about": about}
    if kind == "datasets":
        return {
            "shape": "x".join(map(str, component.shape)),
            "classes": component.classes,
            "needs": "--data DIR" if component.needs_root else "nothing",
            "about": about,
        }
    return {"about": about}


def _victim_row(recipe: Any) -> dict[str, Any]:
    from robustspike.bench.errors import BenchError
    from robustspike.bench.training.weights import find_weights
    from robustspike.bench.training.weights import read_certificate
    from robustspike.bench.training.weights import stated

    found = {"family": recipe.family, "data": recipe.dataset, "T": recipe.spec().steps or "-"}
    path = find_weights(recipe, "none", 0, None)
    clean, energy = "train or bring", "-"
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
    return {**found, "clean on test": clean, "nJ": energy}


def _shown(kind: str, component: Any) -> dict[str, Any]:
    from robustspike.bench.training.weights import plain

    spec = getattr(component, "spec", None)
    spec = spec() if callable(spec) else spec
    about = {
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


def _ours() -> dict[str, dict[str, Any]]:
    """Describe every component of this package afresh, by kind and name."""
    return {
        kind: {
            name: _afresh(entry)
            for name in registry(kind).names()
            if (entry := registry(kind).entry(name)).distribution == _OURS
        }
        for kind in KINDS
    }


def _text(found: dict[str, dict[str, Any]]) -> str:
    """Write one component a line, so that two changes seldom meet."""
    kinds = []
    for kind, entries in found.items():
        lines = (f"{json.dumps(name)}: {json.dumps(said)}" for name, said in entries.items())
        kinds.append(f"{json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def main(arguments: list[str]) -> int:
    """Write the catalogue, or with --check say whether it is as it would be written."""
    text = _text(_ours())
    if "--check" in arguments:
        current = FILE.is_file() and FILE.read_text("utf-8") == text
        sys.stdout.write("" if current else f"{FILE}: not current. Run: python -m {__spec__.name}\n")
        return 0 if current else 1
    write_atomic(FILE, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
