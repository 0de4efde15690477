"""What a GPU makes of it, in ten minutes: the same verdicts, speed, waiting, training, a suite.

    python tests/benchmarks/gpu.py --data DIR [--device cuda] [--minutes 10] [--out FILE]
    python tests/benchmarks/gpu.py --device cpu --smoke

Five parts, each within its share of the minutes; a part that has no time left is skipped, and says so.

- equality: attacks on shipped victims, once on the CPU and once on the device: samples whose verdicts differ,
  and the largest difference of clean logits.
- speed: samples attacked a second by PGD-20 and the standard verdict (VGG-11, 3x32x32, T = 4) and by SDA
  (VGGSNN, 2x128x128, T = 10), of random weights, in shards that double until they fill their time; memory.
- waiting: of one PGD-20 and one SDA under torch's profiler, the events that make the host wait for the
  device, a step; and the share of wall time in which the device ran no kernel.
- training: VGG-11 on CIFAR-10 in bfloat16 by `robustspike train`, as many epochs as fit.
- suite: `robustspike run cifar10 --samples 500`, as far as it comes.

Prints a JSON line a part, and writes them to --out. With --smoke, tiny networks and sizes stand in, and no
data is needed: what runs is the same.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile

from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack.result import ROBUST
from robustspike.bench.contract.calls import parse_call

PIXELS = ThreatModel(eps=Fraction(8, 255))
FLIPS = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None)
WAITS = {
    "cuda": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    "cpu": ("aten::_local_scalar_dense", "aten::nonzero"),
}
"""Events in which the host waits; on a CPU those that would: a value read, indices of unknown number."""

SUITE = """
name = "smoke"
samples = 2
shard = 2
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "fgsm.linf"
"""


@dataclass(frozen=True)
class Sizes:
    """What is measured on, and how much of it."""

    device: str
    data: Path | None
    smoke: bool

    @property
    def checked(self) -> int:
        """Samples of the comparison between devices."""
        return 4 if self.smoke else 250

    @property
    def pgd(self) -> str:
        return f"pgd.linf(steps={2 if self.smoke else 20})"

    @property
    def verdict(self) -> str:
        return f"autoattack.snn(level={'quick' if self.smoke else 'standard'})"

    def image_net(self) -> ModuleVictim:
        return self._net("lif_cnn.digits" if self.smoke else "vgg11.cifar10")

    def event_net(self) -> ModuleVictim:
        return self._net("lif_cnn.digits_events" if self.smoke else "vggsnn.dvs_gesture")

    def _net(self, name: str) -> ModuleVictim:
        recipe = registry("victims").get(name)
        return ModuleVictim(recipe.build(generator("gpu")).eval(), recipe.spec()).to(self.device)


def inputs(victim: ModuleVictim, n: int) -> tuple[Tensor, Tensor]:
    """Return random inputs of a network, and its own answers as labels."""
    x = RowStreams.derive(range(n), "gpu").uniform(victim.spec.shape)
    if victim.spec.domain is Domain.SPIKES:
        x = (x < 0.05).float()
    x = x.to(victim.device)
    with torch.no_grad():
        return x, victim.logits(x).argmax(dim=1)


def chosen(call: str) -> Any:
    """Return an attack by "name(key=value)"."""
    name, params = parse_call(call)
    return registry("attacks").get(name, **params)


def timed(victim: ModuleVictim, call: str, threat: ThreatModel, n: int) -> float:
    """Attack one shard and return the seconds it took."""
    attack = chosen(call)
    x, y = inputs(victim, n)
    start = time.perf_counter()
    result = evaluate_shard(victim, attack, threat, x, y, torch.arange(n))
    seconds = time.perf_counter() - start
    assert not result.errors, result.errors
    return seconds


def equality(sizes: Sizes, until: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, call, threat in (
        ("lif_cnn.digits", sizes.pgd, ThreatModel(eps=Fraction(1, 10))),
        ("qcfs_cnn.digits", sizes.pgd, ThreatModel(eps=Fraction(1, 10))),
        ("lif_cnn.digits", sizes.verdict, ThreatModel(eps=Fraction(1, 10))),
        ("lif_cnn.digits_events", "sda.l0", FLIPS),
    ):
        if time.monotonic() > until:
            break
        recipe = registry("victims").get(name)
        split = registry("datasets").get(recipe.dataset).load("test")[: sizes.checked]
        sides, logits = [], []
        for device in ("cpu", sizes.device):
            victim = load_victim(name).to(device)
            with torch.no_grad():
                logits.append(victim.logits(split.x.to(device)).cpu())
            attack = chosen(call)
            sides.append(evaluate_shard(victim, attack, threat, split.x, split.y, split.ids))
        differ = int((sides[0].status.cpu() != sides[1].status.cpu()).sum())
        found[f"{name} {call}"] = {
            "samples": len(split.x),
            "robust": [int((side.status == ROBUST).sum()) for side in sides],
            "verdicts_differ": differ,
            "logits_differ": float((logits[0] - logits[1]).abs().max()),
        }
    return found


def speed(sizes: Sizes, until: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cases = (
        (sizes.image_net, sizes.pgd, PIXELS),
        (sizes.image_net, sizes.verdict, PIXELS),
        (sizes.event_net, "sda.l0", FLIPS),
    )
    for place, (net, call, threat) in enumerate(cases):
        victim, n, own = net(), 2 if sizes.smoke else 16, until - time.monotonic()
        own /= len(cases) - place
        timed(victim, call, threat, 2)  # kernels are chosen and compiled
        name = f"{victim.spec.name} {call}"
        start = time.monotonic()
        while True:
            try:
                seconds = timed(victim, call, threat, n)
            except torch.cuda.OutOfMemoryError:
                found.setdefault(name, {})["out_of_memory_at"] = n
                break
            found[name] = {"shard": n, "samples_a_second": n / seconds, **_memory(sizes.device)}
            if sizes.smoke or n >= 4096 or time.monotonic() - start + 2.5 * seconds > own:
                break
            n *= 2
    return found


def _memory(device: str) -> dict[str, float]:
    return {"peak_gb": torch.cuda.max_memory_allocated() / 2**30} if device.startswith("cuda") else {}


def waiting(sizes: Sizes, until: float) -> dict[str, Any]:
    del until
    n = 2 if sizes.smoke else 64
    image_net, event_net = sizes.image_net(), sizes.event_net()
    few, many = (2, 4) if sizes.smoke else (4, 24)
    short = profiled(image_net, f"pgd.linf(steps={few})", PIXELS, n)
    long = profiled(image_net, f"pgd.linf(steps={many})", PIXELS, n)
    a_step = (sum(long["waits"].values()) - sum(short["waits"].values())) / (many - few)
    name = f"{image_net.spec.name} pgd.linf(steps={many})"
    return {
        name: long | {"waits_a_step": a_step},
        f"{event_net.spec.name} sda.l0": profiled(event_net, "sda.l0", FLIPS, n),
    }


def profiled(victim: ModuleVictim, call: str, threat: ThreatModel, n: int) -> dict[str, Any]:
    """Attack one shard twice, the second time under the profiler: waits, and the share of time idle."""
    kind = victim.device.type
    timed(victim, call, threat, n)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kind == "cuda" else [])]
    with profile(activities=activities) as seen:
        seconds = timed(victim, call, threat, n)
    events = seen.key_averages()
    waits = {event.key: event.count for event in events if event.key in WAITS[kind]}
    busy = sum(event.self_device_time_total for event in events) / 1e6
    return {"samples": n, "waits": waits, "idle_share": 1 - busy / seconds if kind == "cuda" else None}


def robustspike(*words: object, seconds: float) -> tuple[int | None, str]:
    """Run the command line, stopped as by Ctrl-C when its time is over; exit code (None: stopped), output."""
    command = [sys.executable, "-m", "robustspike.bench.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said, _ = process.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate()
            return None, said
        return process.returncode, said


def training(sizes: Sizes, until: float) -> dict[str, Any]:
    name = "lif_cnn.digits" if sizes.smoke else "vgg11.cifar10"
    if not sizes.smoke and sizes.data is None:
        return {"skipped": "needs --data DIR with CIFAR-10"}
    words = ["train", name, "--device", sizes.device, "--bf16"]
    words += ["--share", "0.05"] if sizes.smoke else ["--data", str(sizes.data)]
    with tempfile.TemporaryDirectory() as out:
        start = time.monotonic()
        first = [*words, "--epochs", "1", "--out", f"{out}/one"]
        code, said = robustspike(*first, seconds=until - start)
        one = time.monotonic() - start
        if code != 0:
            return {"exit_code": code, "said": said.splitlines()[-1:]}
        epochs = 1 if sizes.smoke else int((until - time.monotonic()) * 0.9 / one)
        if epochs > 1:
            words = [*words, "--epochs", str(epochs), "--out", f"{out}/many"]
            start = time.monotonic()
            code, said = robustspike(*words, seconds=until - start)
            one = (time.monotonic() - start) / epochs
    return {"victim": name, "epochs": max(1, epochs), "seconds_an_epoch": one, "said": said.splitlines()[-2:]}


def suite(sizes: Sizes, until: float) -> dict[str, Any]:
    if not sizes.smoke and sizes.data is None:
        return {"skipped": "needs --data DIR with CIFAR-10"}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "smoke.toml", Path(folder) / "results"
        path.write_text(SUITE)
        words: list[object] = [path] if sizes.smoke else ["cifar10", "--samples", 500, "--data", sizes.data]
        words = ["run", *words, "--device", sizes.device, "--jobs", 1, "--out", out]
        start = time.monotonic()
        code, said = robustspike(*words, seconds=until - start)
        cells = len(list((out / "records").glob("[!.]*")))
    seconds = time.monotonic() - start
    return {"exit_code": code, "cells": cells, "seconds": seconds, "said": said.splitlines()[-1:]}


PARTS: dict[str, tuple[Callable[[Sizes, float], dict[str, Any]], float]] = {
    "equality": (equality, 0.12),
    "speed": (speed, 0.36),
    "waiting": (waiting, 0.08),
    "training": (training, 0.22),
    "suite": (suite, 0.22),
}
"""Parts, and what share of the minutes each has; what one leaves the next ones have too."""


def main(asked: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, help="Folder with CIFAR-10.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", choices=PARTS, action="append", help="Parts to run; default: all.")
    parser.add_argument("--smoke", action="store_true", help="Tiny sizes that a CPU does in a minute.")
    parser.add_argument("--out", type=Path, help="Write the lines to this file, too.")
    given = parser.parse_args(asked)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device: use --device cpu --smoke.")
    sizes = Sizes(given.device, given.data, given.smoke)
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else "CPU"
    lines = [json.dumps({"device": name, "torch": torch.__version__, "smoke": given.smoke})]
    print(lines[-1], flush=True)  # noqa: T201
    start, end = time.monotonic(), 0.0
    for part, (measure, share) in PARTS.items():
        end += 60 * given.minutes * share
        if given.only and part not in given.only:
            continue
        began = time.monotonic()
        if began - start > end:
            found: dict[str, Any] = {"skipped": "no time was left"}
        else:
            try:
                found = measure(sizes, start + end)
            except Exception as error:  # noqa: BLE001  (the other parts are still worth their time)
                found = {"failed": f"{type(error).__name__}: {error}"}
        lines.append(json.dumps({part: found, "seconds": round(time.monotonic() - began, 1)}))
        print(lines[-1], flush=True)  # noqa: T201
        if given.out is not None:
            given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
