"""A cluster of three nodes on this machine: the bytes of a run in one process, whatever dies."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import robustspike.victims
from robustspike.bench.contract.registry import load_file
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.run.cluster import joined
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import Tick
from robustspike.bench.run.run import run
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import Plan
from robustspike.bench.suite.plan import make_plan
from tests.support.commands import robustspike as command
from tests.support.folders import contents

SUITE = """
name = "tiny"
samples = 12
shard = 2
attacks = [{ name = "fgsm.linf" }, { name = "noise" }%s]
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
"""

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
import os
from robustspike.bench.api import AttackSpec


@dataclass(frozen=True)
class Mine:
    """Darken, or leave."""
    leave: bool = False
    spec: ClassVar[AttackSpec] = AttackSpec(name="mine.%(name)s", geometries=("linf",), source="Test.")

    def run(self, oracle, x0, y, *, rng):
        if self.leave:
            os._exit(1)
        return oracle.project(x0 - oracle.radius, oracle.active()) if len(oracle.active()) == len(x0) else x0
'''


def plan_of(tmp_path: Path, more: str = "", **given: Any) -> Plan:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE % more)
    return make_plan(read_suite(str(path)), **given)


def test_without_ray_the_option_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed.*robustspike\[ray\]"):
        run(plan_of(tmp_path), Settings(out=tmp_path / "out"), cluster="local")


@pytest.mark.parametrize("address", ["quick", "node:", ":6379", "ray://node"])
def test_what_is_no_address_is_one_line(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=rf"--ray {address}: expected auto, HOST:PORT.*run SUITE --ray"):
        run(plan_of(tmp_path), Settings(out=tmp_path / "out"), cluster=address)


def test_processes_here_and_a_cluster_exclude_each_other(tmp_path: Path) -> None:
    plan_of(tmp_path)
    done = command("run", "suite.toml", "--ray", "--jobs", 2, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --jobs counts worker processes")
    assert not (tmp_path / "robustspike-results").exists()


def test_a_gpu_by_number_is_not_for_ray_to_give() -> None:
    pytest.importorskip("ray")
    with (
        pytest.raises(ConfigError, match=r"--device cuda:1 with --ray.*Give --device cuda"),
        joined("local", "cuda:1"),
    ):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> Iterator[Any]:
    import ray

    yield cluster
    ray.shutdown()
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()


@pytest.mark.slow
def test_three_nodes_write_the_bytes_of_one_process(tmp_path: Path, nodes: Any) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN % {"name": "darker"})
    load_file(plugin)
    plan = plan_of(tmp_path, ', { name = "mine.darker" }')
    run(plan, Settings(out=tmp_path / "one", plugins=(plugin,)))
    started = list[Cell]()
    run(
        plan,
        Settings(out=tmp_path / "many", plugins=(plugin,)),
        cluster=nodes.address,
        on_start=started.append,
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert set(started) == set(plan.cells)


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing(tmp_path: Path, nodes: Any) -> None:
    plan, victims = plan_of(tmp_path), list(nodes.worker_nodes)
    run(plan, Settings(out=tmp_path / "one"))

    def killed(tick: Tick) -> None:
        if victims and tick.done >= 2:
            nodes.remove_node(victims.pop(), allow_graceful=False)
            victims.clear()

    run(plan, Settings(out=tmp_path / "many"), cluster=nodes.address, on_tick=killed)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.slow
def test_a_task_that_kills_its_worker_is_an_error_of_its_own_cell(tmp_path: Path, nodes: Any) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN % {"name": "leaver"})
    load_file(plugin)
    plan = plan_of(tmp_path, ', { name = "mine.leaver", params = { leave = true } }', samples=2)
    records = run(plan, Settings(out=tmp_path / "out", plugins=(plugin,)), cluster=nodes.address)
    errors = {record.attack: record.counts["errors"] for record in records}
    assert errors["fgsm.linf"] == errors["noise"] == 0 and errors["mine.leaver"] == 2


@pytest.mark.slow
def test_a_node_with_another_key_stops_the_run(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    monkeypatch.setattr("robustspike.bench.run.run.identity", lambda *_, **__: ("0" * 32, {}, {}))
    with pytest.raises(ContractError, match=r"^node .* has another key there than on the driver"):
        run(plan, Settings(out=tmp_path / "out"), cluster=nodes.address)


@pytest.mark.slow
def test_a_node_without_this_package_stops_the_run(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_here = tmp_path / "only_here.py"
    only_here.write_text("def work(*_): return b''")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("robustspike.bench.run.cluster._work", importlib.import_module("only_here").work)
    only_here.unlink()
    with pytest.raises(ConfigError, match=r"^--ray: a node cannot import.*No module named 'only_here'"):
        run(plan_of(tmp_path), Settings(out=tmp_path / "out"), cluster=nodes.address)


@pytest.mark.slow
def test_a_relative_folder_of_weights_is_found_by_workers_elsewhere(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").mkdir()
    for path in Path(robustspike.victims.__file__).parent.glob("weights/lif_cnn.digits@1.*"):
        shutil.copy(path, tmp_path / "w" / path.name.replace("@1", "@77"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.toml").write_text(SUITE % "" + "seeds = [77]")
    plan = make_plan(read_suite("suite.toml"), samples=2, weights=Path("w"))
    for record in run(plan, Settings(out=tmp_path / "out", weights=Path("w")), cluster=nodes.address):
        assert not record.errors


@pytest.mark.slow
def test_a_driver_that_is_killed_is_resumed(tmp_path: Path, nodes: Any) -> None:
    plan = plan_of(tmp_path)
    run(plan, Settings(out=tmp_path / "one"))
    called = [sys.executable, "-m", "robustspike.bench.cli", "run", str(tmp_path / "suite.toml")]
    called += ["--out", str(tmp_path / "many"), "--ray", nodes.address]
    process = subprocess.Popen(called, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not list((tmp_path / "many").glob("shards/*/*")) and time.monotonic() < give_up:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(called, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(tmp_path / "one" / "records") == contents(tmp_path / "many" / "records")


@pytest.mark.slow
def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="no cluster answers"):
        run(plan_of(tmp_path), Settings(out=tmp_path / "out"), cluster="127.0.0.1:1")
