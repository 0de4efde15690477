"""What Ray costs: 500 small cells on a cluster of three nodes of this machine, against two processes.

    python tests/benchmarks/cluster.py [SAMPLES]

Runs one made-up suite (five victims of digits, five cheap attacks, ten radii, two seeds; SAMPLES (10) a
cell) with `jobs=2` and on a `ray.cluster_utils.Cluster` whose three nodes have two processors together, each
in a process of its own, and compares every file that they wrote. Prints a line each: seconds to start Ray,
wall and processor seconds of the run (the driver, workers and, with Ray, its own processes), then Ray's by
those of two processes. Workers import torch and load victims in both. One thread each; a minute on two idle
cores. Linux only.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from tests.support.folders import contents

SUITE = """
name = "cluster"
samples = {samples}
shard = {samples}
seeds = [0, 1]
attacks = [
  {{ name = "fgsm.linf" }},
  {{ name = "noise" }},
  {{ name = "bim.linf", params = {{ steps = 3 }} }},
  {{ name = "pgd.linf", params = {{ steps = 5 }} }},
  {{ name = "mifgsm.linf", params = {{ steps = 5 }} }},
]
"""
THREAT = '[[threats]]\ngeometry = "linf"\neps = "{eps}/100"\n'
VICTIM = '[[victims]]\nname = "{name}.digits"\n'
VICTIMS = ("lif_cnn", "plif_cnn", "if_cnn", "qcfs_cnn", "sew_net")
RADII = range(1, 11)
CELLS = 500

TICK = os.sysconf("SC_CLK_TCK")


def below(root: int) -> list[int]:
    """Return every process that descends from one, as Ray's nodes do from the process that starts them."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def processor_seconds() -> float:
    """Return what this process and all below it have taken, ended and waited for or running."""
    total = 0.0
    for process in below(os.getpid()):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) / TICK  # user and system, its own and of ended children
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return total + sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(way: str, folder: Path) -> dict[str, Any]:
    """Run the suite in one way, from this process; return what it took."""
    plan = make_plan(read_suite(str(folder / "suite.toml")))
    assert len(plan.cells) == CELLS
    how: dict[str, Any] = {"jobs": 2}
    start = time.monotonic()
    if way == "ray":
        import ray
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1)
        nodes.add_node(num_cpus=0)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
        how = {"cluster": nodes.address}
    began, taken = time.monotonic(), processor_seconds()
    run(plan, Settings(out=folder / way), **how)
    found = {
        "start": began - start,
        "wall": time.monotonic() - began,
        "processor": processor_seconds() - taken,
    }
    if way == "ray":
        ray.shutdown()
        nodes.shutdown()
    return found


def main(asked: list[str]) -> None:
    if asked[:1] == ["--one"]:
        print(json.dumps(measure(asked[1], Path(asked[2]))))  # noqa: T201
        return
    samples = int(asked[0]) if asked else 10
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        text = SUITE.format(samples=samples)
        text += "".join(THREAT.format(eps=eps) for eps in RADII)
        text += "".join(VICTIM.format(name=name) for name in VICTIMS)
        (folder / "suite.toml").write_text(text)
        found = {}
        for way in ("jobs", "ray"):
            command = [sys.executable, __file__, "--one", way, made]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[way] = taken = json.loads(out.splitlines()[-1])
            print(  # noqa: T201
                f"{way}: {CELLS} cells of {samples} samples: start {taken['start']:.1f} s; "
                f"run {taken['wall']:.1f} s wall, {taken['processor']:.1f} s processor",
                flush=True,
            )
        files = contents(folder / "jobs")
        assert files == contents(folder / "ray"), "the two runs wrote other bytes"
        wall, processor = (found["ray"][kind] / found["jobs"][kind] for kind in ("wall", "processor"))
        extra = (found["ray"]["processor"] - found["jobs"]["processor"]) / CELLS
    print(  # noqa: T201
        f"{len(files)} files, the same bytes. Ray by two processes: wall {wall:.2f}, processor "
        f"{processor:.2f}; {1000 * extra:.0f} ms of processor a cell more"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
