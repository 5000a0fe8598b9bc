"""The live server over real sockets: uvicorn in a thread, the ``websockets`` client, plain HTTP."""

import contextlib
import io
import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from websockets.exceptions import ConnectionClosed

import draggan_fast as dg
from draggan_fast import media, protocol
from draggan_fast.live_hub import LiveHub
from draggan_fast.protocol import Limits
from tests.live_client import Client, get, running, wait_until_ready
from tests.live_models import tiny_model
from tests.test_live_fuzz import messages

POINTS = {"handles": [[10, 10]], "targets": [[20, 12]]}
UNREACHABLE = {"handles": [[4, 4]], "targets": [[30, 30]]}  # by steps as small as these
SLOW = {"lr": 1e-5, "max_steps": 1000000}
FEW = Limits(messages_per_second=20, upload_bytes=1 << 18)


def drag_for_ever(client):
    client.ask("settings", **SLOW)
    client.ask("points", **UNREACHABLE)
    client.ask("start")


# --- the socket -------------------------------------------------------------------------------------------------------


def test_a_live_drag(client):
    session = client.create(seed=5)
    assert (session["width"], session["seed"]) == (32, 5)
    client.ask("points", handles=[[10, 10]], targets=[[10, 10]])
    client.ask("start", live=True)
    client.status("waiting")
    for stamp in range(1, 6):
        client.say("targets", targets=[[10 + stamp, 10]], stamp=stamp)
    reflected = client.frame(lambda frame: frame.stamp == 5)
    assert len(reflected.points) == 1
    picture = Image.open(io.BytesIO(reflected.picture))
    assert picture.size == reflected.size
    client.ask("pause")
    numbers = [number for _, number, _ in client.frames]
    assert numbers == list(range(1, len(numbers) + 1))
    delays = [delay for frame, _, delay in client.frames if frame.stamp]
    assert all(delay > 0 for delay in delays)
    steps = [frame.step for frame, _, _ in client.frames]
    assert steps == sorted(steps)


def test_two_clients_at_once(port):
    with Client(port) as one, Client(port) as other:
        ids = {one.create(seed=1)["session"], other.create(seed=2)["session"]}
        assert len(ids) == 2
        for client in (one, other):
            drag_for_ever(client)
        for client in (one, other, one, other):
            step = client.frames[-1][0].step
            client.frame(lambda frame, step=step: frame.step > step + 2)
        first, second = (np.asarray(Image.open(io.BytesIO(c.frames[-1][0].picture))) for c in (one, other))
        assert not np.array_equal(first, second)
        one.say("close")
        other.say("close")


def test_a_slow_client_gets_fewer_frames_and_slows_nobody(port):
    with Client(port, acks=False) as slow, Client(port) as quick:
        for client in (slow, quick):
            client.create()
            client.ask("view", fps=60, preview="never")
            drag_for_ever(client)
        count = len(quick.frames)
        quick.until(lambda _: len(quick.frames) >= count + 30)
        with contextlib.suppress(TimeoutError):
            while True:
                slow.receive(0.05)
        assert len(slow.frames) <= 2
        slow.say("ack", frame=slow.frames[-1][1])
        newest = slow.frame()
        assert newest.step > slow.frames[-2][0].step + 10  # what came between was never made
        for client in (slow, quick):
            client.say("close")


def test_a_frame_needs_its_settings(client):
    client.create()
    for name, kind in (("webp", "WEBP"), ("jpeg", "JPEG")):
        client.ask("view", format=name, quality=70)
        frame = client.frame(lambda frame, name=name: frame.format == name)
        assert Image.open(io.BytesIO(frame.picture)).format == kind


def test_resume_by_id_goes_on_where_it_was(port):
    with Client(port) as client:
        session = client.create(seed=7)["session"]
        client.ask("points", **POINTS)
        client.ask("step", count=3)
        client.status("paused")
        client.until(lambda m: isinstance(m, tuple) and m[0].step == 3)
    with Client(port, resume=session) as again:
        assert again.welcome["resumed"]
        said = again.until(lambda m: isinstance(m, dict) and m["type"] == "session")
        assert (said["session"], said["seed"]) == (session, 7)
        assert again.status("paused", "idle")["step"] == 3
        assert again.frame().step == 3
        with Client(port, resume=session) as third:
            assert third.welcome["resumed"]
            assert again.closed() == 4001
            third.until(lambda m: isinstance(m, dict) and m["type"] == "session")
            third.say("close")
    with Client(port, resume="x" * 22) as nobody:
        assert not nobody.welcome["resumed"]


def test_the_server_dies_in_a_drag_and_the_saved_session_goes_on(tmp_path):
    with running(dg.create_app(tiny_model())) as port, Client(port) as client:
        session = client.create(seed=7)["session"]
        drag_for_ever(client)
        client.frame(lambda frame: frame.step >= 5)
        status, _, saved = get(port, f"/api/sessions/{session}/session.safetensors")
        assert status == 200
    # the block has ended the server, in the middle of the drag
    with running(dg.create_app(tiny_model())) as port, Client(port, resume=session) as client:
        assert not client.welcome["resumed"]
        answer = client.upload(protocol.UPLOAD_SESSION, saved)
        assert answer["answer"]["type"] == "ok"
        said = client.until(lambda m: isinstance(m, dict) and m["type"] == "session")
        assert said["settings"]["lr"] == SLOW["lr"]
        assert said["handles"] == said["handles"]
        steps = client.frame().step
        assert steps >= 5
        assert len(said["targets"]) == 1
        client.ask("start", steps=2)
        assert client.status("limit")["step"] == steps + 2
    path = tmp_path / "saved.safetensors"
    path.write_bytes(saved)
    assert dg.DragSession.load(path, tiny_model()).steps == steps


def test_a_server_ends_at_once_in_the_middle_of_a_drag():
    with contextlib.ExitStack() as stack:
        block = contextlib.ExitStack()
        port = block.enter_context(running(dg.create_app(tiny_model())))
        client = stack.enter_context(Client(port))
        client.create()
        drag_for_ever(client)
        client.frame(lambda frame: frame.step > 3)
        start = time.monotonic()
        block.close()
        assert time.monotonic() - start < 10  # a bound for machines that are busy; the command's test says a second
        assert client.closed() in (1001, 1006, 1012, None)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(messages, min_size=25, max_size=35))
def test_no_message_breaks_the_server(port, script):
    with Client(port) as client:
        client.create(seed=2)
        for data in script:
            client.socket.send(data)
        assert client.ask("ping", stamp=4)["pong"]["stamp"] == 4
        assert client.ask("create", seed=3)["answer"]["type"] in ("ok", "error")
        client.say("close")
    assert get(port, "/healthz")[0] == 200
    assert b'code="internal"' not in get(port, "/metrics")[2]


# --- wrong and too much -----------------------------------------------------------------------------------------------


def test_hello_comes_first(port):
    with Client(port, hello=False) as client:
        assert client.ask("create", seed=1)["answer"]["code"] == "order"
        assert client.ask("hello", version=2)["answer"]["code"] == "protocol"
        assert client.ask("hello", version=1)["welcome"]["version"] == 1
        assert client.ask("hello", version=1)["answer"]["code"] == "order"


def test_who_says_nothing_is_sent_away(port, monkeypatch):
    monkeypatch.setattr("draggan_fast.live_socket.HELLO_SECONDS", 0.2)
    with Client(port, hello=False) as client:
        assert client.closed() == 1008


def test_who_is_wrong_too_often_is_sent_away(port):
    with Client(port) as client:
        for _ in range(80):
            client.say("nonsense")
        assert client.closed() == 1008


def test_who_sends_too_fast_is_told_and_sent_away():
    with running(dg.create_app(tiny_model(), limits=FEW)) as port, Client(port) as client:
        client.create()
        with contextlib.suppress(ConnectionClosed):  # it may be sent away while it is still talking
            for _ in range(150):
                client.say("pause")
        assert client.closed() == 1008
        assert "rate" in {m.get("code") for m in client.messages}


def test_too_large_messages():
    limits = Limits(message_bytes=1000, piece_bytes=2000, upload_bytes=9000)
    with running(dg.create_app(tiny_model(), limits=limits)) as port:
        for data in ('{"type": "ping"' + " " * 1000 + "}", bytes(2100), '{"type": "é' + "é" * 500 + '"}'):
            with Client(port) as client:
                client.socket.send(data)
                assert client.closed() == 1009
        with Client(port) as client:
            client.socket.send('{"type": "ping"' + " " * 900 + "}")
            client.until(lambda m: m["type"] == "pong")


def test_the_limit_of_pictures_is_told_and_lifted():
    with running(dg.create_app(tiny_model(), max_sessions=1)) as port, Client(port) as one, Client(port) as other:
        one.create()
        assert other.ask("create", seed=1)["answer"]["code"] == "limit"
        one.ask("close")
        other.create()


def test_as_many_viewers_as_there_may_be():
    with running(dg.create_app(tiny_model(), max_sessions=1)) as port, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Client(port))
        with Client(port, hello=False) as one_more:
            one_more.say("hello", version=1)
            assert one_more.closed() == 1013
        stack.close()
        with Client(port) as client:
            client.create()


def test_idle_pictures_are_given_up():
    with running(dg.create_app(tiny_model(), idle_seconds=0.2, max_sessions=1)) as port:
        with Client(port) as client:
            session = client.create()["session"]
            time.sleep(0.4)
            assert client.ask("reset")["answer"]["type"] == "ok"  # with a viewer it is kept
        deadline = time.monotonic() + 20
        while get(port, f"/api/sessions/{session}/picture.png")[0] != 404:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with Client(port, resume=session) as client:
            assert not client.welcome["resumed"]
            client.create()


def test_who_asks_for_nothing_is_sent_away_and_its_picture_is_kept():
    with running(dg.create_app(tiny_model(), silent_seconds=0.5, max_sessions=1)) as port:
        with Client(port) as client:
            session = client.create()["session"]
            drag_for_ever(client)
            start = time.monotonic()
            with pytest.raises(ConnectionClosed):  # its acks and pings are no sign of a person
                while True:
                    if isinstance(client.receive(), tuple):
                        client.say("ping", stamp=1)
            assert client.closed() == 4002
            assert time.monotonic() - start >= 0.4
        with Client(port, resume=session) as again:
            assert again.welcome["resumed"]
            assert again.status("paused")["step"] > 0
            for _ in range(4):  # what is asked for keeps it
                time.sleep(0.2)
                again.ask("pause")


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_models_and_seeds(port):
    status, headers, body = get(port, "/api/models")
    assert status == 200
    first, second = json.loads(body)["models"]
    assert (first["name"], first["resolution"], first["engine"], first["precision"]) == ("tiny", 32, "fast", "fp32")
    assert first["settings"]["lr"] == 0.05
    assert second["classes"] == 3
    status, headers, body = get(port, "/api/seeds/7.webp?size=64&psi=0.5")
    assert (status, headers["content-type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(body)).size == (64, 64)
    assert get(port, "/api/seeds/7.webp?size=64&psi=0.5")[2] == body


def test_seeds_of_a_class(port):
    path = "/api/seeds/7.webp?model=classes&size=32"
    status, _, first = get(port, path)
    pictures = [get(port, f"{path}&label={label}") for label in range(3)]
    assert [status, *(found[0] for found in pictures)] == [200] * 4
    assert first == pictures[0][2]
    assert len({picture for *_, picture in pictures}) == 3
    drag = dg.DragSession(tiny_model("classes", c_dim=3), seed=7, label=2)
    seen = np.asarray(Image.open(io.BytesIO(pictures[2][2])).convert("RGB")).astype(int)
    assert np.abs(seen - drag.render()).mean() < 6  # WebP
    for query, sentence in (
        ("model=classes&label=3", "This model has classes: give a label from 0 to 2, not 3."),
        ("model=tiny&label=0", "This model has no classes: give no label."),
        ("model=classes&label=one", "label must be a whole number from 0 to 65536."),
        ("model=classes&label=-1", "label must be a whole number from 0 to 65536."),
        ("model=classes&label=", "label must be a whole number from 0 to 65536."),
    ):
        status, _, body = get(port, f"/api/seeds/7.webp?{query}")
        assert (status, json.loads(body)["error"]) == (400, sentence)


def test_a_picture_of_a_class(client):
    session = client.create(seed=7, model="classes", label=2)
    assert (session["seed"], session["label"]) == (7, 2)
    for fields, sentence in (
        ({"model": "classes", "label": 3}, "This model has classes: give a label from 0 to 2, not 3."),
        ({"model": "classes"}, "This model has classes: give a label from 0 to 2, not None."),
        ({"model": "tiny", "label": 0}, "This model has no classes: give no label."),
        ({"model": "classes", "label": 1.5}, "create: label must be a whole number from 0 to 65536."),
    ):
        answer = client.ask("create", seed=8, **fields)["answer"]
        assert (answer["type"], answer["message"]) == ("error", sentence)
    assert client.ask("reset")["answer"]["type"] == "ok"
    assert [m["seed"] for m in client.messages if m["type"] == "session"] == [7]  # nothing has changed


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/seeds/-1.webp", 400), ("/api/seeds/4294967296.webp", 400), ("/api/seeds/x.webp", 400),
        ("/api/seeds/1.webp?size=31", 400), ("/api/seeds/1.webp?size=257", 400), ("/api/seeds/1.webp?psi=x", 400),
        ("/api/seeds/1.webp?psi=nan", 400), ("/api/seeds/1.webp?model=none", 400), ("/api/nothing", 404),
        ("/api/sessions/none/picture.png", 404), ("/api/sessions/none/session.safetensors", 404),
        ("/api/sessions/none/timeline.webp", 404), ("/api/sessions/none/timeline/0.webp", 404),
        ("/api/sessions/..%2f..%2fetc%2fpasswd/picture.png", 404), ("/static/..%2fserver.py", 404),
        ("/static/../server.py", 404), ("/static/%2e%2e/server.py", 404), ("/api/seeds/" + "9" * 400 + ".webp", 400),
    ],
)  # fmt: skip
def test_what_http_refuses(port, path, status):
    assert get(port, path)[0] == status


def test_only_reading(port):
    for method in ("POST", "PUT", "DELETE"):
        assert get(port, "/api/models", method)[0] == 405


def test_exports(client, port, tmp_path):
    session = client.create(seed=5)["session"]
    client.ask("points", **POINTS)
    client.ask("step", count=4)
    client.status("paused")
    client.frame(lambda frame: frame.step == 4)
    base = f"/api/sessions/{session}"

    def fetch(name):
        status, headers, body = get(port, f"{base}/{name}")
        assert status == 200, body
        assert "attachment" in headers["content-disposition"]
        path = tmp_path / name
        path.write_bytes(body)
        return path

    saved = dg.DragSession.load(fetch("session.safetensors"), tiny_model())
    assert saved.steps == 4
    picture = fetch("picture.png")
    assert np.array_equal(np.asarray(Image.open(picture)), saved.render())
    animation = fetch("timeline.webp")
    with Image.open(animation) as opened:
        assert (opened.format, opened.n_frames, opened.size) == ("WEBP", 5, (32, 32))
    av = pytest.importorskip("av")
    video = fetch("timeline.mp4")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 5
    for path in (picture, animation, video):
        assert media.read_provenance(path)["digital_source_type"] == media.DIGITAL_SOURCE_TYPE
        assert media.read_provenance(path)["model"] == "tiny"
    status, headers, body = get(port, f"{base}/timeline/2.webp?size=48")
    assert (status, Image.open(io.BytesIO(body)).size) == (200, (48, 48))
    assert headers["cache-control"] == "no-store"
    assert get(port, f"{base}/timeline/5.webp")[0] == 404
    assert get(port, f"{base}/timeline/-1.webp")[0] == 400
    assert get(port, f"{base}/timeline.gif")[0] == 404


def test_a_video_without_pyav_says_so(client, port, monkeypatch):
    def missing(*_, **__):
        raise dg.MediaError("MP4 needs PyAV; run pip install 'draggan-fast[video]', or write .webp or .gif.")

    monkeypatch.setattr(media, "check_animation", missing)
    session = client.create()["session"]
    status, _, body = get(port, f"/api/sessions/{session}/timeline.mp4")
    assert status == 501
    assert "PyAV" in json.loads(body)["error"]


def test_exports_in_the_middle_of_a_drag(client, port):
    session = client.create()["session"]
    drag_for_ever(client)
    client.frame(lambda frame: frame.step > 3)
    for name in ("picture.png", "session.safetensors", "timeline.webp", "timeline/1.webp"):
        assert get(port, f"/api/sessions/{session}/{name}")[0] == 200
    step = client.frames[-1][0].step
    client.frame(lambda frame: frame.step > step)


def test_metrics(client, port):
    client.create()
    client.ask("points", **POINTS)
    client.ask("step", count=3)
    client.status("paused")
    client.say("nonsense")
    client.until(lambda m: isinstance(m, dict) and m["type"] == "error")
    status, headers, body = get(port, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    lines = {}
    for line in body.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            lines[name] = float(value)
    assert lines["draggan_steps_total"] >= 3
    assert lines["draggan_frames_total"] >= 1
    assert lines["draggan_frame_bytes_total"] > 100
    assert lines["draggan_viewers"] >= 1
    assert lines["draggan_sessions"] >= 1
    assert lines["draggan_animations"] == 0
    assert lines["draggan_memory_bytes"] > 5e7
    assert lines['draggan_errors_total{code="protocol"}'] >= 1
    for stage in ("step", "render", "encode"):
        assert lines[f'draggan_stage_seconds_count{{stage="{stage}"}}'] >= 1


def test_no_worker_no_health(monkeypatch):
    monkeypatch.setattr(LiveHub, "start", lambda self: None)
    with running(dg.create_app(tiny_model())) as port:
        assert get(port, "/healthz")[0] == 503
        assert get(port, "/api/seeds/1.webp")[0] in (400, 503)


# --- in somebody else's application -----------------------------------------------------------------------------------


def drag_once(port, prefix):
    with Client(port, path=f"{prefix}/ws") as client:
        session = client.create()["session"]
        client.ask("points", **POINTS)
        client.ask("step")
        client.status("paused")
        assert get(port, f"{prefix}/api/sessions/{session}/picture.png")[0] == 200
    assert get(port, f"{prefix}/healthz")[0] in (200, 503)
    assert get(port, f"{prefix}/api/models")[0] == 200


def test_mounted_with_a_lifespan_around():
    live = dg.create_app(tiny_model())

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with live.live:
            yield

    app = Starlette(routes=[Mount("/drag", live), Route("/", lambda _: PlainTextResponse("ours"))], lifespan=lifespan)
    with running(app) as port:
        assert get(port, "/")[2] == b"ours"
        drag_once(port, "/drag")
        worker = live.live._worker
        assert worker.alive
    assert not worker.alive


def test_mounted_with_a_lifespan_around_it_ends_in_the_middle_of_a_drag():
    """With the owner's middleware around it, which sees every answer."""
    live = dg.create_app(tiny_model())

    async def marked(request, call_next):
        response = await call_next(request)
        response.headers["x-ours"] = "yes"
        return response

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with live.live:
            yield

    app = Starlette(
        routes=[Mount("/drag", live)], lifespan=lifespan, middleware=[Middleware(BaseHTTPMiddleware, dispatch=marked)]
    )
    with contextlib.ExitStack() as stack:
        block = contextlib.ExitStack()
        port = block.enter_context(running(app))
        wait_until_ready(port, "/drag")  # without a viewer
        assert get(port, "/drag", Host=f"localhost:{port}")[1]["location"] == f"http://localhost:{port}/drag/"
        status, headers, _ = get(port, "/drag/static/page.js")
        assert (status, headers["x-ours"], headers["x-content-type-options"]) == (200, "yes", "nosniff")
        client = stack.enter_context(Client(port, path="/drag/ws"))
        client.create()
        drag_for_ever(client)
        client.frame(lambda frame: frame.step > 3)
        worker = live.live._worker
        block.close()
        assert not worker.alive
        assert client.closed() in (1001, 1012)


def test_mounted_and_forgotten_it_starts_with_the_first_viewer():
    live = dg.create_app(tiny_model())
    with running(Starlette(routes=[Mount("/deep/drag", live)])) as port:
        assert get(port, "/deep/drag/healthz")[0] == 503
        drag_once(port, "/deep/drag")
    assert live.live.stop()


def test_a_mounted_token_guards_what_it_should():
    app = Starlette(routes=[Mount("/drag", dg.create_app(tiny_model(), token="s3cret"))])
    with running(app) as port:
        assert get(port, "/drag/healthz")[0] == 503
        assert get(port, "/drag/")[0] == 200
        assert get(port, "/drag/static/none.js")[0] == 404
        for path in ("/drag/api/models", "/drag/metrics", "/drag/healthz/x", "/drag/static", "/drag"):
            status, _, body = get(port, path)
            assert status in (401, 307), path
            assert status == 307 or "token" in json.loads(body)["error"]
        assert get(port, "/drag/api/models", Authorization="Bearer s3cret")[0] == 200
        with Client(port, path="/drag/ws", token="s3cret") as client:
            client.create()


def test_an_app_can_be_run_twice():
    app = dg.create_app(tiny_model())
    for _ in range(2):
        with running(app) as port:
            drag_once(port, "")


@pytest.mark.parametrize(
    "arguments",
    [{"model": []}, {"model": [tiny_model(), tiny_model()]}, {"model": [3]}, {"max_sessions": 0}, {"idle_seconds": 0},
     {"silent_seconds": 0},
     {"token": ""}, {"token": "é"}, {"token": "a b"}, {"token": "a\n"}, {"token": "a" * 513},
     {"limits": Limits(piece_bytes=0)}, {"limits": Limits(points=1 << 16)}, {"limits": Limits(messages_per_second=1.5)},
     {"limits": Limits(piece_bytes=100, messages_per_second=10**6)}, {"limits": Limits(messages_per_second=40)},
     {"allowed_hosts": "localhost"}, {"allow_origins": "https://a"}],
)  # fmt: skip
def test_bad_arguments(arguments):
    with pytest.raises(dg.DragError):
        dg.create_app(**{"model": tiny_model(), **arguments})
