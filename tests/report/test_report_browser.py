"""The page in a real Chromium, at desk and at phone width."""

import os
import shutil
from pathlib import Path

import pytest
from sample_report import sample_report
from test_report_page import poisoned

from limbeck.report import write_page

SECTIONS = [
    "stages",
    "tradeoffs",
    "layers",
    "training",
    "reliability",
    "budget",
    "exports",
    "recipe",
    "environment",
    "measured",
]


def chromium():
    """The browser: LIMBECK_CHROMIUM, or one on the path; None where there is none."""
    named = os.environ.get("LIMBECK_CHROMIUM")
    found = [
        named,
        shutil.which("chromium"),
        shutil.which("chromium-browser"),
        shutil.which("google-chrome"),
        "/usr/bin/chromium",
    ]
    return next((path for path in found if path and Path(path).is_file()), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if chromium() is None:
        pytest.skip("no Chromium was found: install one or set LIMBECK_CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


class Watched:
    """An open page and everything it complained about or asked the network for."""

    def __init__(self, browser, file, width, **settings):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(300_000)  # a machine may be busy
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = Path(file).resolve().as_uri()
        self.page.goto(self.url)

    def clean(self):
        return self.complaints == [] and self.requests == [self.url]

    def overflow(self):
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(sample_report(), path)
    return path


@pytest.fixture(scope="module")
def desk(browser, file):
    watched = Watched(browser, file, 1280)
    yield watched
    watched.context.close()


@pytest.fixture(scope="module")
def phone(browser, file):
    watched = Watched(browser, file, 390, has_touch=True)
    yield watched
    watched.context.close()


def test_sections_and_rows(desk):
    for name in SECTIONS:
        assert desk.page.locator(f"section#{name} h2").count() == 1
    assert desk.page.locator("table.stages tbody tr").count() == 6
    assert desk.page.locator("section#training figure").count() == 6
    assert desk.page.locator("section#reliability svg.wide").count() == 2


@pytest.mark.parametrize("width", ["desk", "phone"])
def test_the_page_does_not_scroll_sideways(width, request):
    watched = request.getfixturevalue(width)
    assert watched.overflow() <= 0
    watched.page.locator("section#measured summary").click()
    assert watched.overflow() <= 0
    watched.page.locator("section#measured summary").click()


@pytest.mark.parametrize("width", ["desk", "phone"])
def test_each_width_sees_its_own_charts_and_readable_words(width, request):
    page = request.getfixturevalue(width).page
    kinds = {"desk": ("wide", "narrow"), "phone": ("narrow", "wide")}[width]
    assert page.locator(f"svg.chart.{kinds[0]}").first.is_visible()
    assert not page.locator(f"svg.chart.{kinds[1]}").first.is_visible()
    heights = page.locator(f"svg.chart.{kinds[0]} text").evaluate_all(
        "all => all.map(t => t.getBoundingClientRect().height)"
    )
    assert min(heights) >= 10


@pytest.mark.parametrize("width", ["desk", "phone"])
def test_words_in_charts_do_not_overlap(width, request):
    page = request.getfixturevalue(width).page
    kind = {"desk": "wide", "phone": "narrow"}[width]
    overlaps = page.locator(f"svg.chart.{kind}").evaluate_all("""charts => charts.flatMap(chart => {
        const boxes = [...chart.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
            Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
            Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3).map(([b]) => `${a} / ${b}`));
    })""")
    assert overlaps == []


def test_hovering_and_focusing_a_point_shows_its_numbers(desk):
    page, tip = desk.page, desk.page.locator("#tip")
    point = page.locator('#tradeoffs svg.wide .point[data-stage="ONNX int8"]').first
    point.scroll_into_view_if_needed()
    assert not tip.is_visible()
    point.hover()
    assert tip.is_visible() and "ONNX int8" in tip.inner_text() and "172 kB" in tip.inner_text()
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    point.focus()
    assert tip.is_visible() and "91.49 %" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    point.blur()


def test_the_readout_of_a_curve_follows_pointer_and_arrow_keys(desk):
    page, tip = desk.page, desk.page.locator("#tip")
    chart = page.locator("#training svg.wide").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)
    assert "step" in tip.inner_text() and "SoftTargets" in tip.inner_text()
    page.mouse.move(5, 5)
    chart.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert tip.is_visible() and tip.inner_text().startswith("step")
    chart.blur()


def test_sorting_by_size(desk):
    page = desk.page
    head = page.locator("table.stages thead th", has_text="Size")
    names = "rows => rows.map(row => row.dataset.stage)"
    rows = page.locator("table.stages tbody tr")
    before = rows.evaluate_all(names)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows.evaluate_all(names)[0] == "ONNX int8" and rows.evaluate_all(names)[-1] == "teacher"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending" and rows.evaluate_all(names)[0] == "teacher"
    latency = page.locator("table.stages thead th", has_text="Latency").locator("button")
    for _ in range(2):
        latency.click()
        assert rows.evaluate_all(names)[-1] == "quantization-aware", "what was not measured stands last"
    stage = page.locator("table.stages thead th", has_text="Stage").locator("button")
    stage.click()
    assert rows.evaluate_all(names) == before


def test_the_theme_switches(desk):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = desk.page.evaluate(ground)
    desk.page.locator("#theme").click()
    dark = desk.page.evaluate(ground)
    desk.page.locator("#theme").click()
    assert light != dark and desk.page.evaluate(ground) == light


def test_everything_that_reacts_can_be_reached_by_keyboard(desk):
    unreachable = "all => all.filter(e => e.tabIndex < 0 || !e.getAttribute('aria-label')).length"
    assert desk.page.locator("[data-tip]").evaluate_all(unreachable) == 0
    scrolling = "all => all.filter(e => e.tabIndex < 0).length"
    assert desk.page.locator(".scroll, pre").evaluate_all(scrolling) == 0


def test_no_complaints_and_no_requests(desk, phone):
    assert desk.clean(), (desk.complaints, desk.requests)
    assert phone.clean(), (phone.complaints, phone.requests)


def test_hostile_text_stays_text(browser, tmp_path):
    write_page(poisoned(sample_report()), tmp_path / "page.html")
    watched = Watched(browser, tmp_path / "page.html", 390)
    assert watched.clean(), (watched.complaints, watched.requests)
    assert watched.page.locator("h1").inner_text().startswith("<script>")
    assert watched.page.locator("script").count() == 1 and watched.page.locator("img").count() == 0
    assert watched.overflow() <= 0
    watched.context.close()
