"""What the tests of the page share: tabs that are watched, somebody else's page, what is seen on the picture."""

import contextlib
import io
import re
import time
from http.server import BaseHTTPRequestHandler

import numpy as np
from draggan_fast.bench.browser import LivePage
from draggan_fast.bench.landmarks import load_detector
from PIL import Image

from draggan_fast import session_file

NO_BROWSER = "NO BROWSER: the page is not tested: install Debian's chromium, or name one in DRAGGAN_FAST_BROWSER."
EAR = (44.0, 32.0)  # on the ear at the left of seed 29
# What Chromium itself writes to the console about a server that it cannot reach.
UNREACHABLE = re.compile(r"WebSocket connection|ERR_CONNECTION|Failed to load resource")


class Tab:
    """A browser context of its own with one page, and what its console and its network saw."""

    def __init__(self, chromium, url, friends=(), **options):
        self.context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.live = LivePage(self.page, url)
        self.errors, self.foreign, self.loses_server = [], [], False
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.expected = (url, *friends, "blob:", "data:")
        self.context.on("request", lambda request: self.requested(request.url))
        self.page.on("websocket", lambda socket: self.requested(socket.url.replace("ws", "http", 1)))

    def requested(self, url):
        if not url.startswith(self.expected):
            self.foreign.append(url)

    def close(self):
        self.context.close()
        unexpected = [text for text in self.errors if not (self.loses_server and UNREACHABLE.search(text))]
        assert unexpected == [], unexpected
        assert self.foreign == [], self.foreign


@contextlib.contextmanager
def tabs(chromium):
    """What opens tabs on a page of this address, by default until its picture is shown; all are closed at the end."""
    opened = []

    def open_tab(url, *, ready=True, fragment="", before="", loses_server=False, **options):
        tab = Tab(chromium, url, **options)
        opened.append(tab)
        tab.loses_server = loses_server
        tab.context.add_init_script(before)
        if ready:
            tab.live.open(fragment)
        else:
            tab.page.goto(tab.live.url + fragment)
        return tab

    yield open_tab
    for tab in opened:
        tab.close()


class Guest(BaseHTTPRequestHandler):
    """Somebody else's page, on an origin of its own."""

    def do_GET(self):
        found = self.path == "/"
        self.send_response(200 if found else 204)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.html if found else b"")

    def log_message(self, *_):
        pass


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def difference(one, other):
    """Levels, at the size of the smaller one: a picture that moves is enlarged less."""
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in (one, other)]
    size = min(picture.size for picture in pictures)
    first, second = (np.asarray(picture.resize(size, Image.Resampling.BOX)).astype(int) for picture in pictures)
    return np.abs(first - second).mean()


def landmark(picture, name):
    """Where the detector sees it, in pixels of the 128×128 picture."""
    detector, image = load_detector(), pixels(picture)
    side = image.shape[0]
    x, y = detector([image])[0][detector.index(name)]
    return np.array([(x + 0.5) * 128 / side - 0.5, (y + 0.5) * 128 / side - 0.5])


def veil(live, point):
    """How opaque the veil is over a point of the picture, 0…255."""
    x, y = live.element(f"element.viewport.toScreen({list(point)})")
    return live.element(
        "(() => { const one = new OffscreenCanvas(1, 1).getContext('2d'); "
        f"one.drawImage(element.shadowRoot.querySelector('.veil'), -{round(x)}, -{round(y)}); "
        "return one.getImageData(0, 0, 1, 1).data[3]; })()"
    )


def mask_of(live):
    data = live.element("element.mask.toPNG().then((blob) => blob.arrayBuffer()).then((b) => [...new Uint8Array(b)])")
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("L")) > 127


def steps_in_copy(live):
    """How many steps are in the copy that the page keeps; None without one."""
    copied = live.element("element.copy?.arrayBuffer().then((buffer) => [...new Uint8Array(buffer)]) ?? null")
    return len(session_file.read_document(bytes(copied), "the copy")[0]["trajectory"]) if copied else None


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def choose_mode(live, name):
    live.page.get_by_text(name, exact=True).click()
    live.until(f"element.mode === {name.lower()!r}")


def drag(live, start=EAR, end=(36.0, 38.0)):
    """A live drag that has come to rest."""
    live.pull(start, end, seconds=0.3, moves=6)
    live.release()
    live.until_rest()


def wait_until_it_looks_like(live, picture):
    """Within half a level: JPEG, and the steps of another run."""
    wait_until(lambda: difference(picture, live.picture()) < 0.5)
