"""What comes back after a reload: also a picture that the server has lost, of each element its own."""

import re

import pytest
from draggan_fast.bench.browser import LiveServer, find_chromium

import draggan_fast as dg
from tests.live_client import running
from tests.live_models import tiny_model
from tests.page_tabs import NO_BROWSER, drag, wait_until_it_looks_like

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page")]
if find_chromium() is None:
    pytest.skip(NO_BROWSER, allow_module_level=True)

# Of which sessions there are copies, for a page after this one. subtle: who opens a database makes it.
KEPT = """indexedDB.databases().then(({ length }) => length === 0 ? [] : new Promise((resolve, reject) => {
    const opened = indexedDB.open("drag-canvas", 1);
    opened.onupgradeneeded = () => { opened.transaction.abort(); reject(new Error("there is none")); };
    opened.onsuccess = () => {
        const keys = opened.result.transaction("copies").objectStore("copies").getAllKeys();
        keys.onsuccess = () => { opened.result.close(); resolve(keys.result); };
    };
}))"""
NO_STORAGE = """const refuse = () => { throw new DOMException("no", "SecurityError"); };
Object.defineProperty(window, "sessionStorage", { get: refuse });
IDBFactory.prototype.open = refuse;"""
ALL = "window.elements = () => [...document.querySelectorAll('drag-canvas')];"
TWO = """<!doctype html><title>Two</title><script type="module" src="%sstatic/drag-canvas.js"></script>
<drag-canvas seed="1" remember></drag-canvas><drag-canvas seed="2" remember></drag-canvas>
<drag-canvas seed="3" remember="third"></drag-canvas>"""


def copy_of(live, step):
    """Waits until the picture of so many steps is kept for a reload."""
    live.until(f"element.status.step === {step} && element.copy?.size > 0")
    live.until(f"{KEPT}.then((keys) => keys.includes(element.session.session))")


def test_a_reload_after_the_server_was_killed_in_a_drag_shows_the_edited_picture(open_tab):
    with LiveServer(("--threads", "1")) as server:
        tab = open_tab(server.url, loses_server=True)
        live, page = tab.live, tab.page
        drag(live)
        edited, step, targets = (
            live.picture(),
            live.element("element.status.step"),
            live.element("element.status.targets"),
        )
        assert step > 0
        copy_of(live, step)
        former = live.element("element.session.session")
        live.element("element.configure({ lr: 1e-5, max_steps: 100000 }) && true")
        live.pull((64.0, 74.0), (90.0, 74.0), seconds=0.3, moves=6)
        live.until(f"element.running && element.frame.step > {step}")
        server.kill()
        page.get_by_text("Reconnecting").wait_for()
        live.release()
        page.goto("about:blank")  # nothing of the page is left but what it has stored, and it cannot come back before
        server.start()
        live.open()
        live.until(f"element.ready && element.status?.step === {step}")
        assert live.element("element.status.targets") == targets
        assert live.element("element.session.session") != former
        wait_until_it_looks_like(live, edited)
        # It is kept under its new id at once, and no longer under the former: the next server may end as soon.
        live.until(f"{KEPT}.then((keys) => keys.join() === element.session.session)")
        server.kill()
        server.start()
        page.reload()
        live.wait_for_picture()
        live.until(f"element.ready && element.status.step === {step}")
        wait_until_it_looks_like(live, edited)
        # Another picture is not taken for it.
        page.locator("#seeds button").nth(1).click()
        live.until("element.session.seed === 5 && element.status.step === 0")
        live.until(f"{KEPT}.then((keys) => keys.length <= 1)")
        copy_of(live, 0)
        server.kill()
        server.start()
        page.reload()
        live.wait_for_picture()
        live.until("element.ready && element.session.seed === 5")


def test_a_browser_that_keeps_nothing_shows_the_page_all_the_same(open_tab):
    with running(dg.create_app(tiny_model())) as port:
        tab = open_tab(f"http://127.0.0.1:{port}/", before=NO_STORAGE, loses_server=True)
        live = tab.live
        live.element("element.setPoints([[10, 10]], [[20, 12]]) && element.step(2)")
        live.until("element.status.step === 2 && element.copy !== null")
        live.page.reload()
        live.wait_for_picture()
        live.until("element.ready && element.status.step === 0 && element.session.seed === 29")


def test_each_element_of_a_page_comes_back_to_its_own_picture(open_tab, guest):
    app = dg.create_app(tiny_model(), allow_origins=[guest.url.rstrip("/")])
    with running(app) as port:
        guest.html = (TWO % f"http://127.0.0.1:{port}/").encode()
        tab = open_tab(guest.url, ready=False, before=ALL, friends=[f"http://127.0.0.1:{port}/"], loses_server=True)
        page = tab.page

        def pictures():
            """[session, seed] of each, when they are there."""
            tab.live.until("elements().length === 3 && elements().every((one) => one.ready)")
            return tab.live.element("elements().map(({ session }) => [session.session, session.seed])")

        first = pictures()
        assert [seed for _, seed in first] == [1, 2, 3]
        tab.live.until(f"{KEPT}.then((keys) => keys.length === 3)")
        page.reload()
        assert [session for session, _ in pictures()] == [session for session, _ in first]
    with running(dg.create_app(tiny_model(), allow_origins=[guest.url.rstrip("/")]), port):
        page.reload()
        again = pictures()
    assert [seed for _, seed in again] == [1, 2, 3]
    assert not {session for session, _ in again} & {session for session, _ in first}


def test_an_element_without_remember_keeps_nothing(open_tab, guest):
    with running(dg.create_app(tiny_model(), allow_origins=[guest.url.rstrip("/")])) as port:
        url = f"http://127.0.0.1:{port}/"
        guest.html = re.sub(' remember(="third")?', "", TWO % url).encode()
        tab = open_tab(guest.url, ready=False, friends=[url], loses_server=True)
        tab.live.until("element.copy !== null")
        assert tab.page.evaluate("() => sessionStorage.length") == 0
        assert tab.page.evaluate("() => indexedDB.databases()") == []
