"""robustspike inspect NETWORK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import click

if TYPE_CHECKING:
    from robustspike.bench.run.network import Request


def network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument and options that say what a network is; `request` takes them."""
    options = (
        click.argument("network"),
        click.option(
            "--data",
            required=True,
            help="A data set of robustspike list datasets, an .npz, .pt or .safetensors file with inputs and "
            "labels, or a folder of class folders of images.",
        ),
        click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights: .pt, .safetensors."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of published data sets."),
        click.option("--split", default="test", show_default=True, help="train, validation or test."),
        click.option("--steps", type=click.IntRange(min=0), default=0, help="Time steps T; 0: no time."),
        click.option(
            "--time",
            type=click.Choice(["auto", "inside", "repeat", "loop", "time-first"]),
            default="auto",
            show_default=True,
            help="How the network takes time, see docs/your-network.md.",
        ),
        click.option("--mean", help="Normalisation per channel: 0.49,0.48,0.45."),
        click.option("--std", help="Normalisation per channel."),
        click.option("--stochastic", is_flag=True, help="It draws random numbers when it answers."),
        click.option("--training-neurons", is_flag=True, help="Its neurons have no gradient else."),
        click.option("--legacy-spikingjelly", is_flag=True, help="Map spikingjelly.clock_driven onto 2.0."),
        click.option(
            "--score-range",
            metavar="WORST,BEST",
            help="It is a quality model that answers one score on this scale: 0,100; 1,0 where smaller is "
            "better.",
        ),
        click.option(
            "--input-size", type=click.IntRange(min=1), help="A quality model sees images of this size."
        ),
        click.option(
            "--crops",
            type=click.IntRange(min=1),
            help="Squares of --input-size on an even grid, scores averaged, in place of the resized image.",
        ),
        click.option("--name", help="Name in tables; default: that of the file and function."),
        click.option("--defense-name", default="none", help="What the network was hardened with."),
        click.option("--plugin", multiple=True, type=click.Path(path_type=Path), help="Python file to load."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def request(network: str, *, plugin: tuple[Path, ...], **given: Any) -> Request:
    """Turn what `network_options` gave into a request. Raises: ConfigError."""
    from robustspike.bench.cli.options import existing_folder
    from robustspike.bench.contract.registry import load_file
    from robustspike.bench.run.network import Request

    for path in plugin:
        load_file(path)
    return Request(
        target=network,
        data=given["data"],
        checkpoint=given["checkpoint"],
        root=existing_folder(given["data_dir"], "--data-dir"),
        split=given["split"],
        steps=given["steps"],
        time=given["time"],
        mean=numbers(given["mean"], "--mean"),
        std=numbers(given["std"], "--std"),
        stochastic=given["stochastic"],
        training_neurons=given["training_neurons"],
        name=given["name"] or "",
        defense=given["defense_name"],
        legacy=given["legacy_spikingjelly"],
        score_range=numbers(given["score_range"], "--score-range"),
        size=given["input_size"] or 0,
        crops=given["crops"] or 0,
    )


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Parse numbers separated by commas. Raises: ConfigError."""
    from robustspike.bench.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}: expected numbers separated by commas: 0.49,0.48,0.45."
        ) from error


@click.command("inspect")
@network_options
def command(network: str, **given: Any) -> int:
    """Say what is found in NETWORK (FILE.py:NAME, package.module:NAME or a .nir file).

    Builds it, loads the checkpoint, checks it, and prints its neurons, time axis, clean accuracy and energy,
    and the gradient estimators that would be refused, each with the reason. Nothing is attacked or written.
    """
    from robustspike.bench.run.network import look
    from robustspike.bench.run.network import refused_estimators

    found = look(request(network, **given))
    for line in found.told:
        click.echo(line)
    refused = refused_estimators(found.victim)
    for reason in dict.fromkeys(refused.values()):
        names = ", ".join(name for name, why in refused.items() if why == reason)
        click.echo(f"refused: {names}: {reason}")
    return 0
