"""The page as a file: one board a threat model, the script's facts equal to the tables', small and closed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files
from typing import Any

import pytest

from robustspike.bench.contract.specs import Access
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write import cards
from robustspike.leaderboard.write import page as module
from robustspike.leaderboard.write.page import published
from robustspike.leaderboard.write.page import to_html
from robustspike.leaderboard.write.page import to_pages
from robustspike.leaderboard.write.page import to_reading
from tests.support.records import make_record


def records() -> list[CellRecord]:
    """A net with and without a defense under two attacks, at two budgets."""
    made = []
    for eps in (Fraction(1, 10), Fraction(1, 5)):
        made += [
            make_record("rrrbbw", eps=eps),
            make_record("rrbrbw", eps=eps, attack="noise", access=Access.LABEL),
            make_record("rrrrww", eps=eps, defense="sr"),
        ]
    return made


def known(page: str) -> dict[str, Any]:
    """Return what the page's script is given."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_board_has_an_anchor_and_a_link() -> None:
    page = to_html(build(records()))
    for anchor in ("digits-linf-1-10", "digits-linf-1-5"):
        assert f'<section class="board" id="{anchor}"' in page and f'<a href="#{anchor}">' in page


def two_data_sets() -> list[CellRecord]:
    others = [replace(record, dataset="faces", key="f" + record.key[1:]) for record in records()]
    return [*records(), *others]


def links(page: str) -> list[str]:
    return re.findall(r'<li><a href="([^"]*)"', page)


def test_a_board_too_large_for_a_page_has_one_for_every_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = build(two_data_sets())
    (whole,) = to_pages("leaderboard.html", sections).values()
    assert whole == to_html(sections)
    monkeypatch.setattr(module, "LIMIT", len(whole) - 1)
    monkeypatch.setattr(module, "_SHELL", 0)
    pages = to_pages("leaderboard.html", sections)
    assert list(pages) == ["leaderboard.html", "leaderboard-faces.html"]
    first, second = pages.values()
    assert [board["dataset"] for board in known(first)["boards"]] == ["digits", "digits"]
    assert [board["dataset"] for board in known(second)["boards"]] == ["faces", "faces"]
    assert links(first) == [
        "#digits-linf-1-10",
        "#digits-linf-1-5",
        "leaderboard-faces.html#faces-linf-1-10",
        "leaderboard-faces.html#faces-linf-1-5",
    ]
    assert links(second)[::3] == ["leaderboard.html#digits-linf-1-10", "#faces-linf-1-5"]
    assert 'id="published"' in first and 'id="published"' not in second
    assert 'href="leaderboard.html#published"' in second and 'id="faces-linf-1-10"' not in first


def test_a_data_set_too_large_for_a_page_has_one_for_every_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 6000)
    monkeypatch.setattr(module, "_SHELL", 0)
    pages = to_pages("all.html", build(two_data_sets()))
    assert next(iter(pages)) == "all.html" and "all-digits-linf-1-5.html" in pages and len(pages) == 4
    assert all(len(known(page)["boards"]) == 1 for page in pages.values())


def test_a_board_too_large_for_a_page_shows_its_first_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LIMIT", 6000)
    monkeypatch.setattr(module, "_SHELL", 0)
    (section,) = build([make_record("rrbb" if i % 2 else "rrrb", victim=f"net{i:02}") for i in range(40)])
    (page,) = to_pages("leaderboard.html", [section]).values()
    (board,) = known(page)["boards"]
    shown = [row["net"] for row in board["rows"]]
    assert 1 < len(shown) < 40 and shown == section.frame["victim"].tolist()[: len(shown)]
    assert f"The first {len(shown)} rows; {40 - len(shown)} more are in rows.csv" in page


def test_pictures_cost_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    sections, keys = build(records()), [record.key for record in records()]
    whole = to_html(sections)
    monkeypatch.setattr(module, "LIMIT", len(whole) + 1000)
    picture = "data:image/png;base64," + "A" * 5000
    (page,) = to_pages("leaderboard.html", sections, pictures={key: [picture] for key in keys}).values()
    assert page.count(picture) == len(keys)


def test_boards_that_would_share_an_anchor_are_told_apart() -> None:
    other = [make_record("rb", data="d2"), make_record("rb", data="d3")]
    ids = [board["id"] for board in known(to_html(build([make_record(), *other])))["boards"]]
    assert ids == ["digits-linf-1-10", "digits-linf-1-10--2", "digits-linf-1-10--3"]


def test_the_headline_comes_first_with_its_bar() -> None:
    page = to_html(build(records()[:3]))
    heads = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", page.split("</thead>")[0])
    assert heads[:4] == ["rank", "victim + defense", "worst case [95 %]", "clean"]
    assert '66.7 [30.0, 90.3]<i class="bar" data-b="30 67 90"></i>' in page


def test_the_script_knows_every_attack_with_its_interval_cost_and_record() -> None:
    made = records()[:3]
    (board,) = known(to_html(build(made)))["boards"]
    defended, plain = board["rows"]
    assert (plain["id"], defended["id"]) == ("net", "net + sr")
    assert board["labels"] == ["noise", "pgd.linf"] and len(defended["attacks"]) == 1
    place, value, low, high, forwards, backwards, key = plain["attacks"][1]
    assert (place, value, forwards, backwards) == (1, 0.5, 5, 4)
    assert low == pytest.approx(0.188, abs=1e-3) and high == pytest.approx(0.812, abs=1e-3)
    assert made[0].key.startswith(key)
    column = [name for name, _, _ in board["columns"]].index("worst_case")
    assert plain["values"][column][0] == pytest.approx(2 / 6, abs=1e-3)


def test_what_the_registry_says_reaches_the_cards() -> None:
    said = {("attacks", "pgd.linf"): cards.Component("Steps.", "Madry 2018, arXiv:1706.06083. Differs: x.")}
    said["victims", "net"] = cards.Component("A net.", "", "timing", 4)
    found = known(to_html(build(records()), (), said))
    assert found["attacks"]["pgd.linf"]["source"] == "Madry 2018, arXiv:1706.06083."
    assert found["victims"]["net"] == {"about": "A net.", "family": "timing", "T": 4}


def test_published_figures_stand_in_a_table_of_their_own_without_ranks() -> None:
    page = to_html(build(records()))
    own = page.split('id="published"')[1].split("</table>")[0]
    assert published() and all(row["method"].replace("'", "&#39;") in own for row in published())
    assert "rank" not in own.split("<table")[1] and "AutoAttack about halved" in own


def test_the_script_is_small_and_no_address_is_fetched() -> None:
    script = files("robustspike.leaderboard.write").joinpath("page.js").read_text("utf-8")
    assert len(script.encode()) < 18_000
    for page in (to_html(build(records())), to_reading(build(records()))):
        assert not re.search(r'(src|href)="(https?:)?//', page) and "default-src 'none'" in page


def test_hostile_names_cannot_leave_the_data() -> None:
    page = to_html(build([make_record(victim="</script><img src=x onerror=1>&amp;")]))
    assert "<img" not in page and known(page)["boards"][0]["rows"][0]["net"].startswith("</script><img")


def test_an_empty_board_is_a_page() -> None:
    assert "Published figures" in to_html([]) and known(to_html([]))["boards"] == []
