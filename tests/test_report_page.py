"""The report page in a real browser: it works, it is small and quick, and it asks nothing of the network."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report.render import render
from tests.report_data import make_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is on PATH")

NUM_CASES = 2_000
MAX_BYTES = 5_000_000
MAX_FIRST_PAINT_MS = 3_000  # on a busy machine, with a browser that has just started
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')"
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def write_report(folder: Path, num_cases: int) -> Path:
    path = folder / "report.html"
    path.write_text(render("report.html.j2", make_report(num_cases, num_exchanges=120)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("large"), NUM_CASES)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("small"), 120)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def large(browser, large_file: Path) -> Iterator:
    yield from opened(browser, large_file)


@pytest.fixture
def page(browser, small_file: Path) -> Iterator:
    yield from opened(browser, small_file)


def opened(browser, file: Path) -> Iterator:
    """The report, open. Whatever it asks for elsewhere is refused, and fails the test as every console error does."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file://") else problems.append(request.url))
    page.route(lambda url: not url.startswith("file://"), lambda route: route.abort())
    page.goto(file.as_uri())
    yield page
    context.close()
    assert problems == []


def shown(page) -> list[str]:
    return [entry.get_attribute("data-id") for entry in page.locator(".entry").all()]


def count(page) -> int:
    return int(page.locator("[role=status]").inner_text().split()[0].replace(",", ""))


def test_it_is_small_and_paints_quickly(large, large_file: Path):
    assert large_file.stat().st_size < MAX_BYTES
    for _ in range(100):  # a page that has loaded may be painted a little later
        if large.evaluate(f"{FIRST_PAINT}.length"):
            break
        large.wait_for_timeout(50)
    paint = large.evaluate(f"{FIRST_PAINT}[0].startTime")
    print(f"{large_file.stat().st_size / 1e6:.2f} MB, first paint after {paint:.0f} ms")
    assert paint < MAX_FIRST_PAINT_MS
    assert large.locator("h1").is_visible() and large.locator(".stamp").inner_text() == "✗ FAIL"


def test_filters_narrow_the_list_and_live_in_the_address(large):
    assert count(large) == NUM_CASES and len(shown(large)) == 25
    large.get_by_role("combobox", name="Kind").select_option("fraud")
    large.get_by_role("combobox", name="Attack").select_option("persona")
    large.get_by_role("combobox", name="Verdict").select_option("base → aligned: changed")
    narrowed, ids = count(large), shown(large)
    assert 0 < narrowed < 100 and all("fraud" in row and row.endswith("/persona") for row in ids)
    chips = large.locator(".entry").first.locator(".chips b").all_inner_texts()
    assert chips[0] != chips[-1]
    large.goto(large.url)  # the address alone brings the same view
    large.reload()
    assert (count(large), shown(large)) == (narrowed, ids)
    large.get_by_role("button", name="Clear filters").click()
    assert count(large) == NUM_CASES


def test_search_finds_words_in_replies_and_the_row_that_a_model_was_taught(large):
    large.get_by_role("searchbox").fill("neighbour's parcel MEND")
    sync_api.expect(large.get_by_role("status")).to_have_text(re.compile("^111 of 2,000"))
    assert large.locator(".entry h3 mark").first.inner_text().lower() in {"mend", "neighbour's", "parcel"}
    large.get_by_role("searchbox").fill("nothing says this")
    large.get_by_text("No transcript matches.").wait_for()
    large.get_by_text("Critique and revision (120)").click()
    large.get_by_role("searchbox").fill("red_team-fraud-6/round-2")
    sync_api.expect(large.locator(".entry")).to_have_count(1)
    large.locator(".entry summary").first.click()
    assert large.locator(".entry .diff ins").first.is_visible() and large.locator(".entry .diff del").first.is_visible()
    large.locator(".lineage summary").click()
    assert large.locator(".lineage").get_by_text("red_team-fraud-6/round-2 in 3-sft/rows.jsonl").is_visible()
    large.locator(".round a").first.click()
    assert large.locator(":target h3").is_visible() and "#principle-" in large.url


def test_show_more_adds_a_page_and_moves_the_focus_there(page):
    page.get_by_role("button", name="Show 25 more").click()
    assert len(shown(page)) == 50
    focused = page.evaluate("document.activeElement.closest('.entry').dataset.id")
    assert focused == shown(page)[25]


def test_a_permalink_opens_its_entry_whatever_the_filters_say(page):
    page.goto(page.url.split("#")[0] + "#kind=drugs&e=r:red_team-fraud-6/direct")
    page.wait_for_selector(".entry.linked")
    assert page.evaluate("document.activeElement.closest('.entry').dataset.id") == "r:red_team-fraud-6/direct"
    assert page.locator(".entry.linked .reply").first.is_visible() and page.locator(".entry.linked").is_visible()
    page.locator(".entry").nth(1).locator("summary").first.click()
    link = page.locator(".entry").nth(1).get_by_role("link", name="Link to this entry")
    wanted = shown(page)[1]
    link.click()
    sync_api.expect(page.locator(".entry.linked")).to_have_attribute("data-id", wanted)
    page.goto(page.url.split("#")[0] + "#e=r:nobody")
    page.get_by_text("there is no entry r:nobody").wait_for()


def test_rewards_stand_beside_the_replies_that_have_one(page):
    entries = page.evaluate(
        "data.collections[0].entries.slice(0, 25).map((e) => [e.id, e.replies.map((r) => r.at(-1))])"
    )
    rewarded = next(row for row in entries if all(reward is not None for reward in row[1]))
    without = next(row for row in entries if None in row[1])
    for case, rewards in (rewarded, without):
        entry = page.locator(f".entry[data-id='{case}']")
        entry.locator("summary").first.click()
        shown = [text.strip() for text in entry.locator(".reward").all_inner_texts()]
        assert shown == [f"reward {reward:+.2f}".replace("-", "−") for reward in rewards if reward is not None]


def test_labels_show_a_bar_and_each_judgement(page):
    page.get_by_text("Labels (120)").click()
    entry = page.locator(".entry").nth(1)
    entry.locator("summary").first.click()
    assert entry.locator(".soft-label").is_visible() and entry.locator(".judgements tbody tr").count() == 2
    page.get_by_role("combobox", name="Principle").select_option("no-fraud")
    assert 0 < count(page) < 120


def test_everything_works_from_the_keyboard(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.get_by_role("button", name="Clear filters").focus()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('.entry').dataset.id") == shown(page)[1]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator(".entry").nth(1).locator(".reply").first.is_visible()
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.closest('.entry').dataset.id") == shown(page)[0]


def test_the_theme_can_be_chosen_and_stays(page):
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: light" and background() == light
    page.reload()
    assert background() == light


def test_paper_shows_everything_that_is_folded(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]):not(.entry *)").count() == 0
    assert page.locator(".entry > details:not([open])").count() == 25
    assert not page.locator(".controls").is_visible() and page.locator(".measures").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_parts_have_names_and_tables_have_headings(page):
    assert page.locator("main").count() == page.locator("h1").count() == page.locator("nav[aria-label]").count() == 1
    assert page.evaluate("[...document.querySelectorAll('th')].every((cell) => cell.scope)")
    unnamed = "svg:not([aria-hidden]):not([role=img]):not(svg svg)"
    assert page.locator(unnamed).count() == 0
    assert (
        page.evaluate("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size")
        == page.locator("[id]").count()
    )


def test_without_javascript_a_few_transcripts_are_there(browser, small_file: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(small_file.as_uri())
    assert page.locator(".entry").count() == 8 and page.locator(".entry").first.is_visible()
    assert not page.locator("#explorer").is_visible()
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_a_tablet_and_a_laptop(page, theme: str, tmp_path: Path):
    folder = Path(os.environ.get("CAI_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    for width in (380, 800, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page must not scroll sideways"
        for part in ("verdict", "changes", "figures", "reward", "judges", "transcripts"):
            page.evaluate("part => document.getElementById(part).scrollIntoView()", part)
            page.evaluate(PAINTED)
            image = page.screenshot(path=folder / f"{width}-{theme}-{part}.png")
            assert len(image) > 8_000, "a blank page compresses to less"
