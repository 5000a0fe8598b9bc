"""One WebSocket: a viewer's messages to the worker, the worker's messages and frames to the viewer."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from . import protocol
from .config import DragConfig
from .live_hub import LiveHub
from .live_models import settings
from .live_session import MAX_COMMANDS, LiveSession, Said
from .live_upload import Incoming
from .live_viewer import Viewer
from .live_worker import Busy
from .protocol import Limits, Message, ProtocolError
from .version import __version__

logger = logging.getLogger("draggan_fast.live")
HELLO_SECONDS = 10.0
WRONG_MESSAGES, WRONG_SECONDS = 50, 10.0  # so many within so long are too many
PASSED_OVER = 0.5  # of a refused message: a piece of a refused upload that comes too fast
TOO_LARGE = "The message is too large."


class Allowance:
    """A token bucket: so many a second, twice as many at once."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._left, self._at = burst, time.monotonic()

    def take(self, count: float = 1) -> bool:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < count:
            return False
        self._left -= count
        return True


class Conversation:
    """What a viewer says and in which order: from the first message to the end. It never waits for the worker."""

    def __init__(self, hub: LiveHub, viewer: Viewer, token: str | None) -> None:
        self.hub, self.viewer = hub, viewer
        self.live: LiveSession | None = None
        self.greeted = False
        self.heard_at = time.monotonic()  # the last message that was about the picture
        self._incoming = Incoming(hub.limits)
        self._upload: Said | None = None  # the last one
        self._token = token
        limits = hub.limits
        self._allowance = Allowance(limits.messages_per_second, limits.burst)
        self._wrong = Allowance(WRONG_MESSAGES / WRONG_SECONDS, WRONG_MESSAGES)

    def receive(self, data: str | bytes) -> None:
        """Takes one message; whatever is to be said about it, the viewer is told."""
        arrived = time.perf_counter()
        hub, viewer = self.hub, self.viewer
        hub.metrics.messages.inc()
        message: Message | None = None
        try:
            if too_large(data, hub.limits):
                viewer.close(protocol.CLOSE_TOO_LARGE, TOO_LARGE)
                raise ProtocolError("limit", TOO_LARGE)
            message = self._whole(data) if isinstance(data, bytes) else self._parsed(data)
            if message is not None:
                self._take(message, arrived)
        except ProtocolError as error:
            hub.metrics.error(error.code)
            viewer.tell(error.reply())
            self._blame(1)
        except Busy as error:  # the server is stopping
            viewer.tell(protocol.error("limit", str(error), None if message is None else message.id))
        except Exception as error:
            logger.exception("a message failed")
            hub.metrics.error("internal")
            sentence = f"Something went wrong in the server ({type(error).__name__})."
            viewer.tell(protocol.error("internal", sentence, None if message is None else message.id))

    def _blame(self, count: float) -> None:
        """The viewer was wrong, or too fast: who is too often is sent away."""
        if not self._wrong.take(count):
            self.viewer.close(protocol.CLOSE_POLICY, "Too many messages that were refused.")

    def _parsed(self, data: str) -> Message:
        self._pay(1, None)
        return protocol.parse(data, self.hub.limits)

    def _whole(self, data: bytes) -> Message | None:
        """The upload whose last piece this is; None for the pieces before it."""
        piece, incoming = protocol.parse_upload(data), self._incoming
        if not self.greeted:
            raise ProtocolError("order", "The first message is hello.", piece.id)
        try:
            self._pay(protocol.UPLOAD_COST if incoming.begins(piece) else 1, piece.id)
        except ProtocolError:
            if incoming.skip(piece):  # of which it has been told already
                self._blame(PASSED_OVER)
                return None
            incoming.refuse(piece)
            raise
        return incoming.add(piece)

    def _pay(self, cost: int, message_id: int | None) -> None:
        if not self._allowance.take(cost):
            most = self.hub.limits.messages_per_second
            sentence = f"More than {most} messages a second (an upload counts as {protocol.UPLOAD_COST})."
            raise ProtocolError("rate", sentence, message_id)

    def _take(self, message: Message, arrived: float) -> None:
        viewer = self.viewer
        if not isinstance(message, (protocol.Ack, protocol.Ping)):  # these a page sends by itself
            self.heard_at = time.monotonic()
        if not self.greeted:
            self._greet(message)
        elif isinstance(message, protocol.Hello):
            raise ProtocolError("order", "hello has been said.", message.id)
        elif isinstance(message, protocol.Ack):
            if not viewer.ack(message.frame):
                raise ProtocolError("order", f"Frame {message.frame} was never sent.", message.id)
            self.hub.wake()  # a frame may be owed
        elif isinstance(message, protocol.Ping):
            viewer.tell({"type": "pong", **({} if message.stamp is None else {"stamp": message.stamp})})
            if message.id is not None:
                viewer.tell(protocol.ok(message.id))
        else:
            self._pass_on(message, arrived)

    def _greet(self, message: Message) -> None:
        if not isinstance(message, protocol.Hello):
            raise ProtocolError("order", "The first message is hello.", message.id)
        if self._token is not None and not same_token(message.token, self._token):
            self.viewer.close(protocol.CLOSE_POLICY, "The token is missing or wrong.")
            raise ProtocolError("unauthorised", "The token is missing or wrong.", message.id)
        try:
            self.hub.greet(self.viewer)
        except ProtocolError as error:
            self.viewer.close(protocol.CLOSE_TRY_LATER, error.message)
            error.message_id = message.id
            raise
        self.greeted = True
        self.hub.start()
        # The welcome goes first: what resuming brings about comes from the worker, at any time.
        found = None if message.resume is None else self.hub.find(message.resume)
        self.viewer.tell(welcome(self.hub, found is not None))
        if message.id is not None:
            self.viewer.tell(protocol.ok(message.id))
        if found is not None:
            self.live = self.hub.resume(found.id, self.viewer)

    def _pass_on(self, message: Message, arrived: float) -> None:
        """To the worker, in the viewer's session, which begins with its first picture."""
        begins = isinstance(message, protocol.Create) or (
            isinstance(message, protocol.Upload) and message.kind == protocol.UPLOAD_SESSION
        )
        if self.live is None and begins:
            try:
                self.live = self.hub.new_session(self.viewer)
            except ProtocolError as error:
                error.message_id = message.id
                raise
        live = self.live
        if live is None and isinstance(message, protocol.View):  # a viewer may say so before its first picture
            self.viewer.look(message)
            if message.id is not None:
                self.viewer.tell(protocol.ok(message.id))
            return
        if live is None:
            raise ProtocolError("order", "There is no picture yet: send create, or upload a session.", message.id)
        if len(live.commands) >= MAX_COMMANDS:
            raise ProtocolError("rate", "More messages than can be worked on.", message.id)
        if isinstance(message, protocol.Upload):
            if self._upload is not None and self._upload in live.commands:
                raise ProtocolError("rate", "The upload before this one is still waiting; one at a time.", message.id)
            self._upload = Said(self.viewer, message, arrived)
            self.hub.post(live, self._upload)
            return
        if isinstance(message, protocol.Close) and live.owner is not self.viewer:
            raise ProtocolError("order", "Another viewer has taken this picture over.", message.id)
        self.hub.post(live, Said(self.viewer, message, arrived))
        if isinstance(message, protocol.Close):
            self.hub.forget(live)
            self.live = None

    def end(self) -> None:
        self.hub.leave(self.viewer, self.live)


def too_large(data: str | bytes, limits: Limits) -> bool:
    if isinstance(data, bytes):
        return len(data) > limits.piece_bytes + protocol.UPLOAD_HEADER.size
    return len(data) > limits.message_bytes or len(data.encode("utf-8", "surrogatepass")) > limits.message_bytes


def same_token(given: str | None, token: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest((given or "").encode("utf-8", "surrogatepass"), token.encode())


def welcome(hub: LiveHub, resumed: bool) -> dict[str, Any]:
    model = hub.models.get(None)
    return {
        "type": "welcome",
        "version": protocol.VERSION,
        "program": f"draggan_fast {__version__}",
        "model": model.name,
        "models": hub.models.names,
        "limits": vars(hub.limits),
        "settings": settings(model.drag_config()),
        "published": settings(DragConfig.published()),
        "resumed": resumed,
    }


async def serve_viewer(socket: WebSocket, hub: LiveHub, token: str | None, silent_seconds: float) -> None:
    """The whole life of an accepted socket. silent_seconds: how long its viewer may ask for nothing."""
    await socket.accept()
    viewer = Viewer(asyncio.get_running_loop())
    conversation = Conversation(hub, viewer, token)
    hub.arrive(viewer)
    sender = asyncio.create_task(_send(socket, viewer, hub))
    receiver = asyncio.create_task(_receive(socket, conversation, silent_seconds))
    try:
        await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
    finally:
        conversation.end()
        for task in (sender, receiver):
            task.cancel()
        results = await asyncio.gather(sender, receiver, return_exceptions=True)
        if viewer.closing is not None and socket.application_state == WebSocketState.CONNECTED:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.close(*viewer.closing)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, (WebSocketDisconnect, RuntimeError, OSError)):
            raise result


async def _receive(socket: WebSocket, conversation: Conversation, silent_seconds: float) -> None:
    """Until the client goes away, or has said nothing for too long. The first message must come soon."""
    hello_by = time.monotonic() + HELLO_SECONDS
    while True:
        until = conversation.heard_at + silent_seconds if conversation.greeted else hello_by
        try:
            # subtle: wait_for would at times swallow the cancelling of this task (until Python 3.12)
            async with asyncio.timeout(until - time.monotonic()):
                event = await socket.receive()
        except TimeoutError:
            if conversation.greeted:
                conversation.viewer.close(protocol.CLOSE_IDLE, "Nothing was asked for for a long time.")
            else:
                conversation.viewer.close(protocol.CLOSE_POLICY, "hello did not come.")
            return
        if event["type"] == "websocket.disconnect":
            return
        data = event.get("text")
        conversation.receive(event["bytes"] if data is None else data)


async def _send(socket: WebSocket, viewer: Viewer, hub: LiveHub) -> None:
    """Whatever there is, until the viewer is to be sent away."""
    while True:
        await viewer.ready.wait()
        messages, frame = viewer.take()
        for message in messages:
            await socket.send_text(json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
        if frame is not None:
            await socket.send_bytes(frame)
            hub.metrics.frames.inc()
            hub.metrics.bytes.inc(len(frame))
        if viewer.closing is not None:
            return
