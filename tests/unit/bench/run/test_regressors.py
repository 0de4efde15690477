"""Quality models of other people, from a function to a row: evaluate with a score range."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustspike.bench.cli import main
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.record.store import Store
from robustspike.bench.record.store import record_folders
from robustspike.bench.run.network import Request
from robustspike.bench.run.network import look
from robustspike.bench.victim.regressor import Sized
from robustspike.bench.victim.regressor import one_score

SOURCE = '''
import torch
from torch import nn


class Sharp(nn.Module):
    """The mean squared step between neighbours: more detail, more score; [N], 0..1."""

    def forward(self, x):
        assert x.shape[-1] in (16, 32), "made for 16 or 32 pixels"
        grey = x.mean(dim=1)
        return (8 * (grey[:, :, 1:] - grey[:, :, :-1]).square().mean(dim=(1, 2))).sqrt().clamp(max=1)


class Blur(Sharp):
    """The same turned round: smaller is better, 10..0."""

    def forward(self, x):
        return 10 * (1 - super().forward(x))


class Closed(Sharp):
    """A metric that goes through numpy: it has no gradient."""

    def forward(self, x):
        return torch.from_numpy(super().forward(x).detach().numpy().copy())


class Spiking(nn.Module):
    """Two steps of spikes: [T, N, 1]."""

    def __init__(self):
        super().__init__()
        from spikingjelly.activation_based import layer, neuron
        torch.manual_seed(0)
        head = layer.Linear(4 * 30 * 30, 1)
        self.body = nn.Sequential(layer.Conv2d(3, 4, 3), neuron.IFNode(), layer.Flatten(), head)

    def forward(self, x):
        return torch.sigmoid(self.body(x))


def scripted():
    torch.manual_seed(0)
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(900, 1), nn.Sigmoid()))


class Two(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2]


two = Two
sharp, blur, closed, spiking = Sharp, Blur, Closed, Spiking
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: net.py, data.npz of twelve images of growing contrast, and the same as files."""
    home = tmp_path_factory.mktemp("user")
    (home / "net.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.5, 0.5, (12, 3, 32, 32))
    x = (0.5 + noise * np.linspace(0.1, 0.9, 12)[:, None, None, None]).astype(np.float32)
    y = np.linspace(1.5, 4.5, 12)
    np.savez(home / "data.npz", x=x, mos=y)
    (home / "pictures/more").mkdir(parents=True)
    lines = ["image,score"]
    for i, image in enumerate(x):
        name = f"more/{i}.png" if i % 2 else f"{i}.png"
        Image.fromarray((image * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(
            home / "pictures" / name
        )
        lines.append(f"{name},{y[i]}")
    (home / "pictures/scores.csv").write_text("\n".join(lines) + "\n")
    return home


def call(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["robustspike", *arguments])
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code
    out = capsys.readouterr()
    return int(code or 0), out.out + out.err


def request(folder: Path, which: str = "sharp", **changed: object) -> Request:
    given = {"data": f"{folder}/data.npz", "score_range": (0.0, 1.0)} | changed
    return Request(f"{folder}/net.py:{which}", **given)  # type: ignore[arg-type]


def test_a_quality_model_becomes_a_row_that_verifies(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    code, told = call(
        "evaluate", f"{folder}/net.py:blur", "--data", f"{folder}/data.npz", "--score-range", "10,0",
        "--eps", "4/255", "--attack", "quality.random_sign", "--attack", "quality.ifgsm", "--name", "blur",
        "--out", str(out), "--jobs", "1", capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0, told
    assert "rank correlation 1.000" in told
    records = {r.attack: r for r in (Store(out).read(f.name) for f in record_folders(out))}
    assert records.keys() == {"quality.random_sign", "quality.ifgsm"}
    attacked = records["quality.ifgsm"]
    assert attacked.threat.label == "linf 4/255 shift" and attacked.threat.levels == 255
    assert attacked.measures["score_range"] == [0, 10]
    assert all(0 <= row.clean_score <= 10 for row in attacked.rows)
    moved = np.mean([abs(row.adv_score - row.clean_score) for row in attacked.rows])
    control = np.mean([abs(row.adv_score - row.clean_score) for row in records["quality.random_sign"].rows])
    assert moved > 2 * control
    table = (out / "leaderboard.csv").read_text()
    assert "blur" in table and "missing_adaptive" not in table
    plugins = [part for path in sorted(out.glob("*.py")) for part in ("--plugin", str(path))]
    code, told = call(
        "verify",
        str(out),
        *plugins,
        "--weights",
        str(out / "weights"),
        capsys=capsys,
        monkeypatch=monkeypatch,
    )
    assert code == 0, told


def test_a_metric_without_a_gradient_is_attacked_through_its_scores(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    code, told = call(
        "evaluate", f"{folder}/net.py:closed", "--data", f"{folder}/pictures", "--score-range", "0,1",
        "--eps", "8/255", "--attack", "quality.ifgsm", "--attack", "quality.square(queries=60)",
        "--out", str(out), "--jobs", "1", capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0, told
    assert "gradient: none" in told
    (record,) = [Store(out).read(f.name) for f in record_folders(out)]
    assert record.attack == "quality.square" and not record.errors
    assert any(abs(row.adv_score - row.clean_score) > 0.01 for row in record.rows)


def test_direction_size_and_crops_are_the_users_to_say(folder: Path) -> None:
    up = look(request(folder)).victim
    down = look(request(folder, "blur", score_range=(10.0, 0.0))).victim
    x = torch.rand(3, 3, 32, 32)
    assert torch.allclose(down.logits(x), 10 * up.logits(x), atol=1e-5)
    wrong = look(request(folder, "blur", score_range=(0.0, 10.0)))
    assert any("larger number first" in line for line in wrong.told)
    small = look(request(folder, size=16)).victim
    middle = look(request(folder, size=16, crops=1)).victim
    four = look(request(folder, size=16, crops=4)).victim
    assert torch.allclose(middle.logits(x), up.logits(x[..., 8:24, 8:24].repeat(1, 1, 2, 2))[:, :1], atol=0.2)
    quarters = [x[..., i : i + 16, j : j + 16] for i in (0, 16) for j in (0, 16)]
    net = middle.module
    assert torch.allclose(four.logits(x), torch.stack([net(q) for q in quarters]).mean(0), atol=1e-6)
    assert not torch.allclose(small.logits(x), middle.logits(x))


def test_a_spiking_quality_model_is_averaged_over_time(folder: Path) -> None:
    found = look(request(folder, "spiking", steps=2))
    assert found.victim.spec.steps == 2 and len(found.victim.neurons) == 1
    assert found.victim.logits(torch.rand(3, 3, 32, 32)).shape == (3, 1)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"score_range": (0.0, 100.0), "which": "two"}, ContractError, r"one score per image.*\[4, 2\]"),
        ({"which": "scripted"}, ConfigError, "is TorchScript.*--checkpoint"),
        ({"score_range": (5.0, 9.0)}, ContractError, r"12 of 12 scores lie outside 5 to 9"),
        ({"score_range": (1.0, 1.0)}, ConfigError, "two different numbers"),
        ({"score_range": (0.0, 1.0, 2.0)}, ConfigError, "expected two numbers"),
        ({"crops": 3, "size": 16}, ConfigError, "square number"),
        ({"crops": 4, "size": 64}, ConfigError, "no larger than the images, 32x32"),
        ({"size": 20}, ContractError, "made for 16 or 32 pixels.*--input-size"),
        ({"data": "photopatch_iqa", "score_range": ()}, ConfigError, "say on which scale"),
        ({"data": "digits"}, ConfigError, "--score-range is for quality models"),
        ({"data": "FOLDER"}, ArtefactError, "no scores.csv"),
    ],
)
def test_what_does_not_fit_is_one_error(
    changed: dict[str, object], kind: type[Exception], message: str, folder: Path, tmp_path: Path
) -> None:
    given = {key: str(tmp_path) if value == "FOLDER" else value for key, value in changed.items()}
    with pytest.raises(kind, match=message):
        look(request(folder, str(given.pop("which", "sharp")), **given))


def test_a_list_of_images_names_files_of_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("image,score\n../a.png,3\n")
    with pytest.raises(ArtefactError, match="plain file name"):
        look(Request("torch.nn:Identity", str(tmp_path), score_range=(0.0, 1.0)))
    (tmp_path / "scores.csv").write_text("name,mos\na.png,3\n")
    with pytest.raises(ArtefactError, match="image,score"):
        look(Request("torch.nn:Identity", str(tmp_path), score_range=(0.0, 1.0)))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1, 1), (3, 5, 1)])
def test_scores_are_found_in_whatever_is_answered(shape: tuple[int, ...]) -> None:
    assert one_score(torch.zeros(shape)).shape == (5, 1)
    assert one_score((torch.zeros(shape), None)).shape == (5, 1)


@pytest.mark.parametrize("wrong", [torch.zeros(5, 2), {"score": 1}, torch.zeros(2, 5, 3), None])
def test_anything_else_is_no_score(wrong: object) -> None:
    with pytest.raises(ContractError, match="one score per image"):
        one_score(wrong)


def test_crops_lie_on_an_even_grid_up_to_the_borders() -> None:
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean(dim=(1, 2, 3))[:, None]

    x = torch.arange(7 * 9.0).view(1, 1, 7, 9)
    Sized(Spy(), 3, 9)(x)
    corners = seen[0][:, 0, 0, 0].tolist()
    assert corners == [0, 3, 6, 18, 21, 24, 36, 39, 42]


class StandIn(nn.Module):
    """What pyiqa.create_metric gives: an object that switches gradients off, around a network."""

    def __init__(self, mode: str, score_range: str | None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.AdaptiveAvgPool1d(1))
        self.metric_mode, self.lower_better, self.score_range = mode, True, score_range

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.net(x)


def pyiqa_of(*, mode: str = "NR", score_range: str | None = "~-5, ~5") -> types.ModuleType:
    made = types.ModuleType("pyiqa")

    def create_metric(name: str, device: torch.device) -> StandIn:
        if name != "made_up":
            raise KeyError(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return StandIn(mode, score_range).to(device)

    made.create_metric = create_metric  # type: ignore[attr-defined]
    made.list_models = lambda mode: ["made_up"]  # type: ignore[attr-defined]
    return made


def test_a_metric_of_pyiqa_is_a_victim_with_its_scale_and_gradient(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa_of())
    code, told = call(
        "evaluate", "pyiqa:made_up", "--data", str(shutil.copy(folder / "data.npz", tmp_path / "own.npz")),
        "--eps", "2/255",
        "--attack", "quality.ifgsm", "--out", str(tmp_path), "--jobs", "1",
        capsys=capsys, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0, told
    (record,) = [Store(tmp_path).read(f.name) for f in record_folders(tmp_path)]
    assert record.victim == "pyiqa.made_up" and record.measures["score_range"] == [-5, 5]
    assert all(row.adv_score != row.clean_score for row in record.rows)
    net = pyiqa_of().create_metric("made_up", torch.device("cpu")).net
    x = torch.rand(3, 3, 32, 32)
    found = look(Request("pyiqa:made_up", f"{folder}/data.npz")).victim
    assert torch.allclose(found.logits(x), -net(x).view(3, 1), atol=1e-6)  # smaller was better


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (None, "made_up", r"cannot be imported \(ModuleNotFoundError.*robustspike\[iqa\]"),
        (pyiqa_of(), "other", r"cannot make it \(KeyError.*without a reference image: made_up"),
        (pyiqa_of(mode="FR"), "made_up", "needs a reference image"),
    ],
)
def test_pyiqa_that_is_absent_or_lacks_the_metric_is_one_error(
    module: types.ModuleType | None, name: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    with pytest.raises(ConfigError, match=message):
        look(Request(f"pyiqa:{name}", f"{folder}/data.npz"))


def test_any_exception_of_its_import_is_absence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyiqa.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    with pytest.raises(ConfigError, match="RuntimeError: operator torchvision::nms"):
        look(Request("pyiqa:made_up", f"{folder}/data.npz"))


def test_a_metric_that_states_no_scale_asks_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa_of(score_range=None))
    with pytest.raises(ConfigError, match="--score-range WORST,BEST"):
        look(Request("pyiqa:made_up", "photopatch_iqa"))
    with pytest.raises(ConfigError, match="--score-range WORST,BEST"):
        look(Request("pyiqa:made_up", f"{folder}/data.npz"))
