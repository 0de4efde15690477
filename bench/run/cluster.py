"""A cluster: units of work as Ray tasks. Workers return bytes; the driver alone writes files.

A node needs this package in the same version, and sees the folders of --data and --weights under the same
paths; plugin files travel with the tasks. Each worker compares the key of a cell as it finds it with the
driver's, so that a node with other code, weights or data stops the run instead of mixing into it.
"""

from __future__ import annotations

import dataclasses
import socket
import tempfile
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.attack.limits import watchdog
from robustspike.bench.contract.registry import load_file
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.run.shards import pack_shard
from robustspike.bench.suite.identity import identity

RETRIES = 2
"""How often Ray repeats a task whose worker or node died before it counts as the task's own fault."""

AHEAD = 2
"""Tasks in flight for each processor of the cluster, so that no node waits for the driver."""

Plugins = tuple[tuple[str, bytes], ...]
"""Plugin files as (name, content)."""


def in_ray(units: Sequence[Unit], settings: Settings, *, address: str) -> Iterator[tuple[Unit, bytes | None]]:
    """Compute units on a Ray cluster.

    Args:
        address: of the cluster ("auto", "HOST:PORT", "ray://HOST:PORT"), or "local" to start one here.

    Yields: units as they end, with their packed shards; None where the worker died each time.
    Raises: ConfigError: Ray is not installed or no cluster answers. ContractError: a node has other code,
        weights or data than the driver. Whatever else a unit raises, as in a run without Ray.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        try:
            where = None if address == "local" else address
            _reachable(address)
            ray.init(address=where, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--ray {address}: no cluster answers ({error}). Start one with `ray start --head`, or leave "
                "the address out."
            ) from error
    gpus = 1 if settings.device.startswith("cuda") else 0
    task = ray.remote(num_cpus=settings.threads, num_gpus=gpus, max_retries=RETRIES)(_work)
    content = ray.put(tuple((path.name, path.read_bytes()) for path in settings.plugins))
    there = ray.put(dataclasses.replace(settings, plugins=()))
    waiting, running = deque(units), dict[Any, Unit]()
    try:
        while waiting or running:
            width = max(1, AHEAD * int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
            while waiting and len(running) < width:
                unit = waiting.popleft()
                running[task.remote(unit, there, content)] = unit
            (done,), _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(done)
            try:
                yield unit, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError:  # the worker or its node died, and died again
                yield unit, None
    finally:
        for left in running:
            ray.cancel(left, force=True)
        if started:
            ray.shutdown()


def _reachable(address: str) -> None:
    """Knock at HOST:PORT: Ray itself takes a minute to say that nobody is there. Raises: OSError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            f"--ray: Ray is not installed ({error}). pip install 'robustspike[ray]'."
        ) from error
    return ray


def _work(unit: Unit, settings: Settings, plugins: Plugins) -> bytes:
    """Compute one unit in a worker of the cluster."""
    _prepare(settings.threads, plugins)
    key, _, _ = identity(unit.cell, weights=settings.weights, root=settings.root, device=settings.device)
    if key != unit.key:
        import platform

        raise ContractError(
            f"node {platform.node()}: {unit.cell.victim_label} + {unit.cell.defense}, {unit.cell.label} has "
            "another key there than on the driver. Install the same version of robustspike and its plugins "
            "on every node, and give --weights and --data folders that all nodes share."
        )
    seconds = settings.limits.seconds
    with watchdog(None if seconds is None else 2 * seconds + 60):
        return pack_shard(compute(unit, settings))


@cache
def _prepare(threads: int, plugins: Plugins) -> None:
    """Set up a worker, once for each set of plugins."""
    import torch

    torch.set_num_threads(threads)
    for name, content in plugins:
        path = Path(tempfile.mkdtemp(prefix="robustspike-plugin-")) / name
        path.write_bytes(content)
        load_file(path)
