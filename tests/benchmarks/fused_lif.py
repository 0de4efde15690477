"""What compiled LIF steps save: the same passes with them, in place in Python, and by SpikingJelly's nodes.

    python tests/benchmarks/fused_lif.py

Gradients of lif_cnn.digits (native and PDSG) at batches of 1 (64 of them), 36 and 128, and a training step of
lif_cnn.cifar10 (batch 64, T = 4). The three ways take turns in one process; printed are medians of the
processor time of a round, and of the paired ratios. That all three give the same numbers is checked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.snn import fused
from robustspike.bench.snn.fast_lif import in_place
from robustspike.bench.snn.fast_lif import plain_nodes
from robustspike.bench.snn.neurons import reset
from robustspike.bench.victim import module as victims

WAYS = ("compiled", "in place", "nodes")
ROUNDS = 15


def gradient(estimator: str, batch: int) -> Callable[[], Tensor]:
    victim = load_victim("lif_cnn.digits")
    split = registry("datasets").get("digits").load("test")[:batch]
    rule = registry("estimators").get(estimator)

    def run() -> Tensor:
        for _ in range(max(1, 64 // batch)):
            found = victim.loss_and_grad(
                split.x, split.y, lambda z, y: cross_entropy(z, y, reduction="none"), rule
            )
        return found.grad

    return run


def training(batch: int) -> Callable[[], Tensor]:
    net = registry("victims").get("lif_cnn.cifar10").build(generator("net")).train()
    x, y = torch.rand(batch, 3, 32, 32, generator=generator("x")), torch.arange(batch) % 10
    weights = list(net.parameters())

    def run() -> Tensor:
        reset(net)
        with in_place(victims.plain_nodes(net)):
            loss = cross_entropy(net(x), y)
        grads = torch.autograd.grad(loss, weights)
        reset(net)
        return torch.cat([grad.flatten() for grad in grads])

    return run


def timed(run: Callable[[], Tensor], way: str) -> tuple[float, Tensor]:
    """Return the processor time of one run, and its result."""
    with ExitStack() as stack:
        if way != "compiled":
            stack.enter_context(mock.patch.object(fused, "library", lambda: None))
        if way == "nodes":
            stack.enter_context(mock.patch.object(victims, "in_place", lambda nodes: in_place([])))
            stack.enter_context(mock.patch.object(victims, "plain_nodes", lambda net: []))
        start = time.process_time()
        out = run()
        return time.process_time() - start, out


def compare(name: str, run: Callable[[], Tensor], rounds: int) -> None:
    first = [timed(run, way)[1] for way in WAYS]
    assert all(torch.equal(first[0], other) for other in first[1:])
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            times[way].append(timed(run, way)[0])
    line = ", ".join(f"{way} {1000 * statistics.median(times[way]):.1f} ms" for way in WAYS)
    for way in WAYS[1:]:
        ratio = statistics.median(b / a for a, b in zip(times["compiled"], times[way], strict=True))
        line += f"; {way} / compiled {ratio:.2f}"
    print(f"{name}: {line}")  # noqa: T201


def main() -> None:
    torch.set_num_threads(1)
    assert plain_nodes(load_victim("lif_cnn.digits").module), "nothing to compare"
    if fused.library() is None:
        raise SystemExit("no C compiler here: nothing to compare")
    for batch in (1, 36, 128):
        for estimator in ("native", "pdsg"):
            compare(f"gradient, {estimator}, batch {batch}", gradient(estimator, batch), ROUNDS)
    compare("training step, batch 64", training(64), 5)


if __name__ == "__main__":
    main()
