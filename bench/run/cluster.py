"""A cluster: units of work as Ray tasks. Workers return bytes; the driver alone writes files.

A node needs this package in the same version, and sees the folders of --data and --weights under the same
paths; plugin files travel with the tasks. Each worker compares the key of a cell as it finds it with the
driver's, so that a node with other code, weights or data stops the run instead of mixing into it.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.attack.limits import watchdog
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.run.compute import set_up
from robustspike.bench.run.shards import pack_shard
from robustspike.bench.suite.identity import identity

RETRIES = 2
"""How often Ray repeats a task whose worker or node died before it counts as the task's own fault."""

LOCAL = "local"
"""The address that stands for a cluster of this machine alone."""

AHEAD = 2
"""Tasks in flight for each processor of the cluster, so that no node waits for the driver."""

EVERY = 1.0
"""Seconds between two questions how large the cluster is; an answer takes longer than handing out a task."""

Plugins = tuple[tuple[str, bytes], ...]
"""Plugin files as (name, content)."""


@contextmanager
def joined(address: str | None, device: str) -> Iterator[None]:
    """Belong to a Ray cluster in the block; what cannot work is refused before anything else is done.

    Args:
        address: of the cluster ("auto", "HOST:PORT", "ray://HOST:PORT"); "local" for one that `in_ray` starts
            here once there is something to do; None for none.
        device: where the tasks put victims.

    Raises: ConfigError: Ray is not installed, no cluster answers, or the device is a GPU by number.
    """
    if address is None:
        yield
        return
    ray = _ray()
    if device.startswith("cuda:"):
        raise ConfigError(
            f"--device {device} with --ray: Ray gives every task a GPU of its own. Give --device cuda."
        )
    ours = not ray.is_initialized()
    if ours and address != LOCAL:
        _connect(ray, address)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def in_ray(
    units: Sequence[Unit],
    settings: Settings,
    *,
    on_start: Callable[[Unit], None] | None = None,
) -> Iterator[tuple[Unit, bytes | None]]:
    """Compute units on the Ray cluster that was joined, or on one that is started here.

    Args:
        on_start: called with each unit that is handed to the cluster.

    Yields: units as they end, with their packed shards; None where the worker died each time.
    Raises: ConfigError: a node lacks this package. ContractError: a node has other code, weights or data than
        the driver. Whatever else a unit raises, as in a run without Ray.
    """
    ray = _ray()
    if not ray.is_initialized():
        _connect(ray, LOCAL)
    gpus = 1 if settings.device == "cuda" else 0
    task = ray.remote(num_cpus=settings.threads, num_gpus=gpus, max_retries=RETRIES)(_work)
    content = ray.put(tuple((path.name, path.read_bytes()) for path in settings.plugins))
    there = ray.put(
        dataclasses.replace(
            settings,
            plugins=(),
            weights=settings.weights and settings.weights.absolute(),  # workers run in another folder
            root=settings.root and settings.root.absolute(),
        )
    )
    waiting, running = deque(units), dict[Any, Unit]()
    width, asked = 1, float("-inf")
    try:
        while waiting or running:
            if time.monotonic() - asked > EVERY:
                width = max(1, AHEAD * int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
                asked = time.monotonic()
            while waiting and len(running) < width:
                unit = waiting.popleft()
                running[task.remote(unit, there, content)] = unit
                if on_start is not None:
                    on_start(unit)
            (done,), _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(done)
            try:
                yield unit, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise _told(error) from None
            except ray.exceptions.RayError:  # the worker or its node died, and died again
                yield unit, None
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, or start one. Raises: ConfigError: the address is none, or nobody answers there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    named = address in ("auto", LOCAL)
    if not named and not (host and port.isdigit()):
        raise ConfigError(
            f"--ray {address}: expected auto, HOST:PORT or ray://HOST:PORT. To start Ray on this machine, "
            "put --ray behind the suite: `robustspike run SUITE --ray`."
        )
    try:
        if not named:  # Ray itself takes a minute to say that nobody is there
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ImportError, OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"--ray {address}: no cluster answers ({reason}). Start one with `ray start --head`, or leave "
            "the address out; where Ray speaks of a token, set RAY_AUTH_MODE=token here and on every node."
        ) from error


def _told(error: Any) -> Exception:
    """Return what to raise here for an error of a task: our own errors without its traceback."""
    cause = error.cause
    if isinstance(cause, BenchError):
        return cause
    if "failed to import on the worker" in str(cause):  # what Ray says where it cannot unpickle a task
        reason = str(cause).strip().splitlines()[-1]
        return ConfigError(
            f"--ray: a node cannot import this package ({reason}). Install the same version of robustspike "
            "on every node."
        )
    found: Exception = error.as_instanceof_cause()
    return found


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
    paths = []
    for name, content in plugins:
        path = Path(tempfile.mkdtemp(prefix="robustspike-plugin-")) / name
        path.write_bytes(content)
        paths.append(path)
    set_up(threads, paths)
