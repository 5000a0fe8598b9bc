"""A server in a thread, and a client of the live protocol over a real socket."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from draggan_fast.protocol import Limits, unpack_frame, upload_pieces

PATIENCE = 30.0
LARGEST_MESSAGE = Limits().largest_message


async def serve(server, listener):
    """Until it is told to end. What uvicorn then leaves open, a process would close by ending; this one goes on."""
    await server.serve(sockets=[listener])
    for connection in list(server.server_state.connections):
        if connection.transport is not None:
            connection.transport.abort()
    await asyncio.sleep(0)  # the transports close their sockets


@contextlib.contextmanager
def running(app, port=0, ws_max_size=LARGEST_MESSAGE):
    """The port (a free one if 0) of a uvicorn server on loopback that serves the app until the block ends."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # where another server has just been
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=ws_max_size,
        ws_per_message_deflate=False,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=[serve(server, listener)])
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"


def get(port, path, method="GET", **headers):
    """(status, headers, body) of an HTTP request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def wait_until_ready(port, prefix=""):
    """Until the models are prepared."""
    deadline = time.monotonic() + 2 * PATIENCE
    while True:
        with contextlib.suppress(ConnectionError):
            if get(port, f"{prefix}/healthz")[0] == 200:
                return
        assert time.monotonic() < deadline, "the server did not become ready"
        time.sleep(0.02)


class Client:
    """One viewer. What the server says lies in ``messages`` and ``frames`` as it comes in."""

    def __init__(self, port, *, hello=True, path="/ws", acks=True, **options):
        headers = options.pop("headers", {})
        self.acks, self.messages, self.frames, self._next_id = acks, [], [], 0
        self._connection = connect(
            f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None, additional_headers=headers, close_timeout=2
        )
        self.socket = self._connection.__enter__()
        if hello:
            self.welcome = self.ask("hello", version=1, **options)["welcome"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._connection.__exit__(*error)

    def say(self, kind, **fields):
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self, timeout=PATIENCE):
        """The next message or frame: a dict, or (frame, number, stamp_ms)."""
        data = self.socket.recv(timeout)
        if isinstance(data, bytes):
            found = unpack_frame(data)
            self.frames.append(found)
            if self.acks:
                self.say("ack", frame=found[1])
            return found
        message = json.loads(data)
        self.messages.append(message)
        return message

    def until(self, condition, timeout=PATIENCE):
        """Receives until condition(message or frame), which it returns."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.receive(max(0.01, deadline - time.monotonic()))
            if condition(found):
                return found

    def ask(self, kind, **fields):
        """Sends with an id and receives until the answer: {type: message} of what came, the answer as "answer"."""
        self._next_id += 1
        self.say(kind, id=self._next_id, **fields)
        return self.answer(self._next_id)

    def upload(self, kind, data):
        self._next_id += 1
        for piece in upload_pieces(kind, self._next_id, data, self.welcome["limits"]["piece_bytes"]):
            self.socket.send(piece)
        return self.answer(self._next_id)

    def answer(self, message_id):
        seen = {}
        while True:
            found = self.receive()
            if isinstance(found, dict):
                seen[found["type"]] = found
                if found["type"] in ("ok", "error") and found.get("id") == message_id:
                    return {**seen, "answer": found}

    def status(self, *states, timeout=PATIENCE):
        """Receives until a status of one of these states."""
        return self.until(lambda m: isinstance(m, dict) and m["type"] == "status" and m["state"] in states, timeout)

    def frame(self, condition=lambda frame: True, timeout=PATIENCE):
        """Receives until such a frame."""
        return self.until(lambda m: isinstance(m, tuple) and condition(m[0]), timeout)[0]

    def create(self, seed=29, **fields):
        """A new picture: its session message; the first frame has come."""
        answer = self.ask("create", seed=seed, **fields)["answer"]
        assert answer["type"] == "ok", answer
        session = self.until(lambda m: isinstance(m, dict) and m["type"] == "session")
        self.frame()
        return session

    def closed(self, timeout=PATIENCE):
        """The code the server closes with."""
        try:
            while True:
                self.receive(timeout)
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd is not None else None
