"""Digit events: the sensor model, the data set, its cache, and the event victims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from robustspike.bench import files
from robustspike.bench.api import ArtefactError
from robustspike.bench.api import ConfigError
from robustspike.bench.api import RowStreams
from robustspike.bench.api import check_victim
from robustspike.bench.api import load_victim
from robustspike.bench.data.events.digit_events import DARK
from robustspike.bench.data.events.digit_events import DigitEvents
from robustspike.bench.data.events.digit_events import pack
from robustspike.bench.data.events.digit_events import scenes
from robustspike.bench.data.events.digit_events import unpack
from robustspike.bench.data.events.events import EVENT
from robustspike.bench.data.events.events import bin_events
from robustspike.bench.data.events.events import recording
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.data.events.sensor import resized
from robustspike.bench.data.events.sensor import saccades
from robustspike.bench.data.events.sensor import shifted

DURATION, SUBSTEPS = 300_000, 60
VICTIMS = (
    "lif_cnn.digits_events",
    "lif_cnn.digits_events_t8",
    "plif_cnn.digits_events",
    "rate_only.digits_events",
)


def digits(n: int) -> np.ndarray:
    x = np.arange(n * 64).reshape(n, 8, 8)
    return np.floor((np.sin(x * 12.9898) * 43758.5453 % 1) * 17) / 16


def record(images: np.ndarray, sensor: Sensor, seed: int = 0) -> list[np.ndarray]:
    streams = RowStreams.derive(range(len(images)), seed)
    return sensor.record(scenes(images), steps=SUBSTEPS, duration=DURATION, streams=streams, dark=DARK)


def ramp(values: list[float]) -> list[np.ndarray]:
    return [np.full((1, 1, 1), value) for value in values]


def test_a_blank_image_gives_no_event() -> None:
    assert len(record(np.zeros((1, 8, 8)), Sensor())[0]) == 0


def test_events_are_sorted_and_inside_the_recording() -> None:
    for events in record(digits(3), Sensor(mismatch=0.1, background=2.0)):
        assert len(events) > 50
        assert (np.diff(events["t"]) >= 0).all()
        assert events["t"].min() >= 0 and events["t"].max() < DURATION


@pytest.mark.parametrize("mismatch", [0.0, 0.1])
def test_events_reconstruct_the_log_intensity_to_within_one_threshold(mismatch: float) -> None:
    images, sensor = digits(3), Sensor(threshold=0.5, mismatch=mismatch)
    frames = [np.log(seen + DARK) for seen in scenes(images)]
    streams = RowStreams.derive(range(3), 0)
    on, off = sensor._thresholds(frames[0].shape, streams)
    stop = 37  # in the middle of the path, so that the change is not zero
    found = sensor.record(iter(frames[: stop + 1]), steps=stop, duration=DURATION, streams=streams)
    change = frames[stop] - frames[0]
    assert np.abs(change).max() > 1
    for row, events in enumerate(found):
        counts = bin_events(events, steps=1, window=DURATION, size=(16, 16))[0]
        rebuilt = (
            np.broadcast_to(on[row], (16, 16)) * counts[1] - np.broadcast_to(off[row], (16, 16)) * counts[0]
        )
        assert (np.abs(rebuilt - change[row]) < np.maximum(on[row], off[row]) + 1e-9).all()


def test_a_ramp_gives_one_event_per_threshold_at_its_crossing() -> None:
    streams = RowStreams.derive([0], 0)
    scene = ramp([0.0, 1.0, 2.6])
    (events,) = Sensor(threshold=0.5).record(iter(scene), steps=2, duration=2000, streams=streams)
    assert events["p"].tolist() == [1] * 5
    # Levels 0.5 and 1 in the first millisecond; 1.5, 2 and 2.5 at (level - 1) / 1.6 of the second.
    assert events["t"].tolist() == [500, 1000, 1312, 1625, 1937]
    (falling,) = Sensor(threshold=0.5).record(
        iter([-frame for frame in scene]), steps=2, duration=2000, streams=streams
    )
    assert falling["p"].tolist() == [0] * 5
    assert falling["t"].tolist() == events["t"].tolist()


def test_scaling_light_and_thresholds_together_changes_nothing() -> None:
    frames = [np.log(seen + DARK) for seen in scenes(digits(2))]
    streams = RowStreams.derive(range(2), 0)
    plain = Sensor(threshold=0.5).record(iter(frames), steps=SUBSTEPS, duration=DURATION, streams=streams)
    doubled = Sensor(threshold=1.0).record(
        iter([2 * frame for frame in frames]), steps=SUBSTEPS, duration=DURATION, streams=streams
    )
    for a, b in zip(plain, doubled, strict=True):
        assert np.array_equal(a, b)


def test_a_mirrored_image_and_path_give_mirrored_events() -> None:
    images, path = resized(digits(2), 16), saccades(2.5, SUBSTEPS)
    flip = np.array([1.0, -1.0])
    plain = [np.log(shifted(images, offset) + 0.2) for offset in path]
    mirrored = [np.log(shifted(images[:, :, ::-1].copy(), offset * flip) + 0.2) for offset in path]
    streams = RowStreams.derive(range(2), 0)
    for a, b in zip(
        Sensor().record(iter(plain), steps=SUBSTEPS, duration=DURATION, streams=streams),
        Sensor().record(iter(mirrored), steps=SUBSTEPS, duration=DURATION, streams=streams),
        strict=True,
    ):
        turned = b.copy()
        turned["x"] = 15 - turned["x"]
        order = np.lexsort((turned["p"], turned["x"], turned["y"], turned["t"]))
        assert np.array_equal(a, turned[order])


def test_noise_belongs_to_the_sample_and_the_seed() -> None:
    sensor = Sensor(mismatch=0.1, background=5.0)
    together = record(digits(3), sensor)
    streams = RowStreams.derive([2], 0)
    scene = scenes(digits(3)[2:])
    alone = sensor.record(scene, steps=SUBSTEPS, duration=DURATION, streams=streams, dark=DARK)[0]
    assert np.array_equal(together[2], alone)
    assert not np.array_equal(together[2], record(digits(3), sensor, seed=1)[2])


def test_a_refractory_pixel_keeps_its_distance_and_its_reference() -> None:
    streams = RowStreams.derive([0], 0)
    values = [0.0, 3.0, 3.0, 3.4, 3.6]
    plain = Sensor(threshold=0.5).record(iter(ramp(values)), steps=4, duration=4000, streams=streams)[0]
    slow = Sensor(threshold=0.5, refractory=400).record(
        iter(ramp(values)), steps=4, duration=4000, streams=streams
    )[0]
    assert plain["t"].tolist() == [166, 333, 500, 666, 833, 1000, 3500]
    assert slow["t"].tolist() == [166, 666, 3500]  # the suppressed events still moved the reference


def test_leak_and_background_come_at_their_rates() -> None:
    dark = [np.zeros((1, 40, 40))] * 101
    streams = RowStreams.derive([0], 0)
    (leaking,) = Sensor(leak_rate_hz=10.0).record(iter(dark), steps=100, duration=1_000_000, streams=streams)
    assert (leaking["p"] == 1).all()
    assert abs(len(leaking) / 1600 - 10) <= 1
    (noisy,) = Sensor(background=5.0).record(iter(dark), steps=100, duration=1_000_000, streams=streams)
    expected = 5 * 1600
    assert abs(len(noisy) - expected) < 5 * expected**0.5  # 5 standard deviations of a Poisson count
    assert abs(int(noisy["p"].sum()) - expected / 2) < 5 * (expected / 2) ** 0.5


def test_the_path_is_closed_and_bilinear_shifts_are_exact_at_whole_pixels() -> None:
    path = saccades(2.5, SUBSTEPS)
    assert path.shape == (61, 2)
    assert np.allclose(path[0], path[-1])
    image = digits(1)
    assert np.array_equal(shifted(image, np.array([1.0, -2.0]))[0, :-1, 2:], image[0, 1:, :-2])
    half = shifted(image, np.array([0.0, 0.5]))
    assert np.allclose(half[0, :, :-1], (image[0, :, :-1] + image[0, :, 1:]) / 2)


def test_bins_have_fixed_half_open_edges() -> None:
    events = recording(
        [0, 1, 2, 3, 0], [0, 0, 1, 1, 1], [0, 10, 9, 39, 40], [0, 1, 1, 0, 1], size=(2, 4), where="t"
    )
    frames = bin_events(events, steps=4, window=10, size=(2, 4))
    assert frames.dtype == np.int32 and frames.sum() == 4  # the event at 40 is outside
    assert frames[0, 0, 0, 0] == frames[0, 1, 1, 2] == frames[1, 1, 0, 1] == frames[3, 0, 1, 3] == 1
    without = bin_events(events[1:], steps=4, window=10, size=(2, 4))
    assert np.array_equal(without[1:], frames[1:])
    assert bin_events(events, steps=1, window=31, size=(2, 4), start=10).sum() == 3
    assert bin_events(events[:0], steps=4, window=10, size=(2, 4)).sum() == 0


def test_equal_times_may_come_in_any_order() -> None:
    x = np.arange(8) % 4
    events = recording(x, x, np.full(8, 5), x % 2, size=(4, 4), where="t")
    frames = bin_events(events, steps=2, window=10, size=(4, 4))
    assert np.array_equal(frames, bin_events(events[::-1], steps=2, window=10, size=(4, 4)))
    assert frames.max() == 2


@pytest.mark.parametrize(("column", "value"), [("x", 4), ("y", -1), ("p", 2)])
def test_an_event_outside_the_sensor_is_refused(column: str, value: int) -> None:
    columns = {"x": [0, 1], "y": [0, 1], "t": [0, 1], "p": [0, 1]}
    columns[column][1] = value
    with pytest.raises(ArtefactError, match=f"event 1 has {column} = {value}"):
        recording(**columns, size=(4, 4), where="file")


def test_frames_are_binary_and_splits_are_those_of_the_digits() -> None:
    data = DigitEvents()
    split = data.load("test")
    assert split.x.shape == (500, *data.shape)
    assert set(split.x.unique().tolist()) == {0.0, 1.0}
    rng = np.random.default_rng(0)
    for row in rng.integers(0, 500, 5):
        events = data.recordings("test")[row]
        assert split.x[row].sum() == len({(int(e["t"]) // 75_000, e["p"], e["y"], e["x"]) for e in events})
    assert DigitEvents(steps=8).name == "digits_events_t8"
    with pytest.raises(ConfigError, match="steps must divide"):
        DigitEvents(steps=7)


def test_packed_events_come_back() -> None:
    found = record(digits(3), Sensor(background=1.0))
    found[1] = found[1][:0]
    for a, b in zip(found, unpack(pack(found), 3), strict=True):
        assert a.dtype == b.dtype == EVENT
        assert np.array_equal(a, b)


def test_a_damaged_cache_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"content"

    assert files.cached("thing", make) == files.cached("thing", make) == b"content"
    assert len(made) == 1
    path = tmp_path / "robustspike" / "thing"
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:10], b"", b"<html>" + whole, whole[:32] + b"Content"):
        path.write_bytes(damage)
        assert files.cached("thing", make) == b"content"
        assert path.read_bytes() == whole
    assert len(made) == 6
    assert [p.name for p in path.parent.iterdir()] == ["thing"]


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert files.cached("thing", lambda: b"content") == b"content"


@pytest.mark.parametrize("name", VICTIMS)
def test_shipped_event_victims_are_sound_and_accurate(name: str) -> None:
    victim = load_victim(name)
    split = DigitEvents(steps=victim.spec.steps).load("test")
    check_victim(victim, split.x)
    with torch.no_grad():
        right = int((victim.logits(split.x).argmax(dim=1) == split.y).sum())
    assert right >= 475, right


def test_the_rate_only_victim_is_blind_to_time_bit_for_bit() -> None:
    victim = load_victim("rate_only.digits_events")
    x = DigitEvents().load("test").x[:64]
    streams = RowStreams.derive(range(64), 0)
    keys = streams.uniform(tuple(x.shape[1:]))
    moved = x.gather(1, keys.argsort(dim=1))  # every line (pixel and polarity) gets its own order
    assert not torch.equal(x, moved) and torch.equal(x.sum(dim=1), moved.sum(dim=1))
    with torch.no_grad():
        assert torch.equal(victim.logits(x), victim.logits(moved))
        other = load_victim("lif_cnn.digits_events")
        assert not torch.equal(other.logits(x), other.logits(moved))


def lit(values: list[float], **options: float) -> np.ndarray:
    """The events of one pixel that sees a brightness at each of some instants a millisecond apart."""
    streams = RowStreams.derive([0], 0)
    sensor = Sensor(threshold=0.1, **options)  # type: ignore[arg-type]
    n = len(values) - 1
    return sensor.record(iter(ramp(values)), steps=n, duration=1000 * n, streams=streams, dark=0.2)[0]


def test_lin_log_is_linear_in_the_dark_and_logarithmic_in_the_light() -> None:
    slope = np.log(20) / 20  # v2e: grey * ln(20) / 20 up to 20, ln(grey) above
    dark = lit([0.0, 10 / 255], lin_log=20.0)
    assert len(dark) == int(10 * slope / 0.1)
    assert len(lit([40 / 255, 200 / 255], lin_log=20.0)) == int(np.log(200 / 40) / 0.1)
    assert len(lit([10 / 255, 40 / 255], lin_log=20.0)) == int((np.log(40) - 10 * slope) / 0.1)


def test_a_low_pass_delays_events_the_more_the_darker_it_is() -> None:
    bright, dim = [0.5] * 2 + [1.0] * 200, [0.01] * 2 + [0.02 + 0.19] * 200
    plain, slow = lit(bright), lit(bright, cutoff_hz=10.0)
    assert len(plain) == len(slow)  # it gets there in the end
    assert np.median(slow["t"]) > np.median(plain["t"]) + 3000
    halves = [np.median(lit(values, cutoff_hz=10.0)["t"]) for values in (bright, dim)]
    assert halves[1] > 1.5 * halves[0]


def test_shot_noise_falls_with_light_and_rises_for_low_thresholds() -> None:
    streams = RowStreams.derive(range(4), 0)

    def events(level: float, **options: float) -> int:
        still = iter([np.full((4, 16, 16), level)] * 201)
        sensor = Sensor(shot_noise_rate_hz=5.0, **options)  # type: ignore[arg-type]
        return sum(map(len, sensor.record(still, steps=200, duration=1_000_000, streams=streams, dark=0.2)))

    dark, bright = events(-20 / 255), events(1.0)
    assert abs(dark - 5 * 1024) < 4 * np.sqrt(5 * 1024)  # Poisson: four standard deviations
    assert abs(bright - 5 * 1024 / 4) < 4 * np.sqrt(5 * 256)
    assert events(-20 / 255, mismatch=0.3) > dark  # the mean of 1 / threshold


def test_leak_rates_spread_and_jitter_about_their_mean() -> None:
    streams = RowStreams.derive([0], 0)
    still = [np.zeros((1, 16, 16))] * 501
    options = {"leak_rate_hz": 5.0, "noise_rate_cov_decades": 0.3, "leak_jitter_fraction": 0.1}
    (events,) = Sensor(**options).record(iter(still), steps=500, duration=5_000_000, streams=streams)  # type: ignore[arg-type]
    assert (events["p"] == 1).all()
    counts = np.bincount(events["y"].astype(int) * 16 + events["x"], minlength=256)
    assert np.median(counts) == pytest.approx(25, abs=4) and counts.max() > 2 * counts.min() + 10


def test_hot_pixels_send_on_events_all_the_time() -> None:
    streams = RowStreams.derive([0], 0)
    still = [np.zeros((1, 16, 16))] * 201
    sensor = Sensor(hot_pixels=0.05, hot_rate_hz=50.0)
    (events,) = sensor.record(iter(still), steps=200, duration=1_000_000, streams=streams)
    counts = np.bincount(events["y"].astype(int) * 16 + events["x"], minlength=256)
    hot = counts > 0
    assert 4 <= hot.sum() <= 25 and (events["p"] == 1).all()
    assert counts[hot].mean() == pytest.approx(50, abs=5)


def test_options_that_need_brightness_or_make_no_sense_are_refused() -> None:
    streams = RowStreams.derive([0], 0)
    with pytest.raises(ConfigError, match="need brightness"):
        Sensor(cutoff_hz=5.0).record(iter(ramp([0.0, 1.0])), steps=1, duration=1000, streams=streams)
    for wrong in ({"hot_pixels": 1.5}, {"lin_log": 0.5}, {"leak_rate_hz": -1.0}, {"cutoff_hz": float("nan")}):
        with pytest.raises(ConfigError, match="sensor"):
            Sensor(**wrong)
        with pytest.raises(ConfigError, match="sensor"):
            DigitEvents(**wrong)
