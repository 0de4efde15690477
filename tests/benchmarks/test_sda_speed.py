"""How much faster batched SDA is than the published one-sample loop, and what every trick adds.

Run: python -m pytest tests/benchmarks/test_sda_speed.py --benchmark-only -s
It prints, and keeps in `extra_info`, two tables. The first: processor time on one thread, of the plain loop
over that of batched SDA, as shipped and with one trick switched off at a time. The second: wall clock
with the same two cores for both sides, on an otherwise idle machine: one process with two torch threads,
and, as `robustspike run --jobs 2` works, two processes with one thread and half of the samples each.
Batched SDA gets its samples in shards of 128, the default of `evaluate`: all 248 at once would need tensors
above 16 MB, which the allocator asks the system for anew every time (a third of the time went there).
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.spikes.sda import Sda
from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import margin
from robustspike.bench.api import registry
from robustspike.bench.attack import oracle as oracle_module
from robustspike.bench.snn import fast_lif as leaky
from robustspike.bench.snn.flips import FlipEngine

SAMPLES, SHARD, CHUNK, K_INIT, TOL = 250, 128, 64, 10, 1e-6
ROUNDS = 3
VICTIMS = ("lif_cnn.digits_events", "lif_cnn.digits_events_t8")
PLENTY = Budget(forwards=10**7, backwards=10**6)


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, sigma):
        ctx.save_for_backward(u, sigma)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        u, sigma = ctx.saved_tensors
        z = (u - 0.5 * sigma) / sigma
        return grad * torch.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * sigma), None


class StackedPdsg(nn.Module):
    """PDSG as published: all potentials are stacked again at every step, in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def forward(self, u: Tensor) -> Tensor:
        self.history.append(u.detach())
        sigma = torch.stack(self.history).std(dim=(0, 1, 3, 4), keepdim=True)[0]
        return Fire.apply(u, torch.where(sigma == 0, torch.ones_like(sigma), sigma))


@contextmanager
def stacked(victim: ModuleVictim):
    rules = [StackedPdsg() for _ in victim.neurons]
    with ExitStack() as stack:
        for neuron, rule in zip(victim.neurons, rules, strict=True):
            stack.enter_context(neuron.spiking_by(rule))
        yield
    for rule in rules:
        rule.history.clear()


def plain(
    victim: ModuleVictim, x: Tensor, y: int, fill: RowStreams, *, iterations: int = 500
) -> tuple[Tensor, bool]:
    """SDA on one sample [1, T, C, H, W], as the published code does it.

    Its passes are the published ones: in iteration n one forward and backward, n k0 forwards of single flips
    and one of all of them; then at most log2(flips) + 1 for the reduction.
    """
    passes = {"forwards": 0, "backwards": 0}

    def loss(z: Tensor) -> Tensor:
        others = torch.cat([z[:y], z[y + 1 :]])
        return torch.clamp(z[y] - others.max(), min=0)

    def forward(batch: Tensor) -> Tensor:
        passes["forwards"] += len(batch)
        with torch.no_grad(), stacked(victim):
            return victim.logits(batch)

    chosen = torch.zeros(x.numel(), dtype=torch.bool)
    effect = torch.full((x.numel(),), torch.inf)
    now = x.clone()
    for n in range(1, iterations + 1):
        passes["backwards"] += 1
        leaf = now.clone().requires_grad_(True)
        with stacked(victim):
            value = loss(victim.logits(leaf)[0])
            (grad,) = torch.autograd.grad(value, leaf)
        grad, flat = grad.flatten(), now.flatten()
        size = torch.where((1 - 2 * flat) * grad <= 0, grad.abs(), 0.0)
        least = size[size > 0].min() if bool((size > 0).any()) else torch.tensor(1.0)
        noise = fill.fork("fill", n).uniform((len(size),))[0]
        size = torch.where(size == 0, noise * least, size)
        size[chosen] = 0.0
        order = size.sort(descending=True, stable=True).indices[: n * K_INIT].tolist()
        changes: list[float] = []
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            batch = now.repeat(len(part), 1, 1, 1, 1)
            for i, at in enumerate(part):
                batch.view(len(part), -1)[i, at] = 1 - batch.view(len(part), -1)[i, at]
            logits = forward(batch)
            for i in range(len(part)):
                changes.append(float(loss(logits[i]) - value.detach()))
        for at, change in zip(order, changes, strict=True):
            if change <= TOL:
                chosen[at], effect[at] = True, abs(change) if abs(change) > TOL else 0.0
        now = torch.where(chosen.view_as(x), 1 - x, x)
        done = int(forward(now).argmax()) != y
        tried = K_INIT * n * (n + 1) // 2  # "about 5 n^2 forwards"
        assert passes == {"forwards": tried + n, "backwards": n} or tried > x.numel()
        if done:
            break
    else:
        return x, False
    passes["forwards"] = 0
    order = effect.sort(stable=True).indices[: int(chosen.sum())]
    low, high, final = 0, len(order) - 1, now
    while low <= high:
        middle = (low + high) // 2
        trial = now.clone()
        trial.view(-1)[order[: middle + 1]] = x.view(-1)[order[: middle + 1]]
        if int(forward(trial).argmax()) != y:
            final, low = trial, middle + 1
        else:
            high = middle - 1
    assert passes["forwards"] <= math.log2(len(order)) + 1
    return final, True


class Returned(Sda):
    """SDA that keeps what it returned, without the oracle's memory of closer hits, and its times."""

    def run(self, oracle, x0, y, *, rng):
        start, began = time.process_time(), time.perf_counter()
        x = super().run(oracle, x0, y, rng=rng)
        self.spent.append((time.process_time() - start, time.perf_counter() - began))
        self.kept.append(x)
        return x


class Bench:
    """One victim, the samples that it gets right, and both attacks on them."""

    def __init__(self, name: str) -> None:
        self.victim = load_victim(name)
        test = registry("datasets").get(name.removeprefix("lif_cnn.")).load("test")[:SAMPLES]
        right = self.victim.logits(test.x).argmax(dim=1) == test.y
        self.x, self.y, self.ids = test.x[right], test.y[right], test.ids[right]
        self.threat = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None, budget=PLENTY)
        self.attack = Returned(k_init=K_INIT, tol=TOL)

    def batched(self, part: slice = slice(None)) -> tuple[float, float, Tensor]:
        """Attack, shard by shard, and verify as the product does: processor time and wall clock of the
        attack alone, and what it returned."""
        object.__setattr__(self.attack, "spent", [])
        object.__setattr__(self.attack, "kept", [])
        for rows in torch.arange(len(self.x))[part].split(SHARD):
            x, y, ids = self.x[rows], self.y[rows], self.ids[rows]
            result = evaluate_shard(self.victim, self.attack, self.threat, x, y, ids)
            assert result.errors == [] and bool((result.status == 1).all())
        processor, wall = (sum(times) for times in zip(*self.attack.spent, strict=True))
        return processor, wall, torch.cat(self.attack.kept)

    def loop(self, part: slice = slice(None)) -> list[tuple[Tensor, bool]]:
        found = []
        for i in range(len(self.x))[part]:
            fill = RowStreams.derive(self.ids[i : i + 1], 0, "attack", "sda.l0")
            found.append(plain(self.victim, self.x[i : i + 1], int(self.y[i]), fill))
        return found


def unrolled_nodes(patch) -> None:
    patch.setattr(leaky, "is_plain", lambda node: False)


def all_steps(patch) -> None:
    patch.setattr(FlipEngine, "skips_earlier_steps", False)


def whole_passes(patch) -> None:
    patch.setattr(FlipEngine, "of", classmethod(lambda *_: None))


def candidates_not_pooled(patch) -> None:
    own = ModuleVictim.flip_logits

    def one_by_one(self, x, owner, index, value=None, *, noise=None):
        logits = x.new_empty(len(owner), self.spec.classes)
        for i in range(len(x)):
            mine = owner == i
            if mine.any():
                chosen = None if value is None else value[mine]
                logits[mine] = own(self, x[i : i + 1], torch.zeros_like(owner[mine]), index[mine], chosen)
        return logits

    patch.setattr(ModuleVictim, "flip_logits", one_by_one)


def finished_samples_stay(patch) -> None:
    """Samples that are done keep their place in every batch; what they cost is thrown away."""
    gradient, flips = Oracle.loss_and_grad, Oracle.flip_logits
    done: dict[str, Tensor] = {}

    def all_gradients(self, x, rows, loss, *, estimator):
        meter = oracle_module._METERS[self]
        idle = torch.ones(len(meter.x0), dtype=torch.bool)
        idle[rows] = False
        done["x"] = meter.x0[idle]
        if idle.any():
            meter.victim.loss_and_grad(meter.x0[idle], meter.y[idle], margin, estimator)
        return gradient(self, x, rows, loss, estimator=estimator)

    def all_flips(self, x, rows, owner, index, value=None):
        answers = flips(self, x, rows, owner, index, value)
        if len(done["x"]) and len(owner):
            k = int(owner.bincount().max())
            idle = torch.arange(len(done["x"])).repeat_interleave(k)
            again = index[:k].repeat(len(done["x"]))[: len(idle)]
            oracle_module._METERS[self].victim.flip_logits(done["x"], idle[: len(again)], again)
        return answers

    patch.setattr(Oracle, "loss_and_grad", all_gradients)
    patch.setattr(Oracle, "flip_logits", all_flips)


ARMS = {
    "as shipped": lambda patch: None,
    "without plain nodes in place": unrolled_nodes,
    "without skipping earlier steps": all_steps,
    "without patches (whole passes, pooled)": whole_passes,
    "without the active set": finished_samples_stay,
    "without pooling candidates of samples": candidates_not_pooled,
}


@pytest.mark.parametrize("name", VICTIMS)
def test_batched_sda_against_the_published_loop(benchmark, capsys, name: str) -> None:
    torch.set_num_threads(1)
    bench = Bench(name)
    loop, seconds = [], 0.0
    arms: dict[str, list[float]] = {arm: [] for arm in ARMS}
    kept, verified = {}, []
    # The loop and the arms take turns, so that whatever else the machine does falls on all of them, and
    # another arm comes first every time.
    size, order = -(-len(bench.x) // ROUNDS), list(ARMS)
    for start in range(0, len(bench.x), size):
        began = time.process_time()
        loop += bench.loop(slice(start, start + size))
        seconds += time.process_time() - began
        for arm in order:
            with pytest.MonkeyPatch.context() as patch:
                ARMS[arm](patch)
                began = time.process_time()
                spent, _, kept[arm] = bench.batched()
                arms[arm].append(spent)
                if arm == "as shipped":
                    verified.append(time.process_time() - began)
        order = order[2:] + order[:2]
    flips = torch.stack([(a != b).sum() for (a, _), b in zip(loop, bench.x, strict=True)])
    assert all(ok for _, ok in loop)
    lines = [f"{name}: {len(bench.x)} samples, all broken by both; one thread, processor time"]
    lines.append(f"{'plain loop':42s} {seconds:7.2f} s   median L0 {float(flips.double().median()):g}")
    for arm, times in arms.items():
        l0 = (kept[arm] != bench.x).flatten(1).sum(dim=1)
        assert int((flips - l0).abs().sum()) < 0.05 * int(flips.sum())
        ratio = seconds / statistics.median(times)
        benchmark.extra_info[arm] = ratio
        same = int((flips == l0).sum())
        lines.append(f"{arm:42s} {statistics.median(times):7.2f} s   {ratio:5.1f} x   same L0 on {same}")
    benchmark.extra_info["verified"] = seconds / statistics.median(verified)
    lines.append(
        f"{'as shipped, with verification':42s} {statistics.median(verified):7.2f} s   "
        f"{seconds / statistics.median(verified):5.1f} x"
    )
    for what, cores in (
        ("one process, two threads", on_threads),
        ("two processes, one thread each", on_processes),
    ):
        slow, fast, whole = cores(name)
        benchmark.extra_info[what] = slow / fast
        lines.append(
            f"wall clock, 2 cores, {what}: loop {slow:.2f} s, batched {fast:.2f} s, {slow / fast:.1f} x; "
            f"verified {whole:.2f} s, {slow / whole:.1f} x"
        )
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    benchmark.pedantic(bench.batched, rounds=1)


def on_threads(name: str) -> tuple[float, float, float]:
    """Return the wall clock of the loop, of batched SDA alone and verified: two torch threads."""
    return _workers(name, [(0, 1)], threads=2)


def on_processes(name: str) -> tuple[float, float, float]:
    """The same in two processes, each with half of the samples."""
    return _workers(name, [(0, 2), (1, 2)], threads=1)


def _workers(name: str, shares: list[tuple[int, int]], *, threads: int) -> tuple[float, float, float]:
    commands = [[sys.executable, __file__, name, str(i), str(of), str(threads)] for i, of in shares]
    started = [
        subprocess.Popen(c, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for c in commands
    ]
    worst = []
    for _ in ("ready", "loop", "batched", "batched", "batched"):
        answers = [[float(v) for v in process.stdout.readline().split()] for process in started]
        worst.append([max(column) for column in zip(*answers, strict=True)])
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in started:
        assert process.wait() == 0
    return worst[1][0], min(pair[0] for pair in worst[2:]), min(pair[1] for pair in worst[2:])


def _work(name: str, share: str, of: str, threads: str) -> None:
    """Answer every line on standard input with the seconds of the next measurement."""
    torch.set_num_threads(int(threads))
    bench = Bench(name)
    half = -(-len(bench.x) // int(of))
    part = slice(int(share) * half, (int(share) + 1) * half)
    bench.batched(part)  # warm up
    bench.loop(slice(part.start, part.start + 3))

    def tell(*seconds: float) -> None:
        sys.stdout.write(" ".join(map(str, seconds)) + "\n")
        sys.stdout.flush()
        sys.stdin.readline()

    tell(0.0)
    began = time.perf_counter()
    bench.loop(part)
    tell(time.perf_counter() - began)
    for _ in range(3):
        began = time.perf_counter()
        _, wall, _ = bench.batched(part)
        tell(wall, time.perf_counter() - began)


if __name__ == "__main__":
    _work(*sys.argv[1:])
