"""A viewer of the live server for measurements: asyncio, over a real socket, with the time of every target."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from draggan_fast.protocol import Frame, unpack_frame

PATIENCE = 60.0


class Viewer:
    """``async with Viewer(port) as viewer``. Frames are acknowledged as they arrive, as by a page that paints at once.

    latencies: milliseconds from sending a target to the first frame that reflects it or a later one.
    """

    def __init__(self, port: int, resume: str | None = None) -> None:
        self.session: str | None = None
        self.resumed = False
        self.frames = 0
        self.last: Frame | None = None
        self.arrived: list[float] = []
        self.latencies: list[float] = []
        self.errors: list[str] = []
        self.stats: dict[str, Any] = {}
        self.closed: int | None = None
        self._connection = connect(f"ws://127.0.0.1:{port}/ws", max_size=None, compression=None)
        self._resume = resume
        self._sent: dict[int, float] = {}
        self._stamp = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 0
        self._frame_came = asyncio.Event()

    async def __aenter__(self) -> Viewer:
        self._socket: ClientConnection = await self._connection.__aenter__()
        self._reader = asyncio.create_task(self._read())
        hello: dict[str, Any] = {"version": 1} if self._resume is None else {"version": 1, "resume": self._resume}
        await self.ask("hello", **hello)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError, OSError):
            await self._connection.__aexit__(kind, error, trace)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def say(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def raw(self, data: str | bytes) -> None:
        await self._socket.send(data)

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The answer, ok or error."""
        self._next_id += 1
        answer = self._answers[self._next_id] = asyncio.get_running_loop().create_future()
        await self.say(kind, id=self._next_id, **fields)
        return await asyncio.wait_for(answer, PATIENCE)

    async def move(self, targets: list[list[float]]) -> None:
        """New targets with a stamp, whose way to a frame is timed."""
        self._stamp += 1
        self._sent[self._stamp] = time.perf_counter()
        await self.say("targets", targets=targets, stamp=self._stamp)

    async def next_frame(self) -> None:
        self._frame_came.clear()
        await asyncio.wait_for(self._frame_came.wait(), PATIENCE)

    async def settled(self, seconds: float) -> None:
        """Until the last target sent is seen in a frame, but no longer."""
        deadline = time.perf_counter() + seconds
        while self._sent and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)

    def forget(self) -> None:
        """Measurements begin anew."""
        self.arrived.clear()
        self.latencies.clear()
        self._sent.clear()

    async def _read(self) -> None:
        try:
            async for data in self._socket:
                now = time.perf_counter()
                if isinstance(data, bytes):
                    self.last, number, _ = unpack_frame(data)
                    self.frames += 1
                    self.arrived.append(now)
                    for stamp in [s for s in self._sent if s <= self.last.stamp]:
                        self.latencies.append((now - self._sent.pop(stamp)) * 1e3)
                    self._frame_came.set()
                    await self.say("ack", frame=number)
                    continue
                message = json.loads(data)
                if message["type"] == "session":
                    self.session = message["session"]
                elif message["type"] == "welcome":
                    self.resumed = message["resumed"]
                elif message["type"] == "stats":
                    self.stats = message
                elif message["type"] in ("ok", "error"):
                    if message["type"] == "error":
                        self.errors.append(message["code"])
                    waiting = self._answers.pop(message.get("id", -1), None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
        except ConnectionClosed:
            pass
        finally:
            self.closed = self._socket.close_code
            for waiting in self._answers.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(f"closed with {self.closed}"))
                    waiting.exception()  # it has been seen, whether or not anybody waits
