"""robustspike completion SHELL, and what the arguments of other verbs complete to.

Names come from entry points and file names: nothing is imported for them.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem
from click.shell_completion import get_completion_class

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes verbs, options and names of components in SHELL.

    bash, zsh: eval "$(robustspike completion bash)" in ~/.bashrc or ~/.zshrc;
    fish: robustspike completion fish > ~/.config/fish/completions/robustspike.fish
    """
    from robustspike.bench.cli import COMPLETE
    from robustspike.bench.cli import robustspike

    made = get_completion_class(shell)
    assert made is not None  # the shells that click knows
    click.echo(made(robustspike, {}, "robustspike", COMPLETE).source())


def names(*kinds: str, files: bool = False) -> Completer:
    """Return what completes to names of components.

    Args:
        kinds: "victims", "attacks", ..., or "suites".
        files: whether paths are good as well: where no name begins so, the shell completes them.
    """

    def complete(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        from robustspike.bench.contract.registry import registry
        from robustspike.bench.suite.file import shipped_suites

        known = {name for kind in kinds if kind != "suites" for name in registry(kind).names()}
        known |= set(shipped_suites()) if "suites" in kinds else set()
        found = [CompletionItem(name) for name in sorted(known) if name.startswith(begun)]
        return found or ([CompletionItem(begun, type="file")] if files else [])

    return complete
