"""The page when it is refused something, used by keyboard, or in front of several models: with a tiny model."""

import contextlib
import itertools
import os
import re

import numpy as np
import pytest
from draggan_fast.bench.browser import find_chromium
from draggan_fast.bench.page_soak import METRICS, SAMPLES, Soak

import draggan_fast as dg
from draggan_fast import session_file
from tests.live_client import Client, running
from tests.live_models import tiny_model
from tests.page_tabs import NO_BROWSER, choose_mode, mask_of, steps_in_copy, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page")]
if find_chromium() is None:
    pytest.skip(NO_BROWSER, allow_module_level=True)

# A copy is wanted at once, and an attempt must not come before the test has looked.
HURRY = "const later = setTimeout; window.setTimeout = (act, ms) => later(act, ms === 1500 ? 50 : ms);"

# While window.away is set the page finds no server, though there may be one.
AWAY = """window.WebSocket = class extends WebSocket {
    constructor(url, ...rest) { super(window.away ? new URL("/nowhere", url) : url, ...rest); }
};"""

# What the page says to the server.
LISTEN = """window.sent = []; const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
    if (typeof data === "string") window.sent.push(JSON.parse(data));
    send.call(this, data);
};"""


@pytest.fixture
def open_tab(open_tab):
    """On a server that ends before its tabs."""
    return lambda port, before="", **options: open_tab(
        f"http://127.0.0.1:{port}/", before=HURRY + before, loses_server=True, **options
    )


@contextlib.contextmanager
def edited(open_tab):
    """A tab whose picture has been dragged and copied, and whose server has gone; its port."""
    with running(dg.create_app(tiny_model())) as port:
        tab = open_tab(port, before=AWAY)
        live = tab.live
        live.element("element.setPoints([[10, 10]], [[20, 12]]) && element.step(3)")
        live.until("element.status.step === 3 && !element.running")
        wait_until(lambda: steps_in_copy(live) == 3)  # there may be an earlier one, of the picture before the steps
        tab.page.evaluate("window.away = true")
    tab.page.get_by_text("Reconnecting").wait_for()
    yield tab, port


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_edited_picture_outlives_a_server_that_is_full(open_tab):
    with (
        edited(open_tab) as (tab, port),
        running(dg.create_app(tiny_model(), max_sessions=1), port),
        Client(port) as other,
    ):
        live, page = tab.live, tab.page
        other.create(seed=1)
        page.evaluate("window.away = false")
        card = page.locator("#notice")
        card.get_by_text("All places are taken").wait_for()
        assert "Your picture is safe in this page." in card.inner_text()
        assert "Trying again" in card.inner_text()
        live.element("window.kept = element.copy")
        page.locator("#seeds button").nth(1).click()  # refused too: that is no reason to give the picture up
        page.locator("#toast", has_text="as many pictures open as it may").wait_for()
        assert live.element("element.copy === window.kept")
        with page.expect_download() as waiting:
            card.get_by_role("button", name="Save it").click()
        assert session_file.recorded_start(waiting.value.path().read_bytes()).length > 0
        other.say("close")
        card.get_by_role("button", name="Try now").click()
        live.until("element.ready && element.status.step === 3")
        page.locator("#toast", has_text="It is back").wait_for()
        assert card.is_hidden()
        assert live.element("element.points.targets") == [[20, 12]]


def test_a_refusal_that_passes_is_tried_again_without_a_hand(open_tab):
    with running(dg.create_app(tiny_model(), max_sessions=1)) as port, Client(port) as other:
        other.create(seed=1)
        tab = open_tab(port, ready=False)
        tab.page.get_by_text("All places are taken").wait_for()
        assert tab.live.element("element.copy") is None
        assert tab.page.get_by_role("button", name="Save it").count() == 0
        assert tab.live.element("element.retry() === element.retry()")  # a double click asks once
        other.say("close")
        tab.live.wait_for_picture()
        tab.live.until("element.ready")
        assert tab.page.locator("#notice").is_hidden()


def test_a_picture_of_a_model_that_is_gone_is_not_replaced_in_silence(open_tab):
    with edited(open_tab) as (tab, port), running(dg.create_app(tiny_model("other")), port):
        live, page = tab.live, tab.page
        page.evaluate("window.away = false")
        card = page.locator("#notice")
        card.get_by_text("Your picture could not be opened").wait_for()
        assert "not served here" in card.inner_text()
        assert "Trying again" not in card.inner_text()
        card.get_by_role("button", name="Try again").click()
        card.get_by_text("Your picture could not be opened").wait_for()
        assert live.element("element.copy !== null")
        card.get_by_role("button", name="Begin anew").click()
        live.until("element.ready && element.session.model === 'other' && element.status.step === 0")
        assert card.is_hidden()


def test_a_drag_that_ran_out_of_memory_goes_on_by_itself(open_tab, monkeypatch):
    failures = [MemoryError(), None]
    step = dg.DragSession.step

    def scarce(session, *args):
        if failures and (error := failures.pop(0)) is not None:
            raise error
        return step(session, *args)

    with running(dg.create_app(tiny_model())) as port:
        live = open_tab(port).live
        monkeypatch.setattr(dg.DragSession, "step", scarce)
        live.element("element.setPoints([[10, 10]], [[11, 10]]) && element.start()")
        live.page.locator("#notice", has_text=re.compile("Out of memory.*Trying again in", re.DOTALL)).wait_for()
        live.until("element.status.step > 0")
        live.page.locator("#notice").wait_for(state="hidden")


def test_a_refused_setting_is_not_shown(open_tab):
    with running(dg.create_app(tiny_model())) as port:
        live = open_tab(port).live
        row = live.page.locator(".slider", has_text="Tracking radius")
        before = row.locator("output").inner_text()
        live.element("(element.configure = () => Promise.resolve(false), true)")
        live.page.locator("#slider-r2").fill("20")
        wait_until(lambda: row.locator("output").inner_text() == before)


# --- before and beside the picture -----------------------------------------------------------------------------------


def test_nothing_is_shown_that_the_server_has_not_said_and_nothing_jumps(open_tab):
    silent = "window.WebSocket = class extends EventTarget { close() {} send() {} };"
    places = """() => [...document.querySelectorAll('.slider, details, #timeline, #stage')].map((element) => {
        const { left, top, width, height } = element.getBoundingClientRect();
        return [left, top, width, height];
    })"""
    with running(dg.create_app(tiny_model())) as port:
        tab = open_tab(port, ready=False, before=silent)
        tab.page.locator("drag-canvas").wait_for()
        sliders = tab.page.locator(".slider input")
        assert [sliders.nth(index).is_disabled() for index in range(5)] == [True] * 5
        assert tab.page.locator(".slider output").all_inner_texts() == ["–"] * 5
        before = tab.page.evaluate(places)
        ready = open_tab(port).page
        assert ready.locator(".slider input:disabled").count() == 0
        assert ready.evaluate(places) == before


def test_models_and_classes_are_offered_where_there_are_any(open_tab):
    with running(dg.create_app([tiny_model("classes", c_dim=3), tiny_model()], max_sessions=4)) as port:
        live = open_tab(port, before=LISTEN).live  # the first picture is of a class
        page = live.page
        assert live.element("window.sent.filter(({ type }) => type === 'create').map(({ label }) => label)") == [0]
        model, label = page.locator("#model"), page.locator("#label")
        assert live.element("[element.session.model, element.session.label]") == ["classes", 0]
        assert model.locator("option").all_inner_texts() == ["classes", "tiny"]
        label.fill("2")
        label.press("Enter")
        live.until("element.session.label === 2")
        wait_until(lambda: "label=2" in seeds_asked(page)[-1])  # the strip is of it too
        assert "label=0" in seeds_asked(page)[0]
        page.locator("#seeds button").nth(1).click()  # another picture of that class
        live.until("element.session.seed === 5 && element.session.label === 2")
        model.select_option("tiny")
        live.until("element.session.model === 'tiny' && element.session.seed === 5")
        assert label.is_hidden()
        page.locator("#seeds button").nth(0).click()
        live.until("element.session.model === 'tiny' && element.session.seed === 29")
        page.reload()
        live.wait_for_picture()
        live.until("element.session.model === 'tiny'")
        assert model.input_value() == "tiny"
    with running(dg.create_app(tiny_model())) as port:
        page = open_tab(port).page
        assert page.locator("#model").is_hidden()
        assert page.locator("#label").is_hidden()


def seeds_asked(page):
    """The addresses of the strip's pictures, in order."""
    names = page.evaluate("() => performance.getEntriesByType('resource').map(({ name }) => name)")
    return [name for name in names if "/api/seeds/" in name]


def test_the_address_says_which_class_is_begun_with(open_tab):
    with running(dg.create_app([tiny_model("classes", c_dim=3)])) as port:
        live = open_tab(port, fragment="#seed=5&label=1").live
        assert live.element("[element.session.seed, element.session.label]") == [5, 1]
        for wrong in ("3", "-1", "x"):  # the first class, and a word about it
            live = open_tab(port, fragment=f"#label={wrong}&seed=x").live
            assert live.element("element.session.label") == 0
            said = live.element("element.shadowRoot.querySelector('[aria-live]').textContent")
            assert said == f"There is no class {wrong}: give one from 0 to 2."
    with running(dg.create_app(tiny_model())) as port:  # no classes here: nothing to choose
        assert open_tab(port, fragment="#label=1").live.element("element.session.label") is None


def test_another_server_has_other_models(open_tab):
    with running(dg.create_app(tiny_model("classes", c_dim=3))) as port:
        tab = open_tab(port)
        live, page = tab.live, tab.page
        live.until("element.session.label === 0 && element.copy !== null")
        assert page.locator("#label").is_visible()
    page.get_by_text("Reconnecting").wait_for()
    with running(dg.create_app([tiny_model("other"), tiny_model("third")]), port):
        card = page.locator("#notice")
        card.get_by_text("Your picture could not be opened").wait_for()
        live.until("!element.hasAttribute('label')")  # it was the page's own, for the class that a picture needed
        assert page.locator("#model option").all_inner_texts() == ["other", "third"]
        card.get_by_role("button", name="Begin anew").click()
        live.until("element.ready && element.session.model === 'other'")
        assert page.locator("#label").is_hidden()


def test_without_a_copy_the_first_picture_of_another_server_begins_by_itself(open_tab):
    """From classes to none and back: the label that the page gave the element goes, and comes again."""
    port, tab = 0, None
    for name, classes in (("classes", 3), ("none", 0), ("again", 2)):
        with running(dg.create_app(tiny_model(name, c_dim=classes)), port) as port:
            tab = tab or open_tab(port, before="window.setTimeout = (act, ms) => (ms === 1500 ? 0 : later(act, ms));")
            tab.live.until(f"element.ready && element.session.model === '{name}'")
            assert tab.live.element("element.session.label") == (0 if classes else None)
            assert tab.page.locator("#notice").is_hidden()


def test_a_server_that_does_not_say_what_it_serves_shows_its_picture(open_tab):
    hang = """const timeout = AbortSignal.timeout.bind(AbortSignal), real = window.fetch;
    AbortSignal.timeout = (ms) => timeout(ms / 20);
    window.fetch = (url, options) => !String(url).endsWith("/api/models") ? real(url, options) : new Promise(
        (_, reject) => options.signal.addEventListener("abort", () => reject(options.signal.reason)));"""
    with running(dg.create_app([tiny_model(), tiny_model("other")])) as port:
        page = open_tab(port, before=hang).page
        assert page.locator("#model").is_hidden()


def test_the_copy_is_of_the_server_that_the_element_is_of(open_tab):
    with running(dg.create_app(tiny_model())) as port:
        live = open_tab(port).live
        live.until("element.copy !== null")
        assert live.element("(element.remove(), element.setAttribute('src', 'elsewhere/'), element.copy)") is None


def test_the_mask_can_be_painted_with_the_keyboard(open_tab):
    with running(dg.create_app(tiny_model(resolution=64))) as port:
        live = open_tab(port).live
        choose_mode(live, "Mask")
        press = live.page.keyboard.press
        told = "element.shadowRoot.querySelector('[aria-live]').textContent"
        live.page.locator("drag-canvas").evaluate("(element) => element.focus({ focusVisible: true })")
        for _ in range(2):
            press("Shift+ArrowLeft")
        press("ArrowUp")
        assert live.element(told) == "Brush at 12, 31: may move."
        assert live.page.locator("#brush-size").input_value() == "10"
        press("BracketLeft")
        press("Shift+BracketLeft")
        assert live.page.locator("#brush-size").input_value() == "4"
        assert live.element("element.brush.radius") == 2
        press("Enter")
        live.until("element.mask.present && !element.mask.painting")
        painted = mask_of(live)
        assert painted[31, 12]
        assert 9 <= painted.sum() <= 25
        assert "Painted" in live.element(told)
        press("Shift+ArrowDown")
        press(" ")
        wait_until(lambda: mask_of(live).sum() == 2 * painted.sum())
        press("x")
        assert live.page.locator("input[value=erase]").is_checked()
        press(" ")
        wait_until(lambda: not (mask_of(live) ^ painted).any())
        assert live.element("element.status.state") == "idle", "Space paints, and starts nothing"
        press("ArrowRight")
        assert live.element(told) == "Brush at 13, 41: must stay."
        # A key that is held down does not outrun the server's answers: a refusal takes back one stroke.
        asked = live.element(
            """(() => {
                const { connection } = element, asked = [];
                connection.request = (type) => asked.push(type) && new Promise(() => {});
                for (const repeat of [false, true, true]) {
                    const event = new KeyboardEvent("keydown", { key: "Enter", repeat });
                    element.shadowRoot.querySelector(".stage").dispatchEvent(event);
                }
                delete connection.request;
                return asked.length;
            })()"""
        )
        assert asked == 1
        # What the server holds is what is shown.
        live.page.reload()
        live.wait_for_picture()
        live.until("element.mask.present")
        assert np.array_equal(mask_of(live), painted)
        live.page.keyboard.press("?")
        dialog = live.page.get_by_role("dialog")
        assert "Paint at the brush" in dialog.inner_text()
        live.page.keyboard.press("Escape")
        assert dialog.count() == 0


def test_the_view_can_be_moved_with_the_keyboard(open_tab):
    middle = "element.viewport.toPicture([element.clientWidth / 2, element.clientHeight / 2])"
    unheeded = """(window.heeded = [], window.addEventListener("keydown",
        (event) => event.key.startsWith("Arrow") && window.heeded.push(event.defaultPrevented)), true)"""
    with running(dg.create_app(tiny_model(resolution=64))) as port:
        live = open_tab(port).live
        press = live.page.keyboard.press
        told = "element.shadowRoot.querySelector('[aria-live]').textContent"
        live.element("element.setPoints([[10, 10]], [[20, 12]])")
        live.until("element.status.handles.length === 1")
        live.page.locator("drag-canvas").evaluate("(element) => element.focus({ focusVisible: true })")
        press("Tab")
        live.element(unheeded)
        press("Control+ArrowRight")  # all of the picture is seen: nothing to move
        assert live.page.evaluate("() => window.heeded") == [False]
        whole = live.element(middle)
        for _ in range(4):
            press("+")
        zoom = live.element("element.viewport.zoom")
        assert zoom > 2
        press("Control+ArrowRight")
        x, y = live.element(middle)
        assert (x - whole[0], y - whole[1]) == (pytest.approx(64 / zoom / 8, abs=0.01), pytest.approx(0, abs=0.01))
        assert live.element(told) == f"The middle of the view is at {round(x)}, {round(y)}."
        press("Control+ArrowUp")
        assert live.element(middle) == [pytest.approx(x, abs=0.01), pytest.approx(y - 64 / zoom / 8, abs=0.01)]
        for _ in range(3):
            press("Control+Shift+ArrowLeft")
        assert live.element("element.viewport.rectangle.left") == pytest.approx(
            0, abs=0.01
        )  # as far as there is a picture
        assert live.page.evaluate("() => window.heeded.slice(1)") == [True] * 5
        assert live.element("[element.points.handles, element.points.targets]") == [[[10, 10]], [[20, 12]]]
        choose_mode(live, "Mask")
        live.page.locator("drag-canvas").evaluate("(element) => element.focus({ focusVisible: true })")
        press("ArrowRight")
        brush = live.element(told)
        assert brush.startswith("Brush at 33, 32")
        before = live.element(middle)
        press("Control+ArrowDown")
        assert live.element(middle)[1] > before[1] + 1
        press("0")
        press("ArrowRight")
        assert live.element(told).startswith("Brush at 34, 32")
        press("?")
        helped = live.page.get_by_role("dialog").inner_text()
        assert "Ctrl arrow keys" in helped
        assert "Move the view" in helped


# How opaque a canvas is at the centres of the pixels of a square picture that it shows.
AT_CENTRES = """(canvas, size) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.width);
    const at = (index) => Math.floor(((index + 0.5) * canvas.width) / size);
    return Array.from({ length: size * size }, (_, index) =>
        data[4 * (at(Math.floor(index / size)) * canvas.width + at(index % size)) + 3]);
}"""


def test_the_mask_that_the_server_holds_is_what_the_page_draws(open_tab):
    """A stroke and a dot of several brushes, painted and erased: the same pixels, and they are what is seen."""
    size = 64
    app = dg.create_app(tiny_model(resolution=size))
    with running(app) as port:
        live = open_tab(port).live
        choose_mode(live, "Mask")

        def drawn():
            seen = np.array(live.element(f"({AT_CENTRES})(element.mask.canvas, {size})"))
            return seen.reshape(size, size) == 255

        def same():
            drag = app.live.find(live.element("element.session.session")).drag
            return drag.movable_mask is not None and np.array_equal(drag.movable_mask, drawn())

        painted = []
        for erase, radius in ((False, 0.1), (False, 2.5), (True, 1), (False, 7), (True, 3.3)):
            live.element(f"element.setBrush({{ radius: {radius}, erase: {str(erase).lower()} }}) ?? true")
            start, end = (0.2 * size + radius, 0.3 * size), (0.8 * size, 0.55 * size + radius)
            live.pull(start, end, seconds=0.05, moves=7)
            live.release()
            wait_until(same)
            painted.append(drawn())
            live.click((0.5 * size + 0.3, 0.8 * size + 0.3))
            wait_until(same)
            painted.append(drawn())
        assert np.array_equal(mask_of(live), painted[-1])
        changes = [(one != other).sum() for one, other in itertools.pairwise(painted)]
        assert painted[0].sum() > size / 3
        assert sum(change > 0 for change in changes) >= 8
        live.page.reload()
        live.wait_for_picture()
        live.until("element.mask.present")
        assert np.array_equal(mask_of(live), painted[-1])
        assert same()


def test_a_soak_of_the_page_counts_what_is_held(open_tab):
    with running(dg.create_app(tiny_model())) as port:
        row = Soak(open_tab(port).live, os.getpid(), seed=3).run(minutes=0.06)
    assert sum(row["gestures"].values()) >= 1
    assert row["console_errors"] == []
    assert 2 <= len(row["samples"]) <= SAMPLES + 1
    for sample in row["samples"]:
        assert all(sample[name] > 0 for name in (*METRICS, "server_rss_bytes"))
    assert row["growth"]["documents"] <= 2
