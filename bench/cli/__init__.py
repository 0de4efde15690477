"""The command line, one verb a file. Torch is not imported before a verb needs it.

Exit codes: 0 done, 1 checks failed, 2 wrong usage or files, 3 some cells errored, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys

import click

from robustspike.bench.errors import BenchError

VERBS = {
    "evaluate": "Measure a network of your own: from a function and a checkpoint to a row.",
    "inspect": "Say what is found in a network of your own, and what would be refused.",
    "run": "Measure a suite and print the leaderboard.",
    "leaderboard": "Build the tables of finished records; no model is run.",
    "compare": "Compare two sets of records row by row.",
    "list": "List what is registered.",
    "show": "Describe one component: what it is, its source, parameters and cost.",
    "pictures": "Draw attacked images and events as sheets, results as curves.",
    "train": "Train a victim, plain or hardened by a defense.",
    "download": "Fetch a published data set into a folder for --data.",
    "new": "Write a small, working, installable plugin package.",
    "cards": "Write what is known of victims, defenses and attacks as Markdown pages.",
    "export": "Write the tables as a data set: CSV, Croissant, eval.yaml, a card.",
    "completion": "Print what completes verbs, options and names in bash, zsh or fish.",
    "validate": "Run the contract checks on a component or a plugin file.",
    "verify": "Check records: answer the stored adversarial inputs afresh.",
    "submit": "Pack records into one bundle that anyone can verify.",
    "check-submission": "Check a bundle that was handed in; report what it would change.",
    "reproduce": "Run a record, or a row, again from its command and compare.",
    "rescore": "Judge adversarial inputs alone on the rows that they break.",
}


COMPLETE = "_ROBUSTSPIKE_COMPLETE"
"""Environment variable by which a shell asks for completions."""


class _Verbs(click.Group):
    """Imports a verb's module only when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]  # the verb "list" is a module of this name here

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"robustspike.bench.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from robustspike.bench.contract.suggest import did_you_mean

            hint = did_you_mean(args[0], VERBS)
            raise click.UsageError(f"unknown command '{args[0]}'.{hint} Commands: {', '.join(VERBS)}.")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustspike")
def robustspike() -> None:
    """How robust is this spiking neural network, really?"""


def main() -> None:
    """Run the command line; every expected failure is one message and an exit code."""
    try:
        code = robustspike.main(standalone_mode=False, complete_var=COMPLETE)
    except BenchError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was finished is kept, run the same command to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
