"""The pages in a real browser: nothing is fetched, images are windowed in HU, all zoom together, and phone, dark and paper work."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs Playwright, of the extra dev")
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs one of {', '.join(NAMES)}")

PAGES = ("demo_path", "study_path", "evaluation_path", "physics_path")
VIEWER = ".viewer[data-name=figure-2]"
FLAT_HU = {1: 100, 2: 107, 3: -850}
RAMPS = {0: 0, 4: 200}
"""The images of `report_pages.ramp_crop` by their place on the page: flat ones, and ramps of 10 HU a column from 0 and 200 HU."""

PIXEL = """(canvas, [x, y]) => Array.from(
    canvas.getContext("2d").getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data)"""

TEXT_CONTRAST = """() => {
    const luminance = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/, 0\\)$|transparent/.test(colour)) return colour;
        }
    };
    const low = [];
    for (const element of document.querySelectorAll("main *")) {
        const style = getComputedStyle(element), own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || !element.getClientRects().length || element.closest(".film")) continue;
        const ink = luminance(element.tagName === "text" ? style.fill : style.color), paper = luminance(ground(element));
        const ratio = Math.max(ink, paper) / Math.min(ink, paper);
        if (ratio < 4.5) low.push(`${element.tagName} ${element.textContent.slice(0, 30)} ${ratio.toFixed(1)}`);
    }
    return low;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, evaluation_path: Path) -> Iterator[Page]:
    """The page of an evaluation; a test in which it complains, or asks for another file, fails."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, offline=True) as context:
        page = context.new_page()
        complaints = watched(page)
        page.goto(evaluation_path.as_uri())
        yield page
        assert complaints == []


def watched(page: Page) -> list[str]:
    """What goes wrong on a page, and what it fetches besides itself; filled while it is open."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: found.append(request.url) if request.url.startswith(("http", "ws", "ftp")) else None)
    page.on("requestfailed", lambda request: found.append(request.url))
    return found


def gray(page: Page, tile: int, x: float = 0.5, y: float = 0.5) -> int:
    """The grey of one image of Figure 2 at a place in parts of its side."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    red, green, blue, opaque = page.locator(f"{VIEWER} .place.on canvas").nth(tile).evaluate(PIXEL, [x, y])
    assert red == green == blue and opaque == 255
    return red


def press(page: Page, name: str) -> None:
    page.locator(VIEWER).get_by_role("button", name=name, exact=True).click()


def expected(hu: float, centre: float, width: float) -> int:
    return round(min(max((hu - centre + width / 2) / width, 0), 1) * 255)


@pytest.mark.parametrize("which", PAGES)
def test_a_page_opens_offline_without_a_request_or_an_error(browser: Browser, which: str, request: pytest.FixtureRequest) -> None:
    with browser.new_context(offline=True) as context:
        page = context.new_page()
        complaints = watched(page)
        page.goto(request.getfixturevalue(which).as_uri())
        assert complaints == []
        broken = "() => [...document.querySelectorAll('img[src]')].filter(image => !image.complete || !image.naturalWidth).length"
        assert page.evaluate(broken) == 0


@pytest.mark.parametrize(("name", "centre", "width"), [("soft tissue", 40, 400), ("lung", -600, 1500), ("bone", 450, 1500)])
def test_a_window_button_shows_known_hu_as_the_right_grey(page: Page, name: str, centre: float, width: float) -> None:
    press(page, "bone" if name != "bone" else "lung")
    press(page, name)
    for tile, hu in FLAT_HU.items():
        assert gray(page, tile) == pytest.approx(expected(hu, centre, width), abs=1), hu
    assert [page.locator(f"{VIEWER} [name={field}]").input_value() for field in ("centre", "width")] == [str(centre), str(width)]


def test_a_window_may_be_typed(page: Page) -> None:
    page.locator(f"{VIEWER} [name=centre]").fill("100")
    page.locator(f"{VIEWER} [name=width]").fill("40")
    assert gray(page, 1) == 128 and gray(page, 2) == expected(107, 100, 40)


def test_the_automatic_window_spans_the_reference(page: Page) -> None:
    press(page, "auto")
    assert int(page.locator(f"{VIEWER} [name=width]").input_value()) == pytest.approx(390, abs=12)
    assert gray(page, 0, 0.02) < 15 and gray(page, 0, 0.98) > 240


def test_all_images_zoom_and_move_together(page: Page) -> None:
    press(page, "bone")
    before = gray(page, 0, 0.25)
    assert before == pytest.approx(expected(95, 450, 1500), abs=1)  # column 9.5 of 40, 10 HU each
    page.locator(f"{VIEWER} .stage").focus()
    for _ in range(2):
        page.keyboard.press("+")
    zoom = float(page.locator(VIEWER).get_attribute("data-zoom") or "nan")
    assert zoom == pytest.approx(2.25)
    left_hu = 10 * (20 - 40 / zoom / 2 + 40 / zoom * 0.25 - 0.5)
    for tile, shift_hu in RAMPS.items():
        assert gray(page, tile, 0.25) == pytest.approx(expected(left_hu + shift_hu, 450, 1500), abs=1)
    page.keyboard.press("ArrowRight")
    for tile, shift_hu in RAMPS.items():
        assert gray(page, tile, 0.25) == pytest.approx(expected(left_hu + shift_hu + 10 * 40 / zoom / 8, 450, 1500), abs=1)
    page.keyboard.press("0")
    assert page.locator(VIEWER).get_attribute("data-zoom") == "1.000"


def test_the_pointer_reads_the_same_place_in_every_image(page: Page) -> None:
    canvas = page.locator(f"{VIEWER} .place.on canvas").nth(1)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.26 * box["width"], box["y"] + 0.5 * box["height"])
    read = page.locator(f"{VIEWER} .place.on .read")
    assert read.all_text_contents() == ["100 HU", "100 HU", "107 HU", "−850 HU", "300 HU"]
    page.locator(VIEWER).get_by_role("button", name="difference", exact=True).click()
    page.mouse.move(box["x"] + 0.26 * box["width"], box["y"] + 0.51 * box["height"])
    assert read.all_text_contents() == ["100 HU", "0 HU", "+7 HU", "−950 HU", "+200 HU"]


def test_the_wheel_zooms_only_after_a_click(page: Page) -> None:
    canvas = page.locator(f"{VIEWER} .place.on canvas").nth(0)
    canvas.scroll_into_view_if_needed()
    canvas.hover()
    page.mouse.wheel(0, -120)
    gray(page, 0)
    assert page.locator(VIEWER).get_attribute("data-zoom") == "1.000"
    canvas.scroll_into_view_if_needed()
    canvas.click()
    page.mouse.wheel(0, -120)
    page.wait_for_function(f"() => +document.querySelector('{VIEWER}').dataset.zoom > 1.2")


def test_the_difference_is_to_the_first_image(page: Page) -> None:
    press(page, "difference")
    page.locator(f"{VIEWER} [name=width]").fill("400")
    assert gray(page, 1, 10.5 / 40) == pytest.approx(128, abs=1)  # 100 HU in both
    assert gray(page, 1, 20.5 / 40) == pytest.approx(expected(-100, 0, 400), abs=1)
    assert gray(page, 0, 10.5 / 40) == pytest.approx(expected(100, 40, 400), abs=1)
    page.locator(f"{VIEWER} .stage").focus()
    page.keyboard.press("d")
    assert gray(page, 2) == expected(107, 40, 400)


def test_another_place_comes_with_its_own_images(page: Page) -> None:
    press(page, "second place")
    assert page.locator(f"{VIEWER} .place.on canvas").count() == 2
    assert gray(page, 1) == pytest.approx(expected(5, 40, 400), abs=1)
    press(page, "a ramp")
    assert page.locator(f"{VIEWER} .place.on canvas").count() == 5


def test_without_scripts_every_place_is_there_and_no_button_is(browser: Browser, evaluation_path: Path) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(evaluation_path.as_uri())
        images = page.locator(f"{VIEWER} .film img")
        assert images.count() == (5 + 4) + (2 + 1) and all(image.is_visible() for image in images.all())
        assert not any(button.is_visible() for button in page.locator(f"{VIEWER} button").all())
        assert page.get_by_text("below, minus normal dose").first.is_visible()


@pytest.mark.parametrize("which", PAGES)
def test_a_phone_scrolls_no_page_sideways(browser: Browser, which: str, request: pytest.FixtureRequest) -> None:
    with browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as context:
        page = context.new_page()
        page.goto(request.getfixturevalue(which).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", PAGES)
def test_every_text_can_be_read_in_light_and_dark(
    browser: Browser, scheme: str, which: str, request: pytest.FixtureRequest
) -> None:
    with browser.new_context(color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(request.getfixturevalue(which).as_uri())
        assert page.evaluate(TEXT_CONTRAST) == []
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]


def test_paper_gets_a4_pages_with_every_place(page: Page) -> None:
    pdf = page.pdf(prefer_css_page_size=True)
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert len(re.findall(rb"/Type /Page\b", pdf)) == len(boxes) >= 3
    sides = [float(side) for box in boxes for side in box]
    assert sides == pytest.approx([595, 842] * len(boxes), abs=1.5)
    page.emulate_media(media="print")
    assert all(image.is_visible() for image in page.locator(f"{VIEWER} .film img").all())
    assert not any(canvas.is_visible() for canvas in page.locator("canvas").all())
    assert not page.locator(f"{VIEWER} .tools").is_visible()
    page.emulate_media(media="screen")


def test_paper_keeps_the_heading_of_the_claims_that_a_phone_drops(browser: Browser, study_path: Path) -> None:
    heading = ".claims thead"
    with browser.new_context(viewport={"width": 700, "height": 1000}) as context:  # A4 between its margins
        page = context.new_page()
        page.goto(study_path.as_uri())
        assert not page.locator(heading).is_visible()
        page.emulate_media(media="print")
        assert page.locator(heading).is_visible()


def test_what_is_measured_stands_whole_on_a_phone(browser: Browser, physics_path: Path) -> None:
    with browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True) as context:
        page = context.new_page()
        page.goto(physics_path.as_uri())
        right = "element => element.getBoundingClientRect().right"
        assert all(caption.evaluate(right) <= 390 for caption in page.locator(".checks tr.caption span").all())
