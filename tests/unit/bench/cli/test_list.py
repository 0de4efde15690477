"""`list` and `show`: quick, true to the components, one line a row in any terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustspike.bench.cli import catalogue
from robustspike.bench.cli.list import command as list_command
from robustspike.bench.contract.registry import KINDS
from robustspike.bench.contract.registry import Registered
from robustspike.bench.contract.registry import registry
from robustspike.bench.errors import ConfigError

KINDS_AND_SUITES = (*KINDS, "suites")


@pytest.mark.parametrize(
    "arguments",
    [*(("list", kind) for kind in KINDS_AND_SUITES), ("show", "lif_cnn.digits"), ("show", "quick")],
)
def test_list_and_show_import_no_torch(arguments: tuple[str, ...]) -> None:
    if not _current(arguments[1] if arguments[1] in KINDS_AND_SUITES else "victims"):
        pytest.skip("the catalogue waits to be written again: python -m robustspike.bench.cli.catalogue")
    code = (
        f"import sys\nsys.argv = ['robustspike', *{arguments!r}]\nfrom robustspike.bench.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _current(kind: str) -> bool:
    entries = [] if kind == "suites" else [registry(kind).entry(name) for name in registry(kind).names()]
    kept = catalogue._kept().get(kind, {})
    return all(
        entry.name in kept and kept[entry.name]["of"] == catalogue._digest(entry, kept[entry.name]["weights"])
        for entry in entries
        if entry.distribution == "robustspike"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_catalogue_says_is_what_the_components_say(kind: str) -> None:
    for name, kept in catalogue._kept()[kind].items():
        entry = registry(kind).entry(name)
        if kept["of"] == catalogue._digest(entry, kept["weights"]):
            assert kept == catalogue._afresh(entry), f"{name}: python -m robustspike.bench.cli.catalogue"


def test_a_component_that_changed_or_is_not_ours_is_described_afresh(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = registry("attacks").entry("fgsm.linf")
    kept = {"attacks": {"fgsm.linf": {"of": "0", "weights": "", "row": {"about": "old"}, "shown": {}}}}
    monkeypatch.setattr(catalogue, "_kept", lambda: kept)
    assert catalogue.row("attacks", "fgsm.linf")["about"].startswith("x + eps * sign")
    theirs: Registered = replace(entry, distribution="theirs")
    assert catalogue._said(theirs)["row"]["geometry"] == "linf"
    monkeypatch.setattr(catalogue, "FILE", tmp_path / "none.json")
    assert catalogue.main(["--check"]) == 1


@pytest.mark.parametrize("kind", KINDS_AND_SUITES)
@pytest.mark.parametrize("columns", [80, 100, 120])
def test_a_row_is_one_line_and_names_are_whole(
    kind: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(list_command, [kind], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    names = json.loads(CliRunner().invoke(list_command, [kind, "--json"]).stdout)
    named = [row["name"] for row in names if "left_out" not in row]
    assert [line.split()[0] for line in lines[1 : len(named) + 1]] == named


def test_wide_prints_every_column_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wide = CliRunner().invoke(list_command, ["attacks", "--wide"]).stdout
    assert "from" in wide.splitlines()[0] and "..." not in wide
    narrow = CliRunner().invoke(list_command, ["attacks"])
    assert "--wide" in narrow.stderr and "from" not in narrow.stdout.splitlines()[0]


def names(*arguments: str) -> set[str]:
    done = CliRunner().invoke(list_command, [*arguments, "--json"], catch_exceptions=False)
    return {row["name"] for row in json.loads(done.stdout)}


def test_filters_choose_rows() -> None:
    timing = names("victims", "--family", "timing", "--data", "cifar10")
    assert "ttfs_b1.cifar10" in timing and all(name.endswith(".cifar10") for name in timing)
    assert not {"lif_cnn.cifar10", "qcfs_cnn.cifar10"} & timing
    both = names("victims", "--only", "name=lif_cnn.digits", "--only", "name=qcfs_cnn.digits")
    assert both == {"lif_cnn.digits", "qcfs_cnn.digits"}
    assert "apgd.ce" in names("attacks", "--only", "geometry=l2")
    for wrong, message in (
        (["victims", "--only", "famly=timing"], "no column 'famly' here. Did you mean 'family'"),
        (["victims", "--family", "timming"], "nothing matches family=timming. Did you mean 'timing'"),
        (["attacks", "--family", "timing"], "no column 'family'"),
    ):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(list_command, wrong, catch_exceptions=False)


@pytest.mark.parametrize("kind", KINDS_AND_SUITES)
def test_descriptions_tell_components_apart(kind: str) -> None:
    rows = json.loads(CliRunner().invoke(list_command, [kind, "--json"]).stdout)
    said = [row["about"] for row in rows if "left_out" not in row]
    assert len(set(said)) == len(said)


def test_a_description_fits_beside_every_victim_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    head = CliRunner().invoke(list_command, ["victims"]).stdout.splitlines()[0]
    assert "about" in head and "family" in head
