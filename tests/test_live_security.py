"""Who may use the live server, and what it answers whoever may not, or finds it broken: over real sockets."""

import contextlib
import json
import struct

import pytest
from websockets.exceptions import InvalidStatus

import draggan_fast as dg
from draggan_fast import protocol
from draggan_fast.metrics import process_megabytes
from tests.live_client import Client, get, running
from tests.live_models import tiny_model


def status_of(port, path="/ws", **headers):
    """The HTTP status a WebSocket is refused with, or 101."""
    try:
        with Client(port, hello=False, headers=headers, path=path):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_a_foreign_origin_gets_no_socket(port):
    assert status_of(port, Origin=f"http://127.0.0.1:{port}") == 101
    assert status_of(port) == 101  # not a browser
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{port + 1}", "http://127.0.0.1", "", "http://["):
        assert status_of(port, Origin=origin) == 403, origin
    assert get(port, "/api/models", "POST", Origin="https://evil.example")[0] == 403


def test_a_foreign_page_gets_no_pictures(port):
    """<img> and fetch of other sites: nothing is drawn or told for them."""
    for path in ("/api/models", "/api/seeds/3.webp", "/metrics"):
        assert get(port, path, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert get(port, path, Origin="https://evil.example")[0] == 403
        assert get(port, path, **{"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert get(port, "/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page


def test_a_foreign_host_name_is_not_answered(port):
    """A name of somebody else's that resolves to this machine: DNS rebinding."""
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "", "127.0.0.1.evil.example"):
        assert get(port, "/api/models", Host=host)[0] == 421, host
    for host in ("localhost", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"):
        assert get(port, "/api/models", Host=host)[0] == 200, host


def push(connection, total):
    """As much of a message that never ends as the server takes, in frames of 100 kB: unmasked zeros."""
    fragment = bytes(100_000)
    header = struct.pack("!BBQ4s", 0, 0x80 | 127, len(fragment), bytes(4))  # more to come; masked, with a mask of zeros
    first = bytes((2,)) + header[1:]  # the first one is a binary frame, the others continue it
    with contextlib.suppress(OSError):  # it has been cut off
        for at in range(0, total, len(fragment)):
            connection.sendall((header if at else first) + fragment)


def test_who_has_not_said_hello_cannot_fill_the_memory(port):
    """Forty sockets push four megabytes each of messages that never end, and stay."""
    before = process_megabytes()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(port, hello=False)) for _ in range(40)]
        for client in clients:
            push(client.socket.socket, 4_000_000)
        assert get(port, "/healthz")[0] == 200
        assert process_megabytes() - before < 60  # 32 of them with 260 kB each, and what the clients and buffers take
        assert clients[-1].closed() in (1009, None)
    with Client(port) as client:
        client.create()
        client.say("close")


def test_uploads_come_in_pieces_and_only_after_hello(port):
    saved = dg.DragSession(tiny_model(), seed=4).to_bytes()
    with Client(port, hello=False) as stranger:
        for piece in protocol.upload_pieces(2, 9, saved, len(saved) // 3):
            stranger.socket.send(piece)
            assert stranger.answer(9)["answer"]["code"] == "order"
    with Client(port) as client:
        client.welcome["limits"]["piece_bytes"] = len(saved) // 5
        assert client.upload(2, saved)["answer"]["type"] == "ok"
        assert client.until(lambda m: isinstance(m, dict) and m["type"] == "session")["seed"] == 4
        client.say("close")


def test_uploads_that_come_too_fast_are_refused_as_a_whole(monkeypatch):
    """Whose first piece is refused has none of the others taken for a beginning."""
    app = dg.create_app(tiny_model())
    monkeypatch.setattr(protocol, "UPLOAD_COST", 1e6)
    with running(app) as port, Client(port) as client:
        for piece in protocol.upload_pieces(2, 9, b"abcdef", 2):
            client.socket.send(piece)
        assert client.answer(9)["answer"]["code"] == "rate"
        assert client.ask("ping", stamp=1)["pong"]["stamp"] == 1
        assert len([m for m in client.messages if m.get("id") == 9]) == 1


def test_every_answer_is_marked_safe(port):
    for path in ("/healthz", "/api/models", "/metrics", "/nothing", "/api/seeds/1.webp"):
        _, headers, _ = get(port, path)
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(KeyError("x"), 500, "internal"), (OSError("x"), 500, "internal"), (RuntimeError("x"), 500, "internal"),
     (MemoryError(), 507, "memory")],
)  # fmt: skip
def test_what_nobody_foresaw_is_answered_logged_and_counted(port, monkeypatch, caplog, error, status, code):
    def fail(*_):
        raise error

    def count():
        found = [
            line for line in get(port, "/metrics")[2].decode().splitlines() if f'errors_total{{code="{code}"}}' in line
        ]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    before = count()
    for name, path in (("describe", "/api/models"), ("get", "/api/seeds/1.webp?size=33")):
        monkeypatch.setattr("draggan_fast.live_models.ServedModels." + name, fail)
        found, headers, body = get(port, path)
        assert found == status
        assert "default-src 'self'" in headers["content-security-policy"]
        assert json.loads(body)["error"].endswith(".")
        assert "x" not in json.loads(body)["error"].replace("later", "")
    monkeypatch.undo()
    assert count() == before + 2
    assert ("failed" in caplog.text) == (status == 500)


def test_what_fails_in_the_worker_is_answered_the_same(port, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("drawing")

    monkeypatch.setattr("draggan_fast.live_models.ServedModels.from_seed", fail)
    status, headers, body = get(port, "/api/seeds/99.webp?size=47")
    assert (status, headers["x-content-type-options"]) == (500, "nosniff")
    assert "drawing" not in body.decode()


def test_a_message_that_breaks_the_server_is_answered_and_counted(client, port, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("x")

    client.create()
    with monkeypatch.context() as broken:
        broken.setattr("draggan_fast.live_viewer.Viewer.ack", fail)
        client.say("ack", frame=1)
        told = client.until(lambda m: isinstance(m, dict) and m["type"] == "error")
    assert told["code"] == "internal"
    assert "ZeroDivisionError" in told["message"]
    assert "a message failed" in caplog.text
    assert b'draggan_errors_total{code="internal"}' in get(port, "/metrics")[2]
    assert client.ask("ping", stamp=4)["pong"]["stamp"] == 4


def test_refusals_of_every_kind_are_marked_safe(port):
    answers = []
    for method, path, status in (("POST", "/api/models", 405), ("GET", "/nothing", 404), ("GET", "/static", 307)):
        found, headers, _ = get(port, path, method)
        assert found == status
        answers.append(headers)
    assert "GET" in answers[0]["allow"]
    answers.append(get(port, "/api/models", Host="evil.example")[1])
    answers.append(get(port, "/api/models", Origin="https://evil.example")[1])
    for headers in answers:
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert status_of(port, "/nothing") == 403


def test_a_token_opens_and_nothing_else_does():
    with running(dg.create_app(tiny_model(), token="s3cret")) as port:
        assert get(port, "/healthz")[0] in (200, 503)
        for path in ("/api/models", "/metrics", "/api/seeds/1.webp", "/api/sessions/x/picture.png", "/nothing"):
            status, headers, _ = get(port, path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            for wrong in ("Bearer s3cre", "Bearer ", "s3cret", "Basic s3cret", "Bearer s3cret x", "Bearer \xe9"):
                assert get(port, path, Authorization=wrong)[0] == 401
            assert get(port, path, Authorization="bearer s3cret")[0] in (200, 404)
        assert get(port, "/static/none.js")[0] == 404
        for wrong in ({}, {"token": "s3cre"}, {"token": ""}, {"token": "é"}):
            with Client(port, hello=False) as client:
                assert client.ask("hello", version=1, **wrong)["answer"]["code"] == "unauthorised"
                assert client.closed() == 1008
        with Client(port, token="s3cret") as client:
            client.create()


def test_an_allowed_origin_may_use_it():
    origin = "https://app.example"
    app = dg.create_app(tiny_model(), allow_origins=[origin], token="s3cret")
    with running(app) as port:
        assert status_of(port, Origin=origin) == 101
        assert status_of(port, Origin="https://other.example") == 403
        status, headers, _ = get(port, "/api/models", Origin=origin, Authorization="Bearer s3cret")
        assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, origin, "Origin")
        ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        status, headers, _ = get(port, "/api/models", "OPTIONS", Origin=origin, **ask)
        assert (status, headers["access-control-allow-headers"]) == (204, "authorization")
        _, headers, _ = get(port, "/healthz", Origin="https://other.example")
        assert "access-control-allow-origin" not in headers
