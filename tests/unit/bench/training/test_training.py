"""The training loop: deterministic, resumable after a kill, honest about what it kept."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import Combined
from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Progress
from robustspike.bench.api import Report
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import fit
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import registry
from robustspike.bench.training import train as training
from robustspike.bench.training.weights import weights_of

SCHEDULE = Schedule(epochs=4, batch=16, lr=1e-2)


def blobs(n: int, salt: str) -> Split:
    y = torch.arange(n) % 3
    x = torch.rand(n, 1, 2, 2, generator=generator("blobs", salt)) * 0.5
    x[:, 0, 0, 0] += (y == 1) * 0.4
    x[:, 0, 1, 1] += (y == 2) * 0.4
    return Split(x, y, torch.arange(n))


TRAIN, VALIDATION = blobs(64, "train"), blobs(30, "validation")


def network() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    initialise(module, generator("network"))
    return module


def loss_of(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = module(x)
    return nn.functional.cross_entropy(logits, y), logits


def plain(step: Step) -> Terms:
    return {"loss": step.loss(step.x, step.y)[0]}


def train(module: nn.Module, schedule: Schedule = SCHEDULE, *, terms=plain, **options) -> Report:
    return fit(module, TRAIN, VALIDATION, schedule=schedule, terms=terms, loss_of=loss_of, seed=0, **options)


def weights(module: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in module.state_dict().values()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


class Killed(Exception):
    """Stands for a kill after an epoch's checkpoint was written."""


def kill_after(epoch: int) -> Callable[[Step], None]:
    steps = iter(range(10**6))

    def after_step(step: Step) -> None:
        if next(steps) == epoch * 4 + 1:  # in the middle of the following epoch (4 steps each)
            raise Killed

    return after_step


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_killed_and_resumed_run_gives_identical_weights(tmp_path: Path, epoch: int, optimiser: str) -> None:
    schedule = dataclasses.replace(SCHEDULE, optimiser=optimiser)
    whole, resumed = network(), network()
    expected = train(whole, schedule)
    with pytest.raises(Killed):
        train(network(), schedule, checkpoint=tmp_path / "c", after_step=kill_after(epoch))
    assert (tmp_path / "c").exists()
    epochs: list[int] = []
    report = train(resumed, schedule, checkpoint=tmp_path / "c", progress=lambda p: epochs.append(p.epoch))
    assert epochs[0] == epoch + 1  # it did go on and not start again
    assert same(whole, resumed)
    assert report == expected
    finished = network()
    assert (
        train(finished, schedule, checkpoint=tmp_path / "c", progress=lambda p: epochs.append(0)) == expected
    )
    assert same(whole, finished) and 0 not in epochs  # killed after the last epoch: nothing left to train


def test_a_run_killed_while_it_is_saved_trains_no_epoch_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = registry("victims").get("lif_cnn.digits", widths=(2, 2), schedule={"epochs": 1})
    rule, seen = registry("defenses").get("none"), []
    _, expected = training.train(recipe, rule, out=tmp_path / "whole")

    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "save", dying)
        training.train(recipe, rule, out=tmp_path / "w")
    _, certificate = training.train(recipe, rule, out=tmp_path / "w", progress=seen.append)
    assert not seen and certificate == expected
    files = {path.name for path in (tmp_path / "w").iterdir()}
    name = weights_of(recipe)
    assert files == {f"{name}.json", f"{name}.safetensors"}


def test_two_runs_are_bit_identical_and_another_seed_is_not() -> None:
    one, two, other = network(), network(), network()
    train(one)
    train(two)
    fit(other, TRAIN, VALIDATION, schedule=SCHEDULE, terms=plain, loss_of=loss_of, seed=1)
    assert same(one, two)
    assert not same(one, other)


def test_training_does_not_touch_the_global_generator() -> None:
    module = network()
    before = torch.get_rng_state()
    train(module)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", ["identity", "seed", "schedule"])
def test_checkpoint_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(Killed):
        train(network(), checkpoint=tmp_path / "c", after_step=kill_after(1))
    options = {"identity": "weight=2"} if change == "identity" else {}
    schedule = dataclasses.replace(SCHEDULE, lr=2e-2) if change == "schedule" else SCHEDULE
    with pytest.raises(ArtefactError, match="another training run"):
        fit(
            network(),
            TRAIN,
            VALIDATION,
            schedule=schedule,
            terms=plain,
            loss_of=loss_of,
            seed=1 if change == "seed" else 0,
            checkpoint=tmp_path / "c",
            **options,
        )


@pytest.mark.parametrize("content", [b"", b"hello", b"not a checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04"])
def test_corrupt_checkpoint_is_an_artefact_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ArtefactError, match="checkpoint"):
        train(network(), checkpoint=tmp_path / "c")


def test_truncated_checkpoint_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(network(), checkpoint=tmp_path / "c", after_step=kill_after(1))
    content = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtefactError, match="not a readable training checkpoint"):
        train(network(), checkpoint=tmp_path / "c")


def test_a_checkpoint_with_a_flipped_bit_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(network(), checkpoint=tmp_path / "c", after_step=kill_after(1))
    content = bytearray((tmp_path / "c").read_bytes())
    with zipfile.ZipFile(tmp_path / "c") as archive:
        (pickled,) = (info for info in archive.infolist() if info.filename.endswith("data.pkl"))
    content[pickled.header_offset + pickled.file_size] ^= 1
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ArtefactError, match="not a readable training checkpoint"):
        train(network(), checkpoint=tmp_path / "c")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"--out .* cannot be used"):
        training.train(
            registry("victims").get("lif_cnn.digits"), registry("defenses").get("none"), out=tmp_path / place
        )


def test_diverged_training_says_which_term_and_when() -> None:
    def bad(step: Step) -> Terms:
        return {**plain(step), "penalty": torch.tensor(float("nan"))}

    def unreached(step: Step) -> None:
        raise AssertionError("a step was taken on a loss that is not finite")

    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(ConfigError, match=r"'penalty' is nan in epoch 1, step 1"):
        train(module, terms=bad, before_step=unreached)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    "change",
    [{"epochs": -1}, {"batch": 0}, {"patience": -1}, {"lr": 0.0}, {"lr": float("inf")}, {"lr": float("nan")}],
)
def test_an_unusable_schedule_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="schedule: epochs"):
        dataclasses.replace(SCHEDULE, **change)


@pytest.mark.parametrize("change", [{"optimiser": "adamm"}, {"policy": "cosin"}])
def test_a_misspelt_optimiser_or_policy_is_refused_by_name(change: dict[str, str]) -> None:
    (key, value), *_ = change.items()
    with pytest.raises(ConfigError, match=f"'{key}'.* expected .*, got '{value}'"):
        registry("victims").get("lif_cnn.digits", schedule={"epochs": 1, **change})


@pytest.mark.parametrize("empty", ["training", "validation"])
def test_an_empty_split_is_refused_and_not_trained_on(empty: str) -> None:
    splits = [TRAIN[:0], VALIDATION] if empty == "training" else [TRAIN, VALIDATION[:0]]
    with pytest.raises(ConfigError, match=f"0 {empty}"):
        fit(network(), *splits, schedule=SCHEDULE, terms=plain, loss_of=loss_of, seed=0)


def test_a_run_that_no_checkpoint_could_be_kept_of_is_refused_before_it_starts() -> None:
    steps: list[Step] = []
    with pytest.raises(ConfigError, match="none of the 4 epochs"):
        train(network(), eligible=lambda epoch, epochs: epoch > epochs, before_step=steps.append)
    assert not steps


def test_a_batch_of_one_is_plain_stochastic_descent() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    report = train(module, dataclasses.replace(SCHEDULE, batch=1, epochs=1))
    assert report.forwards == len(TRAIN) and all(torch.isfinite(p).all() for p in module.parameters())


def test_best_validation_checkpoint_is_kept_and_only_among_eligible_epochs() -> None:
    seen: list[tuple[float, float]] = []

    def score(module: nn.Module, split: Split) -> tuple[float, float]:
        seen.append((0.9, 0.0) if len(seen) == 0 else (0.5 + 0.01 * len(seen), 0.0))
        return seen[-1]

    assert train(network(), score=score).best_epoch == 1
    seen.clear()
    late = train(network(), score=score, eligible=lambda epoch, epochs: epoch >= epochs // 2)
    assert late.best_epoch == 4


@pytest.mark.parametrize(
    ("values", "best"),
    [((-0.5, -0.2, -0.4), 2), ((-3.0, -4.0, -5.0), 1), ((math.nan,) * 3, 3), ((math.nan, -1.0, math.nan), 2)],
)
def test_scores_below_zero_and_unknown_ones_choose_a_trained_checkpoint(
    values: tuple[float, ...], best: int
) -> None:
    left, losses = iter(values), iter((0.3, 0.2, 0.1))
    module = network()
    before = weights(module)
    report = train(
        module, dataclasses.replace(SCHEDULE, epochs=3), score=lambda *_: (next(left), next(losses))
    )
    assert report.best_epoch == best
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))


def test_patience_stops_early_but_not_before_a_first_checkpoint() -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=10, patience=2)
    worse = iter(range(100))
    report = train(network(), schedule, score=lambda m, s: (1 / (1 + next(worse)), 0.0))
    assert (report.best_epoch, len(report.history)) == (1, 3)
    never = train(network(), schedule, eligible=lambda epoch, epochs: epoch >= 8)
    assert len(never.history) == 10


def test_progress_reports_every_term_and_the_passes_are_counted() -> None:
    def two(step: Step) -> Terms:
        x = step.x.detach().clone().requires_grad_(True)
        loss, logits = step.loss(x, step.y)
        assert step.input_gradient(logits, x, keep_graph=True).shape == x.shape
        return {"loss": loss, "size": logits.square().mean()}

    seen: list[Progress] = []
    report = train(network(), terms=two, progress=seen.append)
    assert [set(p.terms) for p in seen] == [{"loss", "size"}] * 4
    assert report.forwards == 4 * 64  # one forward a sample and epoch
    assert report.backwards == 2 * 4 * 64  # the input gradient and the optimiser's


class Noisy(nn.Module):
    """Adds noise from the streams it is handed."""

    draws_noise = True

    def __init__(self) -> None:
        super().__init__()
        self.noise: RowStreams | None = None
        self.drawn: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        self.drawn.append(self.noise.normal(x.shape[1:]))
        return x + 0.1 * self.drawn[-1]


def test_stochastic_modules_get_fresh_noise_each_pass_and_training_stays_deterministic() -> None:
    nets = [nn.Sequential(Noisy(), network()) for _ in range(2)]
    for net in nets:
        train(net)
    assert same(*nets)
    drawn = nets[0][0].drawn
    assert not torch.equal(drawn[0], drawn[1])
    assert nets[0][0].noise is None


@dataclasses.dataclass(frozen=True)
class Shift(DefenseBase):
    """Trains on shifted points."""

    by: float = 0.1
    spec = DefenseSpec(name="shift", trains=True, adaptive=("eot",), source="Test.")

    def points(self, step: Step) -> Tensor:
        return step.x + self.by


@dataclasses.dataclass(frozen=True)
class Small(DefenseBase):
    """Penalises large logits."""

    weight: float = 0.1
    spec = DefenseSpec(name="small", trains=True, adaptive=("eot", "straight_through"), source="Test.")

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        return {"small": self.weight * logits.square().mean()}


@dataclasses.dataclass(frozen=True)
class Whole(DefenseBase):
    """Defines its whole loss."""

    spec = DefenseSpec(name="whole", trains=True, source="Test.")

    def terms(self, step: Step) -> Terms:
        return plain(step)


def test_combined_defense_takes_points_and_penalties_of_its_parts() -> None:
    both = Combined((Shift(), Small(), Small(weight=0.2)))
    step = Step(network(), TRAIN.x[:8], TRAIN.y[:8], generator("s"), 0, loss_of)
    terms = both.terms(step)
    loss, logits = step.loss(step.x + 0.1, step.y)
    assert torch.allclose(terms["loss"], loss)
    assert torch.allclose(terms["small"], 0.3 * logits.square().mean())
    assert both.spec.adaptive == ("eot", "straight_through")
    with pytest.raises(ConfigError, match="'whole' defines its whole loss"):
        Combined((Whole(), Small()))
