"""Cards of components: made of what they declare and of the certificates of their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from robustspike.bench.api import registry
from robustspike.bench.cli.cards import OF
from robustspike.bench.cli.cards import card
from robustspike.bench.cli.cards import command
from robustspike.bench.cli.show import command as show
from robustspike.bench.errors import ConfigError
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import read_certificate


def test_a_victims_card_has_its_source_and_the_figures_of_its_certificates() -> None:
    text = card("victims", "lif_cnn.digits")
    recipe = registry("victims").get("lif_cnn.digits")
    path = find_weights(recipe, "none", 0, None)
    assert path is not None
    certificate = read_certificate(path)
    assert f"clean {certificate['test']['correct']}" in text and certificate["sha256"][:12] in text
    assert recipe.source[:40] in text and "| `steps` | 4 |" in text
    assert "`lif_cnn.digits+sr`" in text and 'load_victim("lif_cnn.digits")' in text


@pytest.mark.parametrize("kind", OF)
def test_every_card_has_a_head_that_yaml_reads_and_no_broken_row(kind: str) -> None:
    for name in registry(kind).names():
        text = card(kind, name)
        assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "robustspike"
        assert text.count(f"\n# {name}\n") == 1
        for line in text.splitlines():
            assert not line.startswith("|") or line.endswith("|"), (name, line)


def test_cards_are_written_by_kind_and_printed_alone(tmp_path: Path) -> None:
    words = ["sapgd.linf", "sr", "--out", str(tmp_path)]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert [str(Path(line).relative_to(tmp_path)) for line in done.stdout.splitlines()] == [
        "attacks/sapgd.linf.md",
        "defenses/sr.md",
    ]
    printed = CliRunner().invoke(show, ["sr", "--card"], catch_exceptions=False).stdout
    assert printed == (tmp_path / "defenses" / "sr.md").read_text("utf-8")
    for verb, asked, message in (
        (command, ["pgd.linff", "--out", "x"], "Did you mean 'pgd.linf'"),
        (show, ["quick", "--card"], "a suite has no card"),
    ):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(verb, asked, catch_exceptions=False)
