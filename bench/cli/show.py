"""robustspike show NAME."""

from __future__ import annotations

import json
from typing import Any

import click

from robustspike.bench.cli.completion import names
from robustspike.bench.contract.registry import KINDS
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError


@click.command("show")
@click.argument("name", shell_complete=names(*KINDS, "suites"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--card", "as_card", is_flag=True, help="Print its card, a page in Markdown.")
def command(name: str, as_json: bool, as_card: bool) -> None:
    """Describe the component or suite NAME."""
    found = describe(name)
    if as_card:
        click.echo("\n".join(_cards(name)), nl=False)
        return
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


def _cards(name: str) -> list[str]:
    """Return the cards of everything that has a name. Raises: ConfigError: only a suite has."""
    from robustspike.bench.cli.cards import card

    found = [card(kind, name) for kind in KINDS if name in registry(kind).names()]
    if not found:
        raise ConfigError(f"show {name} --card: a suite has no card. Without --card its cells are described.")
    return found


def describe(name: str) -> list[dict[str, Any]]:
    """Describe everything that has a name, whatever its kind. Raises: ConfigError: nothing has it."""
    from robustspike.bench.cli.catalogue import description
    from robustspike.bench.contract.decode import encode
    from robustspike.bench.suite.file import read_suite
    from robustspike.bench.suite.file import shipped_suites

    found = []
    known: list[str] = []
    for kind in KINDS:
        names = registry(kind).names()
        known += names
        if name in names:
            found.append(description(kind, name))
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
                "threats": "\n".join(json.dumps(encode(t)) for t in suite.threats),
                "victims": "\n".join(json.dumps(encode(v)) for v in suite.victims),
                "attacks": "\n".join(json.dumps(encode(a)) for a in suite.attacks),
                "certify": "\n".join(json.dumps(encode(a)) for a in suite.certify) or "nothing",
                "digest": suite.digest,
            }
        )
    if not found:
        hint = did_you_mean(name, known, cutoff=0.4)
        raise ConfigError(f"nothing is named '{name}'.{hint} See: robustspike list {'|'.join(KINDS)}|suites.")
    return found
