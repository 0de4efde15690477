"""The page in a browser: sort, filter, columns, cards, the address, keyboard, contrast, no request.

Skipped where Playwright (extra site-test) or a Chromium is missing. Screenshots go to the test's folder, or
to the folder that ROBUSTSPIKE_SCREENSHOTS names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from robustspike.bench.contract.specs import Access
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write import page as module
from robustspike.leaderboard.write.cards import Component
from robustspike.leaderboard.write.page import READING
from robustspike.leaderboard.write.page import to_html
from robustspike.leaderboard.write.page import to_pages
from robustspike.leaderboard.write.page import to_reading
from tests.support.records import make_record

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: extra site-test")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
LINF = "digits-linf-1-10"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk"
    "+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


def board() -> list[CellRecord]:
    """Three nets with and without a defense at two budgets, one that masks, and one without a bound."""
    made = []
    for eps in (Fraction(1, 10), Fraction(1, 5)):
        for place, name in enumerate(("a_net.digits", "b_net.digits", "c_net.digits")):
            for defense in ("none", "sr"):
                robust = 8 + 3 * place + 9 * (defense == "sr") - 4 * (eps == Fraction(1, 5))
                spent = {"energy_clean_pj": 1000.0 * (place + 1), "energy_adv_pj": 1000.0}
                for attack, more in (("pgd.linf", 0), ("noise", 4)):
                    verdicts = "r" * (robust + more) + "b" * (36 - robust - more) + "w" * (4 - place)
                    access = Access.WHITE if attack == "pgd.linf" else Access.LABEL
                    made.append(
                        make_record(
                            verdicts, victim=name, defense=defense, attack=attack, eps=eps, access=access,
                            measures=spent,
                        )
                    )  # fmt: skip
    made.append(make_record("r" * 38 + "ww", victim="masked"))
    made.append(make_record("r" * 5 + "b" * 33 + "ww", victim="masked", attack="noise", access=Access.LABEL))
    made += [make_record("rbbbbw", victim=name, eps=None) for name in ("a_net.digits", "b_net.digits")]
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    records = board()
    sections = build(records)
    said = {
        ("attacks", "pgd.linf"): Component("Signed steps.", "Madry et al. 2018, arXiv:1706.06083."),
        ("victims", "b_net.digits"): Component("A net.", "", "timing", 4),
    }
    pictures = {records[0].key: [PIXEL]}
    (folder / "leaderboard.html").write_text(to_html(sections, ("made here",), said, pictures), "utf-8")
    (folder / READING).write_text(to_reading(sections, ("made here",)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, site: Path) -> Iterator[Any]:
    """A page that may neither ask for anything but files of the site, nor log an error."""
    found = browser.new_page(viewport={"width": 1280, "height": 900})
    trouble: list[str] = []
    found.on("pageerror", lambda error: trouble.append(str(error)))
    found.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
    found.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(r.url))
    yield found
    found.close()
    assert trouble == []


def open_at(page: Any, site: Path, where: str = "") -> None:
    page.goto((site / "leaderboard.html").as_uri() + where)


def names(page: Any) -> list[str]:
    """Return the rows that are shown, in order."""
    return [
        text.strip() for text in page.locator(".board:visible .main tbody tr:visible th").all_inner_texts()
    ]


def shot(page: Any, folder: Path, name: str) -> None:
    kept = Path(os.environ.get("ROBUSTSPIKE_SCREENSHOTS", folder))
    kept.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=kept / f"{name}.png")


def test_one_board_is_shown_and_tabs_change_it(page: Any, site: Path) -> None:
    open_at(page, site)
    assert page.locator(".board:visible").count() == 1
    assert page.locator("nav a[aria-current=page]").inner_text() == "linf 1/10"
    page.get_by_role("link", name="linf 1/5").click()
    assert (
        page.url.endswith("#digits-linf-1-5") and "linf 1/5" in page.locator(".board:visible h2").inner_text()
    )


def test_a_link_leads_to_a_board_on_another_page(page: Any, tmp_path: Path) -> None:
    records = [*board(), *(replace(r, dataset="faces", key="f" + r.key[1:]) for r in board())]
    with mock.patch.multiple(module, LIMIT=40_000, _SHELL=0):
        pages = to_pages("leaderboard.html", build(records))
    for name, text in pages.items():
        (tmp_path / name).write_text(text, "utf-8")
    assert list(pages) == ["leaderboard.html", "leaderboard-faces.html"]
    open_at(page, tmp_path)
    page.locator("nav a[href='leaderboard-faces.html#faces-linf-1-5']").click()
    assert page.locator(".board:visible h2").inner_text().startswith("faces")
    assert page.locator("nav a[aria-current=page]").count() == 1
    page.get_by_role("link", name="Published figures").click()
    assert page.url.endswith("leaderboard.html#published")


def test_a_page_without_ranks_is_read(page: Any, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.html").write_text(to_html([]), "utf-8")
    open_at(page, tmp_path)
    assert page.locator("#published").is_visible()


def test_sorting_is_kept_in_the_address_and_said(page: Any, site: Path) -> None:
    open_at(page, site)
    button = page.locator(".board:visible").get_by_role("button", name="clean", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert "sort=clean%3Adesc" in page.url
    assert page.locator(".board:visible th[aria-sort=descending]").inner_text().startswith("clean")
    first = names(page)
    page.locator(".board:visible").get_by_role("button", name="clean", exact=True).click()
    assert "sort=clean%3Aasc" in page.url and names(page)[0] != first[0]
    before = names(page)
    page.reload()
    assert names(page) == before


def test_filters_search_and_reset(page: Any, site: Path) -> None:
    open_at(page, site)
    assert len(names(page)) == 7
    page.locator(".board:visible select[name=defense]").select_option("sr")
    assert len(names(page)) == 3 and page.locator(".board:visible output").inner_text() == "3 of 7 rows"
    page.locator(".board:visible [type=search]").fill("b_net")
    assert names(page) == ["b_net.digits + sr"] and "defense=sr" in page.url and "search=b_net" in page.url
    page.get_by_role("button", name="Reset").first.click()
    assert len(names(page)) == 7 and page.url.endswith("#" + LINF)
    page.locator(".board:visible select[name=family]").select_option("timing")
    assert names(page) == ["b_net.digits + sr", "b_net.digits"]
    open_at(page, site, f"#{LINF}?flags=black_box_beats_white_box")
    assert names(page) == ["masked"]


def test_columns_come_on_demand_and_sort(page: Any, site: Path) -> None:
    open_at(page, site)
    page.locator(".board:visible .tools summary").click()
    page.get_by_label("energy_nj").check()
    assert (
        page.locator(".board:visible .main thead th").last.inner_text() == "energy_nj"
        and "col=energy_nj" in page.url
    )
    open_at(page, site, f"#{LINF}?col=noise&sort=noise:desc")
    page.reload()
    last = page.locator(".board:visible .main tbody tr td:last-child").all_inner_texts()
    figures = [float(text.split()[0]) for text in last]
    assert figures == sorted(figures, reverse=True) and "[" in last[0]


def test_a_row_opens_its_card_by_keyboard_and_closes(page: Any, site: Path, tmp_path: Path) -> None:
    open_at(page, site)
    page.locator(".board:visible").get_by_role("link", name="a_net.digits", exact=True).press("Enter")
    card = page.get_by_role("dialog")
    assert card.get_by_role("heading", level=2).inner_text() == "a_net.digits"
    text = card.inner_text()
    for said in (
        "weights (sha256)",
        "robustspike reproduce 'a_net.digits' --records",
        "Every attack",
        "pgd.linf",
        "noise",
        "eps",
    ):
        assert said in text
    assert card.locator("svg").count() == 1 and card.locator("img").count() == 1
    with page.expect_download() as download:
        card.get_by_role("link", name="Download this row").click()
    assert download.value.suggested_filename == "a_net_digits.json"
    low, mark, high = (
        float(text)
        for text in card.locator(".bar").last.evaluate(
            "e => e.style.background.match(/[\\d.]+(?=%)/g).filter((v, i) => [1, 2, 5].includes(i))"
        )
    )
    assert low < mark < high and mark == pytest.approx(20)  # 8 of 40 samples
    shot(page, tmp_path, "card")
    card.get_by_role("link", name="pgd.linf").click()
    assert "Who beats it" in card.inner_text() or "Signed steps." in card.inner_text()
    assert (
        card.get_by_role("link", name="arXiv:1706.06083").get_attribute("href")
        == "https://arxiv.org/abs/1706.06083"
    )
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "card" not in url, timeout=5000)
    assert page.get_by_role("dialog").count() == 0


def test_cards_of_defenses_and_of_boards_without_a_bound(page: Any, site: Path) -> None:
    open_at(page, site, f"#{LINF}?card=defense:sr")
    assert (
        page.get_by_role("dialog").locator("tbody tr").first.inner_text().split("\t")[2] == "23.7"
    )  # 9 of 38 samples
    open_at(page, site, "#digits-linf-min?card=row:a_net.digits")
    page.reload()
    assert "budget:" in page.get_by_role("dialog").locator("svg").first.text_content()
    open_at(page, site, f"#{LINF}?card=row:nobody")
    page.reload()
    assert page.get_by_role("dialog").count() == 0 and len(names(page)) == 7


def test_the_plot_follows_filters_and_its_axis(page: Any, site: Path) -> None:
    open_at(page, site, f"#{LINF}?x=energy_nj&defense=none")
    assert page.locator(".board:visible circle[cx]").count() >= 3
    assert (
        page.locator(".board:visible .plots svg").first.get_attribute("aria-label")
        == "worst_case over energy_nj"
    )


@pytest.mark.parametrize("width", [390, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_and_passes_axe(
    page: Any, site: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="extra site-test")
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for name, where in (("board", ""), ("card", f"#{LINF}?card=row:a_net.digits")):
        open_at(page, site, where)
        page.reload()
        shot(page, tmp_path, f"{name}-{width}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = axe.Axe().run(page).response["violations"]
        assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    open_at(page, site)
    page.reload()
    headline = page.locator(".board:visible .main tbody tr").first.locator("td").nth(1).bounding_box()
    assert headline["x"] + headline["width"] <= width


def test_how_to_read_it_is_one_click_away(page: Any, site: Path) -> None:
    open_at(page, site)
    page.get_by_role("link", name="How to read this").click()
    assert page.url.endswith(READING) and page.get_by_role("heading", name="Columns").is_visible()
    page.get_by_role("link", name="The leaderboard").click()
    assert page.locator(".board:visible").count() == 1
