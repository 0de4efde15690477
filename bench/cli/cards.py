"""robustspike cards: what is known of victims, defenses and attacks, as Markdown pages.

A card is made of what a component declares and, for victims, of the certificates of the weights that ship;
nothing on it is written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from robustspike.bench.cli.completion import names
from robustspike.bench.contract.registry import KINDS
from robustspike.bench.contract.registry import registry

OF = ("victims", "defenses", "attacks")
"""Kinds whose cards are written when no name is given."""

_USE = {
    "victims": 'load_victim("{name}")  # from robustspike.bench.api',
    "defenses": "robustspike train VICTIM --defense {name}",
    "attacks": 'evaluate(victim, "{name}", x, y, eps=eps)  # from robustspike.bench.api',
}


@click.command("cards")
@click.argument("wanted", nargs=-1, metavar="[NAME]...", shell_complete=names(*KINDS))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder; a card is KIND/NAME.md in it."
)
def command(wanted: tuple[str, ...], out: Path) -> None:
    """Write cards in Markdown: of every victim, defense and attack, or of the components NAMED.

    A card says what a component is, its source with deviations, its parameters, what it declares, and of a
    victim the weights that ship: digests, accuracy, energy, where they were made. `robustspike show NAME
    --card` prints one.
    """
    from robustspike.bench.contract.suggest import did_you_mean
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.files import write_atomic

    every = [(kind, name) for kind in KINDS for name in registry(kind).names()]
    for name in wanted:
        if not any(name == known for _, known in every):
            hint = did_you_mean(name, [known for _, known in every])
            raise ConfigError(f"cards: nothing is named '{name}'.{hint} See: robustspike list victims.")
    for kind, name in every:
        if name in wanted or (not wanted and kind in OF):
            path = out / kind / f"{name}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, card(kind, name).encode())
            click.echo(str(path))


def card(kind: str, name: str) -> str:
    """Return the card of a component."""
    from robustspike.bench.cli.catalogue import description

    said = description(kind, name)
    kind_of = registry(kind).singular
    parts = [
        f"---\nlibrary_name: robustspike\ntags:\n  - {kind_of}\n  - spiking-neural-networks\n"
        "  - adversarial-robustness\n---",
        f"# {name}",
        f"*{kind_of}, from {said['from']}*",
        str(said["about"]),
    ]
    if said.get("source"):
        parts.append(f"## Source\n\n{said['source']}")
    for title in ("parameters", "declares", "weights"):
        if said.get(title):
            parts.append(f"## {title.capitalize()}\n\n{_table(said[title])}")
    if kind in _USE:
        parts.append(f"## Use\n\n    {_USE[kind].format(name=name)}")
    return "\n\n".join(parts) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    lines = [f"| `{key}` | {_cell(value)} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") or "-"
