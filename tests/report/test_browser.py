"""The page in a headless Chromium: drawn whole and in silence, filtered, sorted, printed, read by
axe-core's rules.

Needs Debian's `chromium` (`.ci/run` installs it) and the packages of the `test` extra.
"""

import shutil

import pytest

from harness.report.__main__ import main
from tests.report import made

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>%{y}\'</script>'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The page of a store with two models, a failed cell, times, and markup wherever a record holds
    words."""
    root = tmp_path_factory.mktemp("page")
    results = root / "results"
    made.sweep(results, models=["m", "other"], contexts=[256, 512], masks=[4, 16], samples=20)
    folder = made.cell(results, made.plsh(8), model=HOSTILE, fused=20.0, passes=40.0, label=HOSTILE)
    made.record(folder, lambda k: float(k % 2), samples=20, prediction=HOSTILE, target=HOSTILE)
    made.failed(made.cell(results, made.plsh(4), context=1024, fused=50.0, passes=90.0), "ValueError", HOSTILE)
    for context in (256, 512, 1024):
        for attn, power in ((made.ALIBI, 2), (made.plsh(16), 1)):
            made.timed(made.cell(results, attn, context=context, seed=7, fused=10.0), (context / 256) ** power)
    assert main([str(results), "--out", str(root / "out")]) == 0
    return root / "out" / "index.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of one context: what a rule says of it, it says of more."""
    root = tmp_path_factory.mktemp("small")
    made.sweep(root / "results", models=["m"], contexts=[256], masks=[4], samples=20)
    made.failed(made.cell(root / "results", made.plsh(8), fused=50.0, passes=90.0), "ValueError", HOSTILE)
    assert main([str(root / "results"), "--out", str(root / "out")]) == 0
    return root / "out" / "index.html"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def show(browser, file):
    """Open the page and wait until all that is visible is drawn; nothing may be fetched, nothing
    complained of."""
    opened, said = [], []

    def call(file=file, **looks):
        page = browser.new_page(**looks)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(file.as_uri())
        page.wait_for_selector('html[data-waiting="0"]', timeout=60_000)
        opened.append(page)
        return page

    yield call
    for page in opened:
        assert page.evaluate("window.hacked") is None
        page.close()
    assert said == []


def drawn(page) -> int:
    return page.locator(".plot .main-svg >> nth=0").count() and page.evaluate(
        "[...document.querySelectorAll('.plot')].filter((p) => p.querySelector('.trace, .heatmaplayer image')).length"
    )


def test_every_plot_is_drawn(show):
    page = show()
    page.evaluate("document.querySelectorAll('details.more').forEach((d) => (d.open = true))")
    page.wait_for_timeout(100)
    page.wait_for_selector('html[data-waiting="0"]')
    plots = page.locator(".plot").count()
    assert plots > 30 and drawn(page) == plots
    for key in ("verdict", "masks", "depth", "distance", "cost", "context", "kernels"):
        assert page.locator(f"#{key} .plot").count() > 0, key


def test_axe_finds_nothing_to_object_to(show, small):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = show(small, color_scheme="light")
    page.evaluate("document.querySelectorAll('details:not(.values), #masks .values').forEach((d) => (d.open = true))")
    page.wait_for_timeout(100)
    page.wait_for_selector('html[data-waiting="0"]')
    words = {"exclude": [[".plot > *"]]}  # a plot is one image with a label
    found = axe.Axe().run(page, words)
    assert found.violations_count == 0, found.generate_report()
    page.emulate_media(color_scheme="dark")
    found = axe.Axe().run(page, words, {"runOnly": ["color-contrast"], "resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


def test_fits_a_phone(show):
    page = show(viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#masks .plot .main-svg").first.bounding_box()["width"] <= 340


def test_filters_hide_what_they_leave_out(show):
    page = show()
    page.select_option('[data-filter="model"]', "other")
    assert page.locator("#masks h3:visible").all_inner_texts() == ["other, retrieval"]
    models = page.locator("#cells tbody tr:visible td:nth-child(2)").all_text_contents()
    assert models and set(models) == {"other"}
    page.select_option('[data-filter="weights"]', "rb")
    names = page.locator("#masks .legend >> visible=true").first.locator("li:visible").all_inner_texts()
    assert "PLSH gamma rb" in names and "PLSH gamma count" not in names and "exact ALiBi" in names
    shown = "#masks div:not([hidden]) > .panels figure:first-child .plot"
    assert page.locator(f"{shown} .trace").count() < 8
    page.select_option('[data-filter="weights"]', "")
    assert "PLSH gamma count" in page.locator("#masks li:visible").all_inner_texts()


def test_failed_and_missing_cells_are_found_and_say_why(show):
    page = show()
    page.select_option("[data-of-status]", "error")
    rows = page.locator("#cells tbody tr:visible")
    assert rows.count() == 1 and "1 of" in page.locator("#cells output").inner_text()
    rows.locator("summary").click()
    assert HOSTILE in rows.inner_text()
    page.select_option("[data-of-status]", "missing")
    assert rows.count() > 0
    rows.first.locator("summary").click()
    assert "python -m harness.run" in rows.first.inner_text()
    page.select_option("[data-of-status]", "")
    page.fill("[data-search]", "window t=4.0")
    assert rows.count() == 4


def test_columns_sort_by_keyboard(show):
    page = show()
    head = page.locator("#cells th button", has_text="pairs per row")
    head.focus()
    page.keyboard.press("Enter")
    column = page.locator("#cells tbody td:nth-child(10)")
    values = [float(t) for t in column.all_text_contents() if t]
    assert values == sorted(values)
    page.keyboard.press("Enter")
    values = [float(t) for t in column.all_text_contents() if t]
    assert values == sorted(values, reverse=True) and len(set(values)) > 3
    assert page.locator('#cells th[aria-sort="descending"]').inner_text().startswith("pairs per row")


def test_values_of_a_plot_open_as_a_table(show):
    page = show()
    page.select_option('[data-filter="model"]', "m")
    values = page.locator("#masks .values:visible").first
    values.locator("summary").click()
    values.locator("table").wait_for()
    text = values.inner_text()
    assert "PLSH S=4 gamma count" in text and "n = 20" in text and "[" in text


def test_paper_is_light(show, small):
    page = show(small, color_scheme="dark")
    ink = "getComputedStyle(document.querySelector('#masks .plot .xtick text')).fill"
    assert page.evaluate(ink) == "rgb(232, 232, 230)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ink) == "rgb(26, 26, 26)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ink) == "rgb(232, 232, 230)"
    assert len(page.pdf(format="A4")) > 50_000
