"""The page's modules one by one, in a browser: what needs no server but one of files."""

import functools
import random
import struct
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from draggan_fast.bench.browser import find_chromium

import draggan_fast
from draggan_fast.live_strokes import paint
from tests.page_tabs import NO_BROWSER

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page")]
if find_chromium() is None:
    pytest.skip(NO_BROWSER, allow_module_level=True)

WEB = Path(draggan_fast.__file__).parent / "web"


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def modules(chromium):
    """An empty page beside the modules."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=WEB)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/icon.svg")
        yield page
        server.shutdown()


def test_frames_are_read_as_the_protocol_says(modules):
    header = struct.pack("<2s4B H3I2H6f", b"DF", 1, 2, 1 | 4, 0, 2, 70000, 9, 41, 64, 48, 1, 2, 3, 4, 5, float("nan"))
    points = struct.pack("<6f", 1.5, 2.5, 3, 4, 5, 6)
    read = """([bytes]) => import('/frame.js').then(({ parseFrame }) => {
        const frame = parseFrame(new Uint8Array(bytes).buffer);
        return { ...frame, picture: [frame.picture.size, frame.picture.type] };
    }).catch((error) => error.message)"""
    good = header + points + b"jpeg"
    assert modules.evaluate(read, [list(good)]) == {
        "frame": 70000,
        "step": 9,
        "stamp": 41,
        "preview": True,
        "done": False,
        "running": True,
        "scrubbed": False,
        "width": 64,
        "height": 48,
        "times": {"step": 1, "render": 2, "encode": 3, "wait": 4, "sinceStamp": 5},
        "loss": None,
        "handles": [[1.5, 2.5], [4, 5]],
        "distances": [3, 6],
        "picture": [4, "image/jpeg"],
    }
    for bad in (
        b"",
        good[:40],
        header + points[:20],
        b"DF\x02" + good[3:],
        b"XX" + good[2:],
        good[:3] + b"\x09" + good[4:],
    ):
        assert "frame" in modules.evaluate(read, [list(bad)])
    raw = struct.pack("<2s4B H3I2H6f", b"DF", 1, 3, 0, 0, 0, 1, 9, 0, 2, 1, 1, 2, 3, 4, 5, 6) + bytes(range(8))
    read_raw = """([bytes]) => import('/frame.js').then(({ parseFrame }) => {
        const { picture } = parseFrame(new Uint8Array(bytes).buffer);
        return [picture.width, picture.height, [...picture.data]];
    }).catch((error) => error.message)"""
    assert modules.evaluate(read_raw, [list(raw)]) == [2, 1, list(range(8))]
    for bad in (raw[:-1], raw + b"0", raw[:20] + bytes(4) + raw[24:]):
        assert "pixels" in modules.evaluate(read_raw, [list(bad)])


def test_latency_is_counted_from_the_move_to_the_first_frame_that_shows_it(modules):
    result = modules.evaluate(
        """() => import('/latency.js').then(({ Latency }) => {
            const latency = new Latency();
            const frame = (stamp, received, step) => ({ stamp, received, step, times: { sinceStamp: 3 } });
            latency.moved(1, 100); latency.sent(1, 101);
            latency.moved(2, 110); latency.moved(2, 114); latency.sent(2, 115);
            latency.moved(3, 130); latency.sent(3, 130);
            const first = latency.drawn(frame(0, 118, 1), 120);
            const second = latency.drawn(frame(2, 145, 4), 150);
            const again = latency.drawn(frame(2, 155, 6), 160);
            latency.settle();
            const late = latency.drawn(frame(3, 165, 10), 170);
            return { first, second, again, late, network: latency.network.values,
                p50: latency.pointerToPaint.percentile(0.5), rates: latency.rates(1140) };
        })"""
    )
    assert result["first"] == result["again"] == result["late"] == []
    assert result["second"] == [50, 40, 36]
    assert result["p50"] == 40
    assert result["network"] == [27]
    assert result["rates"] == {"frames": 3, "steps": 6}


def test_screen_and_picture_agree_at_any_zoom(modules):
    worst = modules.evaluate(
        """() => import('/viewport.js').then(({ Viewport }) => {
            const view = new Viewport();
            view.setBox(640, 400); view.setPicture(512, 256);
            let worst = 0;
            for (let turn = 0; turn < 200; turn += 1) {
                const at = [(turn * 37) % 640, (turn * 53) % 400];
                const before = view.toPicture(at);
                const inside = view.rectangle;
                view.zoomAt(at, turn % 3 ? 1.3 : 0.5);
                view.panBy((turn % 7) - 3, (turn % 5) - 2);
                const back = view.toScreen(view.toPicture(at));
                worst = Math.max(worst, Math.abs(back[0] - at[0]), Math.abs(back[1] - at[1]));
                const { left, top, width, height } = view.rectangle;
                if (width >= 640) worst = Math.max(worst, left, 640 - left - width);
                if (height >= 400) worst = Math.max(worst, top, 400 - top - height);
            }
            return worst;
        })"""
    )
    assert worst < 1e-6


def test_marks_are_drawn_where_their_points_are(modules):
    """On a canvas of their size, wherever it was before: its pixels, seen from the element."""
    result = modules.evaluate(
        """() => import('/overlay.js').then(({ Patch }) => {
            const places = [];
            for (const ratio of [1, 1.1, 2]) {
                const canvas = document.createElementNS('http://www.w3.org/1999/xhtml', 'canvas');
                const patch = new Patch(canvas);
                const draw = (...points) => {
                    const context = patch.around(points, 18);
                    context.fillStyle = '#ff0000';
                    for (const [x, y] of points) context.fillRect(x - 5, y - 5, 10, 10);
                    const [left, top] = canvas.style.transform.match(/[\\d.]+/g).map(Number);
                    for (const [x, y] of points) {
                        const at = [(x - left) * ratio, (y - top) * ratio];
                        places.push(canvas.getContext('2d').getImageData(...at.map(Math.floor), 1, 1).data[3]);
                    }
                    const width = parseFloat(canvas.style.width) * ratio;
                    if (Math.abs(canvas.width - width) > 1e-3) places.push(`${canvas.width} for ${width}`);
                };
                patch.setSize(700, 500, ratio);
                draw([350, 250]);
                patch.setSize(700, 500, ratio); // another picture
                draw([40, 40]);
                draw([40, 40], [690, 490]);
                draw([2, 2]);
                draw([699, 499]);
                patch.around([], 18);
                patch.setSize(300, 300, ratio); // another window
                draw([150, 20], [290, 280]);
            }
            return places;
        })"""
    )
    assert result == [255] * 24


def test_a_picture_that_moves_stays_when_its_session_is_told_again(modules):
    sizes = modules.evaluate(
        """async () => {
            const { Painter } = await import('/painter.js');
            const canvas = document.createElementNS('http://www.w3.org/1999/xhtml', 'canvas');
            let painted = () => {};
            const painter = new Painter(canvas, () => painted(), () => {});
            const picture = await new Promise((done) => {
                const one = document.createElementNS('http://www.w3.org/1999/xhtml', 'canvas');
                one.width = one.height = 64;
                one.getContext('2d').fillStyle = '#ff0000';
                one.getContext('2d').fillRect(0, 0, 64, 64);
                one.toBlob(done);
            });
            painter.setSize(128, 128);
            painter.place({ left: 10, top: 20, width: 640 });
            const seen = [];
            for (const running of [true, true, false]) {
                const shown = new Promise((done) => { painted = done; });
                painter.show({ picture, running });
                await shown;
                painter.setSize(128, 128);
                const [red] = canvas.getContext('2d').getImageData(canvas.width / 2, canvas.width / 2, 1, 1).data;
                const [, scale] = canvas.style.transform.match(/scale\\(([\\d.]+)/);
                seen.push([canvas.width, red, Number(scale) * canvas.width]);
            }
            return seen;
        }"""
    )
    assert sizes == [[256, 255, 640], [256, 255, 640], [512, 255, 640]]


def test_pixels_are_drawn_at_once_and_overtake_what_is_being_decoded(modules):
    result = modules.evaluate(
        """async () => {
            const { Painter } = await import('/painter.js');
            const canvas = document.createElementNS('http://www.w3.org/1999/xhtml', 'canvas');
            const painted = [], dropped = [];
            const painter = new Painter(canvas, ({ step }) => painted.push(step), ({ step }) => dropped.push(step));
            const one = document.createElementNS('http://www.w3.org/1999/xhtml', 'canvas');
            one.getContext('2d').fillRect(0, 0, one.width, one.height);
            const encoded = await new Promise((done) => one.toBlob(done));
            const coloured = (blue) => {
                const picture = new ImageData(8, 4);
                for (let k = 0; k < 32; k += 1) picture.data.set([10, 20, blue, 255], 4 * k);
                return picture;
            };
            const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            painter.setSize(16, 8);
            painter.show({ step: 1, picture: encoded });
            painter.show({ step: 2, picture: encoded });
            painter.show({ step: 3, picture: coloured(30) });
            painter.show({ step: 4, picture: coloured(40) });
            await frames();
            await new Promise((done) => setTimeout(done, 100));
            const middle = () => [...canvas.getContext('2d').getImageData(canvas.width / 2, 40, 1, 1).data];
            const first = middle();
            painter.show({ step: 5, picture: encoded });
            await new Promise((done) => setTimeout(done, 200));
            return { painted, dropped: dropped.sort(), first, second: middle() };
        }"""
    )
    assert result == {"painted": [4, 5], "dropped": [1, 2, 3], "first": [10, 20, 40, 255], "second": [0, 0, 0, 255]}


def test_copies_are_few_and_the_newest_and_a_browser_that_keeps_none_is_no_error(modules):
    result = modules.evaluate(
        """async () => {
            const { copyOf, dropCopy, keepCopy } = await import('/kept.js');
            const realNow = Date.now;
            let now = realNow();
            Date.now = () => (now += 1000);
            const held = async (...keys) => (await Promise.all(keys.map(copyOf))).map((file) => file?.size ?? null);
            const names = [...Array(20).keys()].map(String);
            const few = new Blob(['four']);
            for (const name of names) void keepCopy(name, few);
            const inNumber = await held(...names);
            await keepCopy('17', new Blob(['more']), '19');
            await dropCopy('18');
            const replaced = await held('16', '17', '18', '19');
            const large = (megabytes) => new Blob([new Uint8Array(megabytes << 20)]);
            for (const name of ['a', 'b', 'c', 'd']) await keepCopy(name, large(20));
            const inSize = await held('17', 'a', 'b', 'c', 'd');
            await keepCopy('e', large(65)); // larger than all may be together
            const tooLarge = await held('d', 'e');
            await keepCopy('f', few);
            now += 15 * 24 * 3600 * 1000;
            const old = await held('f');
            await keepCopy('g', few);
            now -= 20 * 24 * 3600 * 1000;
            const removed = await held('f', 'g');
            Date.now = realNow;
            const real = IDBFactory.prototype.open;
            IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };
            const refused = [await keepCopy('x', few), await copyOf('x'), await dropCopy('x')];
            IDBFactory.prototype.open = real;
            await keepCopy('x', few);
            return { inNumber, replaced, inSize, tooLarge, old, removed, refused, after: await held('x') };
        }"""
    )
    assert result == {
        "inNumber": [None] * 4 + [4] * 16,
        "replaced": [4, 4, None, None],
        "inSize": [None, None, 20 << 20, 20 << 20, 20 << 20],
        "tooLarge": [None, None],
        "old": [None],
        "removed": [None, 4],
        "refused": [None, None, None],
        "after": [4],
    }


def test_a_brush_covers_the_pixels_that_the_server_paints(modules):
    """Lines of any direction, dots, edges that go through the centres of pixels, and what lies beside the picture."""
    rng = random.Random(5)
    width, height = 40, 30
    lines = [((10, 10), (10, 10), 3), ((10, 10), (20, 10), 2), ((8, 4), (8, 21), 4), ((3, 4), (11, 10), 5)]
    lines += [((12.5, 12.5), (12.5, 12.5), 0.01), ((12.49, 3.2), (30.1, 3.2), 0.1), ((-9, -9), (-4, 60), 2)]
    for _ in range(150):
        ends = [(round(rng.uniform(-12, 52), 2), round(rng.uniform(-12, 42), 2)) for _ in range(2)]
        lines.append(
            (ends[0], ends[rng.randrange(2)], rng.choice([0.25, 0.5, 1, 2.5, 7, round(rng.uniform(0, 20), 2)]))
        )
    covered = modules.evaluate(
        """([lines, size]) => import('/strokes.js').then(({ cover }) => lines.map(([from, to, radius]) => {
            const found = [];
            cover(from, to, radius, size, (y, begin, end) => found.push([y, begin, end]));
            return found;
        }))""",
        [lines, {"width": width, "height": height}],
    )
    y, x = np.mgrid[:height, :width].astype(float)
    for (start, end, radius), rows in zip(lines, covered, strict=True):
        page, server = np.zeros((2, height, width), bool)
        for row, first, last in rows:
            page[row, first:last] = True
        paint(server, [(start, end)], radius, value=True)
        assert np.array_equal(page, server), (start, end, radius)
        (ax, ay), (dx, dy) = start, np.subtract(end, start)
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / ((dx * dx + dy * dy) or 1), 0, 1)
        distance = np.hypot(x - ax - along * dx, y - ay - along * dy)
        assert np.array_equal(server, distance <= max(radius, 0.5**0.5) + 1e-6), (start, end, radius)
    assert sum(map(len, covered)) > 1000


def test_a_refused_stroke_is_taken_back_from_under_those_painted_since(modules):
    result = modules.evaluate(
        """() => import('/mask.js').then(({ Mask }) => {
            const make = document.createElement.bind(document); // this page is an SVG
            document.createElement = (name) => document.createElementNS('http://www.w3.org/1999/xhtml', name);
            const mask = new Mask();
            document.createElement = make;
            mask.setSize(32, 32);
            const stroke = (x, y, movable) => { mask.begin([x, y], 2, movable); return mask.end(); };
            const movable = () => [[5, 5], [15, 15], [25, 25]].map((at) => mask.movableAt(at));
            const seen = [];
            const first = stroke(5, 5, true);
            const second = stroke(15, 15, true);
            seen.push([first.message.base, second.message.base, ...movable()]);
            mask.begin([25, 25], 2, true); // a third is being painted
            mask.refuse(first);
            seen.push([...movable(), mask.painting]);
            mask.refuse(first); // it is not there any more
            mask.accept(second);
            mask.refuse(second);
            seen.push(movable());
            mask.revert(); // the third is cancelled; what was accepted stays
            mask.revert();
            seen.push([...movable(), mask.present]);
            const last = stroke(5, 5, false);
            mask.clear();
            mask.refuse(last); // of a mask that is gone
            return [...seen, [...movable(), mask.present]];
        })"""
    )
    assert result == [
        ["fixed", "present", True, True, False],
        # "present" of a server that has no mask: everything may move
        [True, True, True, True],
        [True, True, True],
        [True, True, True, True],
        [True, True, True, False],
    ]
