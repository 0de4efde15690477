"""The documentation site: sphinx-build -W docs docs/_build (pip install '.[docs]')."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

project = "RobustSpike"
author = "The RobustSpike maintainers"
version = release = installed("robustspike")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"RobustSpike {release}"
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_custom_sections = [
    ("Class attributes", "params_style"),
    ("Shape", "notes_style"),
    ("Cost", "notes_style"),
    ("Source", "notes_style"),
]
nitpicky = False

KINDS = {
    "attacks": "Attacks",
    "estimators": "Gradient estimators",
    "defenses": "Defenses",
    "certifiers": "Certifiers",
    "victims": "Victims",
    "datasets": "Data sets",
    "geometries": "Geometries",
}


def methods(kind: str, title: str) -> str:
    """Write the page of one kind of component: what it is, source and deviations, parameters."""
    from robustspike.bench.contract.registry import registry
    from robustspike.bench.contract.specs import params_of

    known = registry(kind)
    parts = [f"# {title}", f"`robustspike show NAME` prints the same; {len(known.names())} are registered."]
    for name in known.names():
        component = known.get(name)
        spec = getattr(component, "spec", None)
        source = getattr(component, "source", "") or ("" if callable(spec) else getattr(spec, "source", ""))
        about = " ".join((type(component).__doc__ or "").split("\n\n")[0].split())
        parts += [f"## {name}", plain(about)]
        parts += [f"**Source.** {plain(source)}"] if source else []
        if cost := "" if callable(spec) else getattr(spec, "cost", ""):
            parts.append(f"**Cost.** {plain(cost)}")
        if parameters := params_of(component):
            shown = ", ".join(f"`{key}={value!r}`" for key, value in parameters.items() if key != "name")
            parts += [f"**Parameters.** {shown}"] if shown else []
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Keep text from being read as markup."""
    return text.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[").replace("<", "&lt;")


def write_methods(app: Any) -> None:
    """Generate methods/KIND.md before the sources are read."""
    folder = Path(app.srcdir) / "methods"
    folder.mkdir(exist_ok=True)
    for kind, title in KINDS.items():
        path, text = folder / f"{kind}.md", methods(kind, title)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def escape_shapes(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Keep the star of a shape such as [N, *shape] from being read as emphasis."""
    lines[:] = [re.sub(r"\*(?=\w)", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("builder-inited", write_methods)
    app.connect("autodoc-process-docstring", escape_shapes)
