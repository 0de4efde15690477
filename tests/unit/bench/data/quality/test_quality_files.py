"""The published quality sets, on tiny made files of the same layout and on the rated images at hand."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image
from scipy.io import savemat

from robustspike.bench.contract.registry import registry
from robustspike.bench.data.quality.quality_files import Csiq
from robustspike.bench.data.quality.quality_files import Kadid10k
from robustspike.bench.data.quality.quality_files import Koniq10k
from robustspike.bench.data.quality.quality_files import Live
from robustspike.bench.data.quality.quality_files import LiveChallenge
from robustspike.bench.data.quality.quality_files import RatedImages
from robustspike.bench.data.quality.quality_files import Spaq
from robustspike.bench.data.quality.quality_files import Tid2013
from robustspike.bench.data.quality.quality_files import part_of
from robustspike.bench.data.quality.quality_files import read_square
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.training.train import train
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import load_victim
from robustspike.bench.training.weights import read_certificate
from robustspike.defenses.none import Undefended


def picture(path: Path) -> None:
    """Write an image of its own: its pixels follow from its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)


def cell(names: list[str], *, column: bool) -> np.ndarray:
    out = np.empty((len(names), 1) if column else (1, len(names)), dtype=object)
    for i, name in enumerate(names):
        out[(i, 0) if column else (0, i)] = name
    return out


def kadid(root: Path) -> RatedImages:
    lines = ["dist_img,ref_img,dmos,var"]
    for ref in range(1, 13):
        for level in (1, 5):
            name = f"I{ref:02d}_03_{level:02d}.png"
            picture(root / "images" / name)
            lines.append(f"{name},I{ref:02d}.png,{5 - 0.5 * level},0.4")
    (root / "dmos.csv").write_text("\n".join(lines) + "\n")
    return Kadid10k(crop=16)


def koniq(root: Path) -> RatedImages:
    lines = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"]
    for i, part in enumerate(["training", "validation", "test", "test"]):
        picture(root / "512x384" / f"{i}.jpg")
        lines.append(f"{i}.jpg,0,0,0.2,0.7,0.1,105,{20 + 20 * i},0.5,{part}")
    (root / "koniq10k_distributions_sets.csv").write_text("\n".join(lines) + "\n")
    return Koniq10k(crop=16)


def live(root: Path) -> RatedImages:
    dmos, orgs, names = [], [], []
    for group, _ in Live.groups:
        for i in range(6):
            picture(root / group / f"img{i + 1}.bmp")
            dmos.append(10.0 * i)
            orgs.append(int(i == 0))
            names.append(f"scene{i}.bmp")
    savemat(root / "dmos_realigned.mat", {"dmos_new": [dmos], "orgs": [orgs], "dmos_std": [dmos]})
    savemat(root / "refnames_all.mat", {"refnames_all": cell(names, column=False)})
    return Live(crop=16)


def live_challenge(root: Path) -> RatedImages:
    names = [f"t{i}.bmp" for i in range(1, 8)] + [f"{i}.{'JPG' if i % 2 else 'bmp'}" for i in range(20)]
    for name in names:
        inside = root / "Images" / ("trainingImages" if name.startswith("t") else "")
        picture(inside / name)
    (root / "Data").mkdir()
    savemat(root / "Data/AllImages_release.mat", {"AllImages_release": cell(names, column=True)})
    savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": [[float(3 * i) for i in range(27)]]})
    return LiveChallenge(crop=16)


def tid(root: Path) -> RatedImages:
    lines = []
    for ref in range(1, 13):
        for level in (1, 5):
            name = f"I{ref:02d}_01_{level}.bmp"
            written = name.lower() if ref % 2 else name.replace("bmp", "BMP")
            picture(root / "distorted_images" / written)
            lines.append(f"{6.3 - 0.9 * level} {name}")
    (root / "mos_with_names.txt").write_text("\n".join(lines) + "\n")
    return Tid2013(crop=16)


def csiq(root: Path) -> RatedImages:
    rows = [["CSIQ"], [None], ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]]
    for ref in (
        1600,
        "aerial_city",
        "boston",
        "bridge",
        "family",
        "fisher",
        "foxy",
        "geckos",
        "lake",
        "native_american",
        "roping",
    ):
        for kind, name in (("noise", "AWGN"), ("jpeg 2000", "jpeg2000")):
            for level in (1, 5):
                picture(root / "dst_imgs" / name.lower() / f"{ref}.{name}.{level}.png")
                rows.append([ref, 1, kind, level, 0.1, 0.15 * level])
    sheet(root / "csiq.DMOS.xlsx", {"notes": [["read me"]], "all_by_image": rows})
    return Csiq(crop=16)


def spaq(root: Path) -> RatedImages:
    rows: list[list[object]] = [["Image name", "MOS", "Brightness", "Sharpness"]]
    for i in range(1, 21):
        picture(root / "TestImage" / f"{i:05d}.jpg")
        rows.append([f"{i:05d}.jpg", 4.5 * i, 50, 4 * i])
    sheet(root / "Annotations/MOS and Image attribute scores.xlsx", {"Sheet1": rows})
    return Spaq(crop=16)


def sheet(path: Path, sheets: dict[str, list[list[object]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        page = book.create_sheet(name)
        for row in rows:
            page.append(row)
    book.save(path)


MAKERS = {
    "csiq": csiq,
    "kadid": kadid,
    "koniq": koniq,
    "live": live,
    "live_challenge": live_challenge,
    "spaq": spaq,
    "tid": tid,
}
EXPECTED = {  # entries, the first one's raw value and score
    "csiq": (44, 0.15, 85.0),
    "kadid": (24, 4.5, 87.5),
    "koniq": (4, 20.0, 20.0),
    "live": (25, 10.0, 90.0),
    "live_challenge": (20, 21.0, 21.0),
    "spaq": (20, 4.5, 4.5),
    "tid": (24, 5.4, 60.0),
}


@pytest.mark.parametrize("which", MAKERS)
def test_entries_have_scores_on_one_scale_and_files_that_exist(which: str, tmp_path: Path) -> None:
    data = MAKERS[which](tmp_path)
    entries = data.entries(tmp_path)
    count, raw, score = EXPECTED[which]
    assert len(entries) == count
    assert (entries[0].raw, entries[0].score) == pytest.approx((raw, score))
    assert all(entry.path.is_file() for entry in entries)


@pytest.mark.parametrize("which", MAKERS)
def test_splits_cover_everything_once_and_share_no_reference(which: str, tmp_path: Path) -> None:
    data = MAKERS[which](tmp_path)
    entries = data.entries(tmp_path)
    parts: dict[str, set[str]] = {}
    for entry in entries:
        parts.setdefault(part_of(entry, data.name), set()).add(entry.reference or entry.path.name)
    assert {"train", "test"} <= parts.keys()
    assert sum(len(names) for names in parts.values()) == len(set().union(*parts.values()))
    loaded = [data.load(part, root=tmp_path) for part in sorted(parts)]
    assert sorted(i for split in loaded for i in split.ids.tolist()) == list(range(len(entries)))
    for split in loaded:
        assert split.x.shape[1:] == data.shape == (3, 16, 16)
        assert split.y.tolist() == pytest.approx([entries[i].score for i in split.ids.tolist()])


@pytest.mark.parametrize("which", MAKERS)
def test_images_of_one_original_have_one_source(which: str, tmp_path: Path) -> None:
    data = MAKERS[which](tmp_path)
    entries = data.entries(tmp_path)
    split = data.load("train", root=tmp_path)
    found = data.sources(split.ids, root=tmp_path)
    names = [entries[i].reference.lower() for i in split.ids.tolist()]
    if not all(entry.reference for entry in entries):
        assert found is None
        return
    assert found is not None
    for name, number in zip(names, found.tolist(), strict=True):
        assert {n for n, other in zip(found.tolist(), names, strict=True) if other == name} == {number}
    assert len(set(found.tolist())) == len(set(names))


def test_distortion_and_level_are_kept(tmp_path: Path) -> None:
    entry = kadid(tmp_path).entries(tmp_path)[1]
    assert (entry.reference, entry.distortion, entry.level) == ("I01.png", "03", 5)


def test_older_and_larger_releases_are_read_too(tmp_path: Path) -> None:
    newer = live(tmp_path / "live").entries(tmp_path)
    (tmp_path / "live/dmos_realigned.mat").unlink()
    scores = [10.0 * i for _ in range(5) for i in range(6)]
    savemat(
        tmp_path / "live/dmos.mat", {"dmos": [scores], "orgs": [[int(s == 0) for s in scores]]}
    )  # as in the release of 2005
    assert Live(crop=16).entries(tmp_path) == newer
    (koniq_home := tmp_path / "koniq10k").mkdir()
    small = koniq(koniq_home).entries(tmp_path)
    (koniq_home / "512x384").rename(koniq_home / "1024x768")
    large = Koniq10k(crop=16).entries(tmp_path)
    assert [e.path.parent.name for e in large] == ["1024x768"] * 4
    assert [e.score for e in large] == [e.score for e in small]


def test_data_may_point_to_the_set_or_above_it(tmp_path: Path) -> None:
    data = tid(tmp_path / "tid2013") if (tmp_path / "tid2013").mkdir() is None else None
    assert data is not None
    assert data.present(tmp_path) and data.present(tmp_path / "tid2013")
    assert len(data.entries(tmp_path)) == 24
    assert not Kadid10k().present(tmp_path)


def test_limit_reads_fewer_images_in_the_same_order(tmp_path: Path) -> None:
    kadid(tmp_path)
    whole = Kadid10k(crop=16, limit=0).load("train", root=tmp_path)
    assert Kadid10k(crop=16, limit=3).load("train", root=tmp_path).ids.tolist() == whole.ids[:3].tolist()


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no dmos.csv .*Point --data"):
        Kadid10k().entries(tmp_path)
    with pytest.raises(ArtefactError, match="--data DIR"):
        Kadid10k().load("test")
    kadid(tmp_path)
    with pytest.raises(ArtefactError, match="smaller than crop = 224"):
        Kadid10k().load("train", root=tmp_path)
    (tmp_path / "images/I01_03_01.png").write_bytes(b"<html>")
    with pytest.raises(ArtefactError, match="cannot be read as an image"):
        [Kadid10k(crop=16).load(part, root=tmp_path) for part in ("train", "test")]
    (tmp_path / "dmos.csv").write_text("name,score\na,b\n")
    with pytest.raises(ArtefactError, match="not the published table of kadid10k"):
        Kadid10k().entries(tmp_path)
    (tmp_path / "dmos.csv").write_text("dist_img,ref_img,dmos,var\n")
    with pytest.raises(ArtefactError, match="holds no rated image"):
        Kadid10k().entries(tmp_path)
    with pytest.raises(ConfigError, match="crop"):
        Kadid10k(crop=0)


def test_the_published_koniq_table_has_the_published_split(tmp_path: Path, shared_data: Path) -> None:
    entries = Koniq10k()
    table = shared_data / "iqa/scores/koniq10k_distributions_sets.csv"
    (tmp_path / table.name).write_bytes(table.read_bytes())
    found = entries.entries(tmp_path)
    sizes = {part: sum(e.split == part for e in found) for part in ("train", "validation", "test")}
    assert sizes == {"train": 7058, "validation": 1000, "test": 2015}
    assert 0 < min(e.score for e in found) < max(e.score for e in found) < 100


def test_rated_images_at_hand(tmp_path: Path, shared_data: Path) -> None:
    """A real TID2013 image and three of LIVE In the Wild, with their published scores."""
    (tmp_path / "distorted_images").symlink_to(shared_data / "iqa/tid2013/distorted_images")
    (tmp_path / "mos_with_names.txt").write_text("3.8649 I01_01_5.bmp\n")
    (entry,) = Tid2013().entries(tmp_path)
    assert (
        entry.path.is_file() and entry.reference == "i01" and entry.score == pytest.approx(42.943, abs=1e-3)
    )
    part = part_of(entry, "tid2013")
    assert Tid2013(crop=384).load(part, root=tmp_path).x.shape == (1, 3, 384, 384)  # type: ignore[arg-type]
    (tmp_path / "Images").symlink_to(shared_data / "iqa/live_challenge/Images")
    (tmp_path / "Data").mkdir()
    names = [f"t{i}.bmp" for i in range(1, 8)] + ["33.bmp", "60.bmp", "123.bmp"]
    savemat(tmp_path / "Data/AllImages_release.mat", {"AllImages_release": cell(names, column=True)})
    values = [0.0] * 7 + [51.5523, 74.1833, 67.2978]
    savemat(tmp_path / "Data/AllMOS_release.mat", {"AllMOS_release": [values]})
    wild = LiveChallenge().entries(tmp_path)
    assert [e.score for e in wild] == pytest.approx(values[7:]) and all(e.path.is_file() for e in wild)


def test_a_published_set_is_judged_with_borrowed_weights_until_trained_on(tmp_path: Path) -> None:
    koniq(tmp_path)
    shipped = registry("victims").get("cnn_iqa.koniq10k")
    borrowed = find_weights(shipped, "none", 0, tmp_path)
    assert borrowed is not None and borrowed.name == "cnn_iqa.photopatch.safetensors"
    (note,) = shipped.notes(read_certificate(borrowed))
    assert "trained on photopatch_iqa" in note and "robustspike train cnn_iqa.koniq10k" in note
    changed = {"dataset": "koniq10k(crop=32)"}
    short = {"epochs": 1, "keep": "last"}
    recipe = registry("victims").get("cnn_iqa.koniq10k", **changed, schedule=short)
    _, certificate = train(recipe, Undefended(), out=tmp_path, root=tmp_path)
    own = find_weights(recipe, "none", 0, tmp_path)
    assert own is not None and own.parent == tmp_path and certificate["data"]["name"] == "koniq10k"
    assert find_weights(shipped, "none", 0, tmp_path) == borrowed
    loaded = load_victim("cnn_iqa.koniq10k", weights=tmp_path, **changed)
    assert loaded.spec.notes == () and loaded.spec.shape == (3, 32, 32)


def test_a_filter_on_victims_keeps_other_sets_unread(tmp_path: Path) -> None:
    koniq(tmp_path)
    live_challenge(tmp_path)
    only = [("victim", "cnn_iqa.koniq10k"), ("attack", "quality.fgsm"), ("defense", "none")]
    plan = make_plan(read_suite("quality"), only=only, root=tmp_path)
    with pytest.raises(ArtefactError, match="512x384"):  # 40x32 pixels; the other set is not read
        samples_of(plan.cells[0], tmp_path)
    with pytest.raises(ConfigError, match="nothing to measure"):
        make_plan(read_suite("quality"), only=[("victim", "no_such*")], root=tmp_path)


def rated(root: Path, *scores: object) -> Path:
    koniq(root)
    rows = [f"{i}.jpg,0,0,0.2,0.7,0.1,105,{score},0.5,test" for i, score in enumerate(scores)]
    head = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"
    (root / "koniq10k_distributions_sets.csv").write_text("\n".join([head, *rows]) + "\n")
    return root


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ((70, "nan", 31), "rating 2 .* is nan, expected 0 to 100"),
        ((70, "inf", 31), "rating 2 .* is inf"),
        ((70, 900, 31), "rating 2 .* is 900"),
        ((-31, 70), "rating 1 .* is -31"),
        ((3.5, 4.2, 1.9), "no rating is above 4.2, on a scale from 0 to 100"),
        ((0.35, 0.42), "another scale"),
    ],
)
def test_ratings_off_the_published_scale_are_refused(
    scores: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=message):
        Koniq10k(crop=16).load("test", root=rated(tmp_path, *scores))


@pytest.mark.parametrize("which", ["kadid", "tid"])
def test_every_table_has_a_scale(which: str, tmp_path: Path) -> None:
    data = MAKERS[which](tmp_path)
    table = tmp_path / data.table
    text = table.read_text()
    table.write_text(text.replace("4.5", "45") if which == "kadid" else text.replace("5.", "54.", 1))
    with pytest.raises(ArtefactError, match=r"rating 1 .* expected"):
        data.entries(tmp_path)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "..", "a\\b.jpg", "C:a.jpg"])
def test_a_table_names_files_of_its_own_folder_only(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    home = rated(tmp_path / "koniq10k", 50)
    table = home / "koniq10k_distributions_sets.csv"
    table.write_text(table.read_text().replace("0.jpg", name, 1))
    with pytest.raises(ArtefactError, match="plain file name"):
        Koniq10k(crop=16).load("test", root=tmp_path)


def test_sixteen_bit_grey_keeps_its_upper_bits_and_other_numbers_are_refused(tmp_path: Path) -> None:
    grey = np.arange(1024, dtype=np.uint16).reshape(32, 32) // 4
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(grey * 257).save(tmp_path / "16.png")
    Image.fromarray((grey * 257).astype(">u2")).save(tmp_path / "16.tiff")
    expected = read_square(tmp_path / "8.png", 16)
    for name in ("16.png", "16.tiff"):
        assert np.array_equal(read_square(tmp_path / name, 16), expected)
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "f.tiff")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "i.tiff")
    for name in ("f.tiff", "i.tiff"):
        with pytest.raises(ArtefactError, match="8 or 16 bits"):
            read_square(tmp_path / name, 16)


@pytest.mark.parametrize(
    ("made", "count", "good", "bad"),
    [
        (Csiq(), 866, "dst_imgs/awgn/1600.awgn.1.png", "dst_imgs/awgn/1600.awgn.5.png"),
        (Live(), 779, "jp2k/img2.bmp", "jp2k/img5.bmp"),
        (LiveChallenge(), 1161, "images/101.bmp", "images/104.bmp"),
        (Tid2013(), 3000, "distorted_images/i01_01_1.bmp", "distorted_images/i01_01_5.bmp"),
    ],
    ids=["csiq", "live", "live_challenge", "tid2013"],
)
def test_the_published_ratings_at_hand_run_the_right_way(
    made: RatedImages, count: int, good: str, bad: str, tmp_path: Path, shared_data: Path
) -> None:
    table = shared_data / "iqa/scores" / made.others[-1]
    (tmp_path / table.name).write_bytes(table.read_bytes())
    entries = made.entries(tmp_path)
    assert len(entries) == count
    score = {e.path.relative_to(tmp_path).as_posix().lower(): e.score for e in entries}
    assert -15 < score[bad] < score[good] - 15
    assert all(tmp_path in e.path.parents for e in entries)
    assert {bool(e.reference) for e in entries} == {not isinstance(made, LiveChallenge)}


def test_either_table_of_a_set_will_do(tmp_path: Path) -> None:
    koniq(tmp_path / "koniq10k")
    (tmp_path / "koniq10k/koniq10k_distributions_sets.csv").unlink()
    head = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"
    rows = [f"{i}.jpg,0,0,25,73,7,105,{1 + i},0.5,{20 + 20 * i}" for i in range(4)]
    other = tmp_path / "koniq10k/koniq10k_scores_and_distributions.csv"
    other.write_text("\n".join([head, *rows]) + "\n")
    assert [e.score for e in Koniq10k(crop=16).entries(tmp_path)] == [20, 40, 60, 80]

    from_sheet = csiq(tmp_path / "csiq").entries(tmp_path)
    (tmp_path / "csiq/csiq.DMOS.xlsx").unlink()
    lines = [f"{e.path.name} {e.raw}" for e in from_sheet]
    (tmp_path / "csiq/csiq_label.txt").write_text("\n".join(lines))
    assert Csiq(crop=16).entries(tmp_path) == from_sheet
    flat = tmp_path / "csiq/dst_imgs_all"
    flat.mkdir()
    for entry in from_sheet:
        entry.path.rename(flat / entry.path.name)
    assert all(e.path.is_file() for e in Csiq(crop=16).entries(tmp_path))

    from_sheet = spaq(tmp_path / "SPAQ").entries(tmp_path)
    (tmp_path / "SPAQ" / Spaq.table).unlink()
    lines = ["Image name,MOS", *(f"{e.path.name},{e.raw}" for e in from_sheet)]
    (tmp_path / "SPAQ" / Spaq.others[0]).write_text("\n".join(lines))
    assert Spaq(crop=16).entries(tmp_path) == from_sheet

    (tmp_path / "tid2013").mkdir()
    values = [6.3 - 0.9 * level for _ in range(25 * 24) for level in range(1, 6)]
    (tmp_path / "tid2013/mos.txt").write_text("\n".join(map(str, values)))
    found = Tid2013().entries(tmp_path)
    assert (found[6].path.name, found[6].level, found[6].raw) == ("i01_02_2.bmp", 2, values[1])
    assert (len(found), found[-1].path.name) == (3000, "i25_24_5.bmp")


def test_large_photographs_are_shrunk_before_the_cut(tmp_path: Path) -> None:
    stripes = np.zeros((600, 1200, 3), dtype=np.uint8)
    stripes[:, 400:800] = 255  # a third of the width, two thirds of the middle square
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    assert read_square(tmp_path / "wide.png", 600).mean() == pytest.approx(255 * 400 / 600, abs=1)
    small = read_square(tmp_path / "wide.png", 60, shorter=60)
    assert small.shape == (3, 60, 60) and small.mean() == pytest.approx(255 * 400 / 600, abs=3)


@pytest.mark.parametrize("which", ["csiq", "kadid", "koniq", "live", "spaq", "tid"])
def test_ratings_that_are_turned_around_are_refused(which: str, tmp_path: Path) -> None:
    data = MAKERS[which](tmp_path)
    table = tmp_path / data.table
    if which == "csiq":
        lines = [f"{e.path.name} {1 - e.raw}" for e in data.entries(tmp_path)]
        table.unlink()
        (tmp_path / "csiq_label.txt").write_text("\n".join(lines))
    elif which == "spaq":
        table.unlink()
        lines = [f"{i:05d}.jpg,{100 - 4.5 * i},{4 * i}" for i in range(1, 21)]
        (tmp_path / Spaq.others[0]).write_text("\n".join(["Image name,MOS,Sharpness", *lines]))
    elif which == "live":
        values = [100 - 10.0 * i for _ in Live.groups for i in range(6)]
        orgs = [int(i == 0) for _ in Live.groups for i in range(6)]
        savemat(tmp_path / "dmos_realigned.mat", {"dmos_new": [values], "orgs": [orgs]})
    elif which == "koniq":
        rows = [f"{i}.jpg,0,0,{20 - i},{i},0,20,{90 - 4 * i},0.5,test" for i in range(12)]
        table.write_text("\n".join(["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set", *rows]))
    elif which == "kadid":
        head, *rows = table.read_text().split()
        cells = [row.split(",") for row in rows]
        table.write_text("\n".join([head, *(f"{a},{b},{6 - float(c)},{d}" for a, b, c, d in cells)]))
    else:
        pairs = [line.split() for line in table.read_text().splitlines()]
        table.write_text("\n".join(f"{9 - float(value)} {name}" for value, name in pairs))
    with pytest.raises(ArtefactError, match="turned around"):
        data.entries(tmp_path)


def test_an_image_rated_twice_is_refused(tmp_path: Path) -> None:
    home = rated(tmp_path, 50, 60)
    table = home / "koniq10k_distributions_sets.csv"
    table.write_text(table.read_text().replace("1.jpg", "0.JPG"))
    with pytest.raises(ArtefactError, match=r"rated twice, 50 \(rating 1\) and 60 \(rating 2\)"):
        Koniq10k(crop=16).load("test", root=home)


def test_one_file_under_two_names_is_refused(tmp_path: Path) -> None:
    home = rated(tmp_path, 50, 60)
    (home / "512x384/1.jpg").write_bytes((home / "512x384/0.jpg").read_bytes())
    with pytest.raises(ArtefactError, match="byte for byte"):
        Koniq10k(crop=16).load("test", root=home)


@pytest.mark.parametrize(
    ("which", "absent", "named"),
    [
        ("live", "dmos_realigned.mat", r"no dmos_realigned\.mat or dmos\.mat"),
        ("live_challenge", "Data/AllImages_release.mat", r"no Data/AllImages_release\.mat"),
        ("csiq", "csiq.DMOS.xlsx", r"no csiq\.DMOS\.xlsx or csiq_label\.txt or CSIQ\.txt"),
        ("spaq", "Annotations/MOS and Image attribute scores.xlsx", r"attribute scores\.xlsx or Annotations"),
    ],
)
def test_the_error_names_the_file_that_is_needed(which: str, absent: str, named: str, tmp_path: Path) -> None:
    data = MAKERS[which](tmp_path)
    (tmp_path / absent).unlink()
    with pytest.raises(ArtefactError, match=named):
        data.entries(tmp_path)


def test_a_rated_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    home = rated(tmp_path, 50, 60)
    (home / "512x384/1.jpg").unlink()
    with pytest.raises(ArtefactError, match=r"1\.jpg: no such file, but .*\.csv rates it"):
        Koniq10k(crop=16).load("test", root=home)


def test_sheets_without_openpyxl_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = spaq(tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"robustspike\[xlsx\].*scores\.csv in its place"):
        data.entries(tmp_path)
    with pytest.raises(ConfigError, match=r"csiq_label\.txt in its place"):
        csiq(tmp_path / "csiq").entries(tmp_path)


def test_a_damaged_sheet_is_one_error(tmp_path: Path) -> None:
    data = spaq(tmp_path)
    (tmp_path / Spaq.table).write_bytes(b"PK not a sheet")
    with pytest.raises(ArtefactError, match="cannot be read as an Excel file"):
        data.entries(tmp_path)
    sheet(tmp_path / Spaq.table, {"Sheet1": [["Image", "Score"], ["00001.jpg", 3]]})
    with pytest.raises(ArtefactError, match="no sheet has the columns Image name, MOS"):
        data.entries(tmp_path)


def test_transparent_images_of_published_sets_are_refused_and_opaque_ones_read(tmp_path: Path) -> None:
    """What raters saw behind transparent pixels is not known: no colour is made up for them."""
    kadid(tmp_path)
    path = tmp_path / "images/I01_03_01.png"
    before = read_square(path, 16)
    image = Image.open(path).convert("RGBA")
    image.save(path)
    assert np.array_equal(read_square(path, 16), before)
    image.putpixel((0, 0), (9, 9, 9, 254))
    image.save(path)
    with pytest.raises(ArtefactError, match="transparent"):
        read_square(path, 16)
