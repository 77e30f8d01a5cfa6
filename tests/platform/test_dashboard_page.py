"""The dashboard in headless Chromium: what it shows, by keys alone, to a screen reader, in both themes, and live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from shoal.dashboard.palette import DARK, LIGHT
from shoal.record.rundir import RunDir
from tests.platform.test_dashboard_views import contrast, line
from tests.platform.test_report_page import START, STEPS, demo_record
from tests.support.browser import Browser, browser
from tests.support.pages import serving

HOSTILE = "<b onclick=alert(1)>node9</b>"
ALIVE = 60  # seconds, after which a page that says nothing is taken for dead


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page:
    """The page of a storage of two runs."""

    def __init__(self, driver: Browser, url: str, runs: dict[str, RunDir]) -> None:
        self.driver, self.url, self.runs = driver, url, runs
        self.open()

    def open(self) -> None:
        self.driver.get(self.url)
        self.until(lambda: self.js("return document.body.dataset.drawn === 'yes' && !document.hidden"))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, where: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", where))

    def count(self, what: str) -> int:
        return int(self.js("return document.querySelectorAll(arguments[0]).length", what))

    def texts(self, what: str) -> list[str]:
        found: list[str] = self.js(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", what
        )
        return found

    def until(self, done: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, ALIVE, poll_frequency=0.02).until(lambda _: done())

    def emulate(self, feature: str, value: str) -> None:
        features = {"features": [{"name": feature, "value": value}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)


FOCUSED = """
const one = document.activeElement;
return one.id || (one.name ? one.name + ' ' + one.value : one.tagName + ' ' + one.textContent.trim());
"""
CONTROLS = """
return [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')].filter((one) =>
  one.checkVisibility() && !(one.type === 'radio' && !one.checked)).map((one) =>
  one.id || (one.name ? one.name + ' ' + one.value : one.tagName + ' ' + one.textContent.trim()));
"""
COLOURS = """
const seen = [];
const solid = (colour) => !/, 0\\)$/.test(colour) && colour !== 'transparent';
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const one = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !one.checkVisibility() || one.closest('script, style, option')) continue;
  let under = one;
  while (under && !solid(getComputedStyle(under).backgroundColor)) under = under.parentElement;
  const bar = one.ownerSVGElement && one.previousElementSibling && one.previousElementSibling.tagName === 'rect'
    && one.style.fill ? getComputedStyle(one.previousElementSibling).fill : null;
  const style = getComputedStyle(one);
  seen.push([walk.currentNode.data.trim().slice(0, 40), one.ownerSVGElement ? style.fill : style.color,
    bar || getComputedStyle(under || document.documentElement).backgroundColor]);
}
return seen;
"""


@pytest.fixture
def page(chromium: Browser, tmp_path: Path) -> Iterator[Page]:
    """The demo's record, in which a node has a hostile name, and a shorter run that is still going on."""
    runs = {"demo": demo_record(tmp_path), "short": RunDir.create(tmp_path, "short", {}, resume=False)}
    runs["demo"].append_event("node_aside", node=HOSTILE, reason="a name like code", time=START + 60)
    runs["short"].append_event("run_started", run_id="short", steps=40, cells=1, workers_per_cell=1, time=START)
    for step in range(20):
        runs["short"].append_step(line(step, time=START + 1 + step))
    with serving(runs["demo"].path) as server:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        found = Page(chromium, server.url, runs)
        found.js("localStorage.clear()")
        yield found
        chromium.get("about:blank")


def hexed(colour: str) -> str:
    parts = [int(float(part)) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return "#" + "".join(f"{part:02x}" for part in parts)


def test_a_run_is_shown_and_nothing_goes_wrong(page: Page) -> None:
    assert page.text("h1") == "demo"
    assert page.text("#status") == "✓ done"
    assert [
        page.js(f"return document.querySelectorAll('#crew .worker.{state}').length") for state in ("trains", "gone")
    ] == [4, 4]
    assert page.count("#timeline .cross") == 4
    sentences = page.texts("#story li.recovery")
    assert ["node1" in sentences[0], "node2" in sentences[1]] == [True, True]
    assert page.texts("#curves figcaption b") == [
        "Loss", "Tokens a second", "Gradient norm", "Learning rate", "Held-out bits a byte",
    ]  # fmt: skip
    assert HOSTILE in page.text("#story")
    assert page.count("[onclick]") == 0
    errors = [entry for entry in page.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []


def test_news_come_by_themselves_and_are_spoken(page: Page) -> None:
    run = page.runs["demo"]
    assert page.js("const one = document.getElementById('news'); return [one.role, one.ariaLive]") == [
        "status",
        "polite",
    ]
    run.append_step(line(STEPS, time=START + 61))
    page.until(lambda: page.js("return document.body.dataset.step") == str(STEPS + 1))
    run.append_event("death", actor="demo/spare1@node3", node="node3", pid=1, cell=1, how="kill -9", step=STEPS)
    page.until(lambda: "died on node3" in page.text("#news"))
    assert page.count("#crew .worker.gone") == 5
    assert "died on node3" in page.js("return document.querySelector('#story li').textContent")
    page.runs["short"].append_event("run_ended", status="done", reason="x")  # another run's news are not this one's
    run.append_step(line(STEPS + 1, time=START + 62))
    page.until(lambda: page.js("return document.body.dataset.step") == str(STEPS + 2))
    assert "died on node3" in page.text("#news")


def test_every_control_is_reached_by_tab_in_the_order_of_the_page(page: Page) -> None:
    for details in ("compare", "pick"):
        page.js("document.getElementById(arguments[0]).open = true", details)
    page.js("document.querySelectorAll('section > details, section div > details').forEach((one) => one.open = true)")
    expected = page.js(CONTROLS)
    assert len(expected) > 25
    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.js(f"window.reached = []; document.addEventListener('focusin', () => reached.push((() => {{{FOCUSED}}})()))")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    ActionChains(page.driver).send_keys(Keys.TAB * (len(expected) - 1)).perform()
    assert page.js("return window.reached") == expected
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.js("return [...document.querySelectorAll('#compare, #pick')].map((one) => one.open)") == [False, False]


def test_the_keyboard_alone_reads_a_curve_and_arranges_the_map(page: Page) -> None:
    page.js("document.getElementById('cursor').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.HOME)
    page.until(lambda: page.text("#at") == "step 1")
    assert page.js("return document.getElementById('cursor').getAttribute('aria-valuetext')").startswith(
        "step 1: Loss 12.43"
    )
    page.js("document.querySelector('input[name=arrange]').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: "✕ lost" in page.text("#crew"))
    page.js("document.getElementById('span').focus()")
    page.driver.switch_to.active_element.send_keys("last 100")
    page.until(lambda: page.js("return document.getElementById('span').value") == "100")


def test_a_screen_reader_has_names_landmarks_and_a_table_beside_each_picture(page: Page) -> None:
    page.js("document.querySelectorAll('details').forEach((one) => one.open = true)")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes if not node["ignored"]
    ]
    controls = {
        "button",
        "checkbox",
        "combobox",
        "DisclosureTriangle",
        "link",
        "radio",
        "searchbox",
        "slider",
        "spinbutton",
    }
    named = {"image", "img", "region", "navigation", "progressbar", "figure"}
    assert [role for role, name in told if role in controls | (named - {"figure"}) and not name] == []
    assert {"banner", "navigation", "main", "contentinfo", "slider", "progressbar"} <= {role for role, _ in told}
    regions = [name for role, name in told if role == "region"]
    assert len(set(regions)) == len(regions)
    pictures = [name for role, name in told if role in ("image", "img") and name]
    assert any("4 workers in 2 cells, 0 spares, 4 workers gone" in name for name in pictures)
    assert any("2 recoveries" in name for name in pictures)
    captions = page.texts("table caption")
    assert captions == ["Generation 2: every worker", "Every recovery, and every change of shape", "Of what is drawn"]
    assert page.js("return [...document.querySelectorAll('h1, h2')].map((one) => one.tagName)") == ["H1", *["H2"] * 4]
    assert page.js("return document.documentElement.lang") == "en"


@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_each_theme_is_the_systems_and_every_text_can_be_read(page: Page, scheme: str, theme: dict[str, str]) -> None:
    page.emulate("prefers-color-scheme", scheme)
    page.js("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert hexed(page.js("return getComputedStyle(document.body).backgroundColor")) == theme["ground"]
    seen = page.js(COLOURS)
    assert len(seen) > 150
    faint = [(text, one, on) for text, one, on in seen if contrast(hexed(one), hexed(on)) < 4.5]
    assert faint == []


def test_the_switch_wins_over_the_system_and_is_remembered(page: Page) -> None:
    page.emulate("prefers-color-scheme", "light")
    page.js("document.getElementById('theme').focus()")
    page.driver.switch_to.active_element.send_keys("dark")
    for _ in range(2):
        assert hexed(page.js("return getComputedStyle(document.body).backgroundColor")) == DARK["ground"]
        page.open()
    page.js("localStorage.clear()")


def test_a_run_is_laid_over_another(page: Page) -> None:
    page.until(lambda: page.count("#others input") == 1)
    page.js("document.getElementById('compare').open = true; document.querySelector('#others input').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.SPACE)
    page.until(lambda: page.count("#curves figure:first-child path.line") == 2)
    assert page.texts("#runs-legend li") == [
        "demo",
        "short",
    ]
    strokes = "return [...document.querySelectorAll('#curves figure:first-child path.line')].map((one) => "
    assert page.js(strokes + "one.getAttribute('stroke-dasharray'))") == [None, "7 3"]
    assert "short 2" in page.text("#curves figcaption span")
    assert page.text("h1") == "demo"


@pytest.mark.parametrize("width", [1400, 700, 360])
def test_it_fits_where_there_is_little_room_and_nothing_moves_for_who_wants_that(page: Page, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.emulate("prefers-reduced-motion", "reduce")
    page.until(lambda: page.js("return document.documentElement.scrollWidth <= innerWidth"))
    assert page.js("return getComputedStyle(document.querySelector('#progress i')).transitionDuration") == "0s"
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
