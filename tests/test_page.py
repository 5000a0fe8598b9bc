"""The page and <drag-canvas>, as a person uses them: the real server, the real browser."""

import re
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import uvicorn
from draggan_fast.bench.browser import LiveServer, find_chromium
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount

from draggan_fast import create_app, load
from tests.page_tabs import (
    EAR,
    NO_BROWSER,
    choose_mode,
    difference,
    drag,
    landmark,
    mask_of,
    pixels,
    steps_in_copy,
    veil,
    wait_until,
    wait_until_it_looks_like,
)

# One worker runs them all, with one server and one browser.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page")]
if find_chromium() is None:
    pytest.skip(NO_BROWSER, allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
EMBEDDING = ROOT / "docs" / "embedding.md"
TOKEN = "a-token-for-the-tests-of-the-page"


@pytest.fixture(scope="module")
def server(guest):
    # A closed tab keeps its picture for a while: as many places as there are tests.
    with LiveServer(("--threads", "1", "--max-sessions", "64", "--allow-origin", guest.url.rstrip("/"))) as started:
        yield started


@pytest.fixture
def open_tab(open_tab, server):
    return lambda url=None, **options: open_tab(url or server.url, **options)


@pytest.fixture
def live(open_tab):
    return open_tab().live


# --- pulling ---------------------------------------------------------------------------------------------------------


def test_the_ear_follows_the_pointer_while_the_button_is_down(live):
    before = live.picture()
    ear = landmark(before, "ear_left")
    target = ear + np.array([-9.0, 7.0])
    live.element("(window.painted = 0, element.addEventListener('frame', () => (window.painted += 1)), true)")
    live.pull(tuple(ear), tuple(target))
    live.until_state("waiting")
    assert live.element("element.running")
    while_down = landmark(live.picture(), "ear_left")
    assert live.page.evaluate("() => window.painted") >= 4
    way = target - ear
    assert (while_down - ear) @ way >= 0.5 * way @ way
    assert np.hypot(*(np.array(live.element("element.points.handles[0]")) - target)) <= 2
    live.release()
    live.until_state("done")
    assert (landmark(live.picture(), "ear_left") - ear) @ way >= 0.5 * way @ way
    assert live.element("element.latency.pointerToPaint.values.length") > 0
    assert difference(before, live.picture()) > 2


def test_the_target_can_be_taken_up_again_and_shift_holds_the_other_points(live):
    drag(live)
    live.pull((36.0, 38.0), (40.0, 34.0), seconds=0.2, moves=4)
    assert live.element("element.points.handles.length") == 1
    assert live.element("element.points.targets[0]") == pytest.approx([40, 34], abs=0.3)
    live.release()
    live.until_state("done", "limit")
    live.page.keyboard.down("Shift")
    live.pull((64.0, 74.0), (68.0, 74.0), seconds=0.2, moves=4)
    live.page.keyboard.up("Shift")
    assert live.element("element.points.handles.length") == 2
    held = live.element("element.points.targets[0]")
    assert held == pytest.approx([40, 34], abs=2.5)
    live.release()
    live.until_state("done", "limit")
    assert live.element("element.status.handles.length") == 2


def test_point_mode_places_pairs_and_runs_when_told(live):
    choose_mode(live, "Points")
    before = live.picture()
    assert live.page.locator("#play").is_disabled()
    live.click((64, 74))
    assert live.element("element.points.pending") == pytest.approx([64, 74], abs=0.3)
    live.click((70, 74))
    live.pull((44, 56), (47, 56), seconds=0.1, moves=3)  # a target is pulled out of its handle
    live.release()
    live.until("element.status.handles.length === 2")
    assert live.element("element.status.targets") == [
        pytest.approx([70, 74], abs=0.3),
        pytest.approx([47, 56], abs=0.3),
    ]
    live.pull((70, 74), (71, 76), seconds=0.1, moves=3)
    live.release()
    live.until("element.status.targets[0][1] > 75")
    assert difference(before, live.picture()) < 0.5, "nothing moves before it is told to"
    live.page.locator("#play").click()
    assert live.until_state("done", "limit") == "done"
    assert live.page.locator("#state-text").inner_text().startswith("Arrived")
    assert difference(before, live.picture()) > 1
    live.page.locator("#clear-points").click()
    live.until("element.status.handles.length === 0")
    live.until("element.points.handles.length === 0")


def test_undo_and_redo_go_over_whole_drags(live):
    before = live.picture()
    drag(live)
    after = live.picture()
    assert difference(before, after) > 2
    live.page.locator("#undo").click()
    live.until("element.status.redo")
    wait_until_it_looks_like(live, before)
    live.page.keyboard.press("Control+y") if live.element("document.activeElement === element") else None
    live.page.locator("#redo").click() if live.element("element.status.redo") else None
    live.until("element.status.undo && !element.status.redo")
    wait_until_it_looks_like(live, after)
    live.page.locator("#reset").click()
    wait_until_it_looks_like(live, before)


def test_the_mask_shows_what_must_stay_and_holds_it(live):
    choose_mode(live, "Mask")
    live.pull((40, 20), (48, 44), seconds=0.1, moves=6)
    live.release()
    live.until("element.mask.present && !element.mask.painting")
    assert veil(live, (64, 100)) > 100
    assert veil(live, (44, 32)) == 0
    live.page.get_by_title("Erase: what must stay").click()
    live.pull((48, 44), (48, 43), seconds=0.05, moves=2)
    live.release()
    wait_until(lambda: veil(live, (48, 44)) > 100)
    # What the server holds is what is shown: a reload brings it back from there.
    shown = mask_of(live)
    live.page.reload()
    live.wait_for_picture()
    live.until("element.mask.present")
    assert np.array_equal(mask_of(live), shown)
    before = live.picture()
    choose_mode(live, "Live")
    live.element("element.configure({ max_steps: 60 }) && true")  # what is held keeps the ear from its very pixel
    drag(live)
    face = (slice(int(pixels(before).shape[0] * 0.55), None), slice(None))
    moved = np.abs(pixels(live.picture()).astype(int) - pixels(before)).mean(axis=2)
    assert moved[face].mean() < 0.5 * moved[: face[0].start].mean()
    choose_mode(live, "Mask")
    live.page.locator("#clear-mask").click()
    live.until("!element.mask.present")
    assert mask_of(live).all()


def test_everything_can_be_done_with_the_keyboard(live):
    press = live.page.keyboard.press
    live.element("element.focus() ?? true")
    for _ in range(3):
        press("Shift+ArrowUp")
    press("Shift+ArrowLeft")
    press("Enter")
    x, y = live.element("element.points.targets[0]")
    assert (x, y) == (54, 34)
    live.until("element.status.handles.length === 1")
    for _ in range(5):
        press("ArrowRight")
    assert live.element("element.points.targets[0]") == [x + 5, y]
    live.until_state("done", "limit")
    assert live.element("element.status.step") > 0
    assert "Done" in live.element("element.shadowRoot.querySelector('[aria-live]').textContent")
    press("Control+z")
    live.until("element.status.redo")
    press("Control+y")
    live.until("!element.status.redo")
    press("Escape")
    press("Tab")
    assert live.element("element.points.selected") == {"kind": "handle", "index": 0}
    press("Tab")
    assert live.element("element.points.selected") == {"kind": "target", "index": 0}
    press("Tab")  # past the last point the focus goes on: no trap
    assert live.element("element.points.selected") is None
    assert live.element("document.activeElement !== element")
    press("Shift+Tab")
    press("Tab")
    press("Shift+Tab")
    live.element("element.focus() ?? true")
    press("Tab")
    press("Delete")
    live.until("element.status.handles.length === 0")
    choose_mode(live, "Points")
    live.element("element.focus() ?? true")
    press("Enter")
    press("Shift+ArrowRight")
    press("Enter")
    live.until("element.status.handles.length === 1")
    press(" ")
    live.until_state("running", "done")
    press(" ") if live.element("element.running") else None
    live.until_state("paused", "done")


# --- the view --------------------------------------------------------------------------------------------------------


def test_the_wheel_zooms_about_the_pointer(live):
    at = np.array([500, 300])  # a wheel's coordinates are whole
    live.page.mouse.move(*at.tolist())
    box = live.page.locator("drag-canvas").bounding_box()
    x, y = at - [box["x"], box["y"]]
    here = live.element(f"element.viewport.toPicture([{x}, {y}])")
    live.page.mouse.wheel(0, -600)
    live.until("element.viewport.zoom > 1.5")
    assert live.at(here) == pytest.approx(at, abs=0.5)
    assert live.page.locator("#zoom-reset").inner_text() != "100 %"
    live.page.locator("#zoom-reset").click()
    assert live.element("element.viewport.zoom") == 1


def test_a_phone_fits_and_fingers_pull_and_pinch(open_tab):
    tab = open_tab(viewport={"width": 360, "height": 740}, device_scale_factor=2, has_touch=True, is_mobile=True)
    live, page = tab.live, tab.page
    width = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert width == [360, 360]
    for name in ("Points", "Mask", "Live"):
        choose_mode(live, name)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    # The veil covers the element, the marks what they need; both are sharp.
    overlay = live.element(
        "[['.veil', element], ['.marks', element.shadowRoot.querySelector('.marks')]]"
        ".map(([name, shown]) => element.shadowRoot.querySelector(name).width / shown.clientWidth)"
    )
    assert overlay == [pytest.approx(2, abs=0.01)] * 2
    cdp = tab.context.new_cdp_session(page)

    def touch(kind, *points):
        spots = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(points)]
        cdp.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": spots})

    scrolled = page.evaluate("() => scrollY")
    touch("Start", live.at(EAR))
    for step in range(1, 7):
        touch("Move", live.at((EAR[0] - step, EAR[1] + step)))
    live.until("element.status.handles.length === 1 && element.points.targets[0][0] < 40")
    touch("End")
    live.until_state("done", "limit")
    assert live.element("element.status.step") > 0
    assert page.evaluate("() => scrollY") == scrolled
    points = live.element("element.points.targets")
    touch("Start", live.at((40, 60)))
    touch("Start", live.at((40, 60)), live.at((80, 60)))
    touch("Move", live.at((20, 60)), live.at((100, 60)))
    touch("End")
    assert live.element("element.viewport.zoom") == pytest.approx(2, abs=0.1)
    assert live.element("element.points.targets") == points, "two fingers are no pull"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_the_theme_can_be_chosen(open_tab, scheme):
    page = open_tab(color_scheme=scheme).page
    colours = """() => Object.fromEntries(['ink', 'soft', 'paper', 'sheet', 'sunk', 'strong',
            'on-strong'].map((name) => {
        const probe = document.body.appendChild(document.createElement('i'));
        probe.style.color = `var(--${name})`;
        const value = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
        probe.remove();
        return [name, value];
    }))"""

    def luminance(colour):
        linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    def check():
        found = page.evaluate(colours)
        pairs = [(text, ground) for text in ("ink", "soft") for ground in ("paper", "sheet", "sunk")]
        for text, ground in [*pairs, ("on-strong", "strong")]:
            low, high = sorted([luminance(found[text]), luminance(found[ground])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
        return luminance(found["paper"])

    first = check()
    assert bool(first > 0.5) is (scheme == "light")
    for _ in range(2 if scheme == "light" else 1):
        page.locator("#theme").click()  # system → light → dark → system
    assert bool(check() > 0.5) is (scheme == "dark")


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_exports_open_and_the_session_comes_back(live, tmp_path):
    drag(live)
    page = live.page

    def saved(position):
        page.locator("#export").click()
        with page.expect_download() as waiting:
            page.get_by_role("menuitem").nth(position).click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    picture = saved(0)
    assert picture.name == "toy-animals-29.png"
    with Image.open(picture) as image:
        assert image.size == (128, 128)
        side = pixels(live.picture()).shape[0]
        enlarged = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    assert np.abs(enlarged.astype(int) - pixels(live.picture())).mean() < 4
    with Image.open(saved(1)) as animation:
        assert animation.format == "WEBP"
        assert animation.n_frames > 1
    with av.open(str(saved(2))) as film:
        assert next(film.decode(video=0)).width >= 128
    session = saved(3)
    with Image.open(saved(4)) as mask:
        assert mask.convert("L").getextrema() == (255, 255)  # no mask: everything may move
    here = live.picture()
    page.locator("#seeds button").nth(1).click()
    live.until("element.session.seed === 5")
    live.until("element.status.step === 0")
    page.locator("#export").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("menuitem").nth(5).click()
    chooser.value.set_files(session)
    live.until("element.session.seed === 29 && element.status.step > 0")
    wait_until_it_looks_like(live, here)


def test_the_timeline_goes_back_and_a_reload_resumes(live):
    before = live.picture()
    drag(live)
    after = live.picture()
    page = live.page
    page.locator("#timeline img[src]").first.wait_for()
    slider = page.locator("#timeline input")
    slider.focus()
    page.keyboard.press("Home")
    live.until("element.status.position === 0")
    wait_until_it_looks_like(live, before)
    page.keyboard.press("End")
    live.until("element.status.position === element.status.timeline - 1")
    wait_until_it_looks_like(live, after)
    session, step = live.element("[element.session.session, element.status.step]")
    page.reload()
    live.wait_for_picture()
    assert live.until("element.status?.step") == step
    assert live.element("element.session.session") == session
    assert live.element("element.welcome.resumed")
    wait_until_it_looks_like(live, after)


def test_settings_reach_the_server_and_published_ones_are_marked(live):
    page = live.page
    row = page.locator(".slider", has_text="Step size")
    assert row.locator("output").inner_text() == str(load("toy-animals").drag_config().lr)
    row.get_by_role("button", name="published").click()
    assert row.locator("output").inner_text() == "0.001"
    page.locator("#slider-r2").fill("20")
    page.reload()
    live.wait_for_picture()
    live.until("element.session.settings.lr === 0.001 && element.session.settings.r2 === 20")
    before = live.picture()
    page.locator("#slider-truncation_psi").fill("0")
    live.until("element.session.truncation_psi === 0")
    wait_until(lambda: difference(before, live.picture()) > 1)
    page.locator("#seed").fill("5")
    page.keyboard.press("Enter")
    live.until("element.session.seed === 5")


# --- when something is wrong -----------------------------------------------------------------------------------------


def test_token_place_limit_and_a_server_that_dies(open_tab):
    with LiveServer(("--threads", "1", "--token", TOKEN, "--max-sessions", "1")) as server:
        tab = open_tab(server.url, ready=False)
        tab.loses_server = True
        live, page = tab.live, tab.page
        page.get_by_text("This server asks for a token").wait_for()
        page.locator("input[name=token]").fill("not it")
        page.keyboard.press("Enter")
        page.get_by_text("This server asks for a token").wait_for()
        page.locator("input[name=token]").fill(TOKEN)
        page.keyboard.press("Enter")
        live.wait_for_picture()
        page.locator("#seeds img[src]").first.wait_for()

        full = open_tab(server.url, ready=False, fragment=f"#token={TOKEN}")
        full.page.get_by_text("All places are taken").wait_for()
        full.loses_server = True
        assert TOKEN not in full.page.url
        full.page.close()

        drag(live)
        here, step = live.picture(), live.element("element.status.step")
        wait_until(lambda: steps_in_copy(live) == step)
        live.element("element.addEventListener('restored', () => (window.restored = true))")  # toasts pass
        server.kill()
        page.get_by_text("Reconnecting").wait_for()
        page.get_by_text("The server is gone").wait_for()
        assert page.locator("drag-canvas canvas.shown").is_visible()
        server.start()
        page.get_by_role("button", name="Try now").evaluate_all("([button]) => button?.click()")  # it may try by itself
        live.until("window.restored")
        live.until(f"element.connection.isOpen && element.status.step === {step} && !element.status.undo")
        wait_until_it_looks_like(live, here)
        drag(live, (64.0, 74.0), (68.0, 74.0))


def test_another_window_takes_the_picture_over_and_gives_it_back(open_tab, server):
    one = open_tab()
    key, session = one.page.evaluate(
        "() => Object.entries(sessionStorage).find(([key]) => key.startsWith('drag-canvas:http'))"
    )
    drag(one.live)
    here = one.live.picture()
    two = open_tab(before=f"sessionStorage.setItem({key!r}, {session!r})")
    wait_until_it_looks_like(two.live, here)
    one.page.get_by_text("Opened elsewhere").wait_for()
    one.page.get_by_role("button", name="Use it here").click()
    two.page.get_by_text("Opened elsewhere").wait_for()
    one.live.until("element.connection.isOpen && element.status.undo")
    drag(one.live, (64.0, 74.0), (67.0, 74.0))


def test_problems_are_told_in_words(live):
    tell = "element.dispatchEvent(new CustomEvent('error', { detail: { code: '%s', message: '%s' } }))"
    live.element(tell % ("value", "lr must be a number."))
    assert live.page.locator("#toast").inner_text() == "lr must be a number."
    live.element(tell % ("memory", "The device is out of memory."))
    card = live.page.locator("#notice")
    assert "Out of memory" in card.inner_text()
    assert "The device is out of memory." in card.inner_text()
    card.get_by_role("button", name="Try again").click()
    live.until("element.connection.isOpen")
    card.wait_for(state="hidden")
    live.page.locator("#seed").fill("4294967295")
    live.page.keyboard.press("Enter")
    live.until("element.session.seed === 4294967295")


def test_the_page_works_under_a_prefix(open_tab):
    app = create_app()
    config = uvicorn.Config(
        Starlette(routes=[Mount("/studio", app)]), port=0, log_level="warning", ws="websockets-sansio", lifespan="off"
    )
    mounted = uvicorn.Server(config)
    thread = threading.Thread(target=mounted.run)
    thread.start()
    try:
        wait_until(lambda: mounted.started, seconds=30)
        port = mounted.servers[0].sockets[0].getsockname()[1]
        tab = open_tab(f"http://127.0.0.1:{port}/studio/")
        drag(tab.live)
        tab.page.locator("#seeds img[src]").first.wait_for()
        tab.page.locator("#timeline img[src]").first.wait_for()
        tab.close()
    finally:
        mounted.should_exit = True
        thread.join()
        app.live.stop()


# --- elsewhere -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_works_on_another_origin(open_tab, server, guest):
    html = re.search(r"## The element.*?```html\n(.*?)```", EMBEDDING.read_text(encoding="utf-8"), re.DOTALL)[1]
    guest.html = html.replace("http://127.0.0.1:8765/", server.url).encode()
    tab = open_tab(guest.url, friends=[server.url])
    drag(tab.live)
    assert tab.page.locator("#state").inner_text() == f"{tab.live.element('element.status.step')} steps"
    tab.live.element("element.redo()")
    assert "redo" in tab.page.locator("#state").inner_text()
