"""The live protocol, version 1 (docs/protocol.md): messages parsed and checked, frames packed. No I/O, no torch.

Each message from a client is a dataclass whose fields say what they take; what it does not name is refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from .errors import DragError

VERSION = 1
MAX_ID = 2**32 - 1
MAX_COORDINATE = 1e5  # far outside any picture, and nothing overflows
MAX_TOKEN = 512  # characters
MAX_POINTS = 2**16 - 1  # in a frame's header
MAX_STROKES, MAX_STROKE_POINTS = 200, 5000
UPLOAD_MASK, UPLOAD_SESSION = 1, 2
MAX_FOLLOW = 2**16 - 1
MAX_LABEL = 2**16  # far above any network's; which classes a model has is the session's to judge
UPLOAD_COST = 20  # an upload counts as so many messages, each further piece as one
FORMATS = {"webp": 1, "jpeg": 2, "raw": 3}
FLAG_PREVIEW, FLAG_DONE, FLAG_RUNNING, FLAG_TIMELINE = 1, 2, 4, 8
CLOSE_REPLACED, CLOSE_IDLE = 4001, 4002
CLOSE_POLICY, CLOSE_TOO_LARGE, CLOSE_GOING_AWAY, CLOSE_TRY_LATER = 1008, 1009, 1001, 1013

Point = tuple[float, float]


class ProtocolError(Exception):
    """A message that is refused: its code (see docs/protocol.md), a sentence for a person, and the id it came with."""

    def __init__(self, code: str, message: str, message_id: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.message_id = code, message, message_id

    def reply(self) -> dict[str, Any]:
        return error(self.code, self.message, self.message_id)


@dataclass(frozen=True)
class Limits:
    """What a client may send, and how much of it: a message of text, a piece of an upload, an upload in all."""

    message_bytes: int = 65536
    piece_bytes: int = 1 << 18
    upload_bytes: int = 1 << 24
    points: int = 64
    messages_per_second: int = 200
    sessions: int = 16

    @property
    def burst(self) -> int:
        """Messages that may come at once."""
        return 2 * self.messages_per_second

    @property
    def largest_message(self) -> int:
        """Bytes of a WebSocket message that are to be let through, with some to spare for a proper refusal. It is what
        anybody at all can have the server hold, by a message that does not end."""
        return max(self.message_bytes, self.piece_bytes) + 4096


def check_limits(limits: Limits) -> None:
    """Raises DragError for limits that no client could keep; an upload comes in numbered pieces, all at once."""
    for name, value in vars(limits).items():
        most = MAX_POINTS if name == "points" else MAX_ID
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise DragError(f"limits.{name} must be a whole number from 1 to {most}, not {value!r}.")
    pieces = -(-limits.upload_bytes // limits.piece_bytes)
    what = f"limits: an upload of {limits.upload_bytes} bytes in pieces of {limits.piece_bytes} has {pieces} pieces"
    if pieces > MAX_FOLLOW + 1:
        raise DragError(f"{what}, the protocol takes {MAX_FOLLOW + 1}; give larger pieces or smaller uploads.")
    if UPLOAD_COST + pieces - 1 > limits.burst:
        raise DragError(
            f"{what} and counts as {UPLOAD_COST + pieces - 1} messages, but {limits.burst} may come at once (twice "
            "messages_per_second); give larger pieces, smaller uploads or more messages a second."
        )


def check_token(token: str) -> None:
    """Raises DragError for a token that could not be sent as it is, in JSON and in HTTP's ``Authorization``."""
    if not 1 <= len(token) <= MAX_TOKEN or not all("!" <= character <= "~" for character in token):
        raise DragError(f"A token must be 1 to {MAX_TOKEN} printable ASCII characters without spaces.")


# --- what a field takes: a checker returns the value, or raises ValueError with the end of "FIELD must be …" ----------

Checker = Callable[[Any], Any]


def whole(least: int, most: int) -> Checker:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return check


def number(value: Any) -> float:
    """Also a whole one; its range is the session's to judge."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e12:
        raise ValueError("a number")
    return value


def text(most: int) -> Checker:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise ValueError(f"a string of at most {most} characters")
        return value

    return check


def one_of(*values: str) -> Checker:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return value

    return check


def truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def number_or_rule(value: Any) -> float | str:
    return text(20)(value) if isinstance(value, str) else number(value)


def points(value: Any) -> tuple[Point, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of [x, y]")
    for point in value:
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError("a list of [x, y]")
        for coordinate in point:
            if not abs(number(coordinate)) <= MAX_COORDINATE:
                raise ValueError("a list of [x, y] in pixels of the picture")
    return tuple((float(x), float(y)) for x, y in value)


@dataclass(frozen=True)
class Stroke:
    """A brush stroke: a line through points, drawn with a round brush of this radius in pixels."""

    points: tuple[Point, ...]
    radius: float
    movable: bool


def strokes(value: Any) -> tuple[Stroke, ...]:
    if not isinstance(value, list) or not value or len(value) > MAX_STROKES:
        raise ValueError(f"a list of 1 to {MAX_STROKES} strokes")
    parsed = []
    for stroke in value:
        if not isinstance(stroke, dict) or set(stroke) != {"points", "radius", "movable"}:
            raise ValueError("strokes with points, radius and movable")
        line, radius = points(stroke["points"]), number(stroke["radius"])
        if not line or not 0 < radius <= 4096:
            raise ValueError("strokes of one point or more, with a radius above 0 and up to 4096")
        parsed.append(Stroke(line, float(radius), truth(stroke["movable"])))
    if sum(len(stroke.points) for stroke in parsed) > MAX_STROKE_POINTS:
        raise ValueError(f"strokes of at most {MAX_STROKE_POINTS} points in all")
    return tuple(parsed)


def wire(check: Checker, default: Any = MISSING) -> Any:
    """A field that comes from the client; without a default it must be there."""
    return field(default=default, metadata={"check": check}, kw_only=True)


# --- messages from the client -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """id: the client's, to be repeated in the answer; None = only errors are answered."""

    type: ClassVar[str]
    id: int | None = wire(whole(0, MAX_ID), None)


@dataclass(frozen=True)
class Hello(Message):
    type = "hello"
    version: int = wire(whole(0, MAX_ID))
    token: str | None = wire(text(MAX_TOKEN), None)
    resume: str | None = wire(text(128), None)


@dataclass(frozen=True)
class Create(Message):
    type = "create"
    seed: int = wire(whole(0, 2**32 - 1))
    truncation_psi: float = wire(number, 0.7)
    model: str | None = wire(text(200), None)
    label: int | None = wire(whole(0, MAX_LABEL), None)


@dataclass(frozen=True)
class SetPoints(Message):
    type = "points"
    handles: tuple[Point, ...] = wire(points)
    targets: tuple[Point, ...] = wire(points)


@dataclass(frozen=True)
class MoveTargets(Message):
    type = "targets"
    targets: tuple[Point, ...] = wire(points)
    stamp: int = wire(whole(0, MAX_ID), 0)


@dataclass(frozen=True)
class Start(Message):
    type = "start"
    steps: int | None = wire(whole(1, 1_000_000), None)
    live: bool = wire(truth, False)


@dataclass(frozen=True)
class Pause(Message):
    type = "pause"


@dataclass(frozen=True)
class Step(Message):
    type = "step"
    count: int = wire(whole(1, 100), 1)


@dataclass(frozen=True)
class Undo(Message):
    type = "undo"


@dataclass(frozen=True)
class Redo(Message):
    type = "redo"


@dataclass(frozen=True)
class Reset(Message):
    type = "reset"


@dataclass(frozen=True)
class Scrub(Message):
    type = "scrub"
    index: int = wire(whole(0, MAX_ID))


@dataclass(frozen=True)
class Mask(Message):
    type = "mask"
    strokes: tuple[Stroke, ...] | None = wire(strokes, None)
    clear: bool = wire(truth, False)
    base: str = wire(one_of("fixed", "movable", "present"), "fixed")


@dataclass(frozen=True)
class Settings(Message):
    type = "settings"
    lr: float | None = wire(number, None)
    r1: float | None = wire(number, None)
    r2: float | None = wire(number, None)
    lambda_mask: float | None = wire(number, None)
    reg: float | None = wire(number, None)
    stop_distance: float | str | None = wire(number_or_rule, None)
    max_steps: int | None = wire(whole(1, 1_000_000), None)

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that were given."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "id"}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class View(Message):
    type = "view"
    fps: float | None = wire(number, None)
    format: str | None = wire(one_of(*FORMATS), None)
    quality: int | None = wire(whole(1, 100), None)
    preview: str | None = wire(one_of("auto", "never", "always"), None)


@dataclass(frozen=True)
class Ack(Message):
    type = "ack"
    frame: int = wire(whole(0, MAX_ID))


@dataclass(frozen=True)
class Ping(Message):
    type = "ping"
    stamp: int | None = wire(whole(0, 2**53), None)


@dataclass(frozen=True)
class Close(Message):
    type = "close"


@dataclass(frozen=True)
class Upload(Message):
    """A file, or a piece of one: kind UPLOAD_MASK or UPLOAD_SESSION, and how many pieces follow."""

    type = "upload"
    kind: int = wire(whole(UPLOAD_MASK, UPLOAD_SESSION))
    data: bytes = wire(bytes)
    follow: int = wire(whole(0, MAX_FOLLOW), 0)


MESSAGES: dict[str, type[Message]] = {
    kind.type: kind
    for kind in (
        Hello, Create, SetPoints, MoveTargets, Start, Pause, Step, Undo, Redo, Reset, Scrub, Mask, Settings, View, Ack,
        Ping, Close,
    )
}  # fmt: skip


def parse(data: str, limits: Limits) -> Message:
    """One JSON message. Raises ProtocolError, and with it its id where that can be read."""
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ProtocolError("protocol", "This is not JSON.") from None
    if not isinstance(value, dict):
        raise ProtocolError("protocol", "A message is a JSON object.")
    given = value.get("id")
    message_id = given if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= MAX_ID else None
    try:
        kind = MESSAGES.get(text(20)(value.pop("type", None)))
    except ValueError:
        kind = None
    if kind is None:
        raise ProtocolError("protocol", f"A message has a type: one of {', '.join(MESSAGES)}.", message_id)
    values: dict[str, Any] = {}
    for part in fields(kind):
        if part.name in value:
            try:
                values[part.name] = part.metadata["check"](value.pop(part.name))
            except ValueError as error:
                raise ProtocolError("protocol", f"{kind.type}: {part.name} must be {error}.", message_id) from None
        elif part.default is MISSING:
            raise ProtocolError("protocol", f"{kind.type}: {part.name} is missing.", message_id)
    if value:
        surplus = ", ".join(sorted(repr(name[:40]) for name in value)[:5])
        raise ProtocolError("protocol", f"{kind.type} has no {surplus}.", message_id)
    message = kind(**values)
    _check_together(message, limits)
    return message


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_together(message: Message, limits: Limits) -> None:
    """What no field can tell alone."""
    if isinstance(message, Hello) and message.version != VERSION:
        raise ProtocolError("protocol", f"This server speaks version {VERSION} of the protocol.", message.id)
    lists = [getattr(message, name) for name in ("handles", "targets") if hasattr(message, name)]
    if any(len(given) > limits.points for given in lists):
        raise ProtocolError("limit", f"At most {limits.points} points.", message.id)
    if isinstance(message, SetPoints) and len(message.handles) != len(message.targets):
        count = f"{len(message.handles)} handle(s) but {len(message.targets)} target(s)"
        raise ProtocolError("value", f"{count}: give one target per handle.", message.id)
    if isinstance(message, Mask) and (message.strokes is None) != message.clear:
        raise ProtocolError("protocol", "mask: give either strokes or clear: true.", message.id)
    if isinstance(message, View) and message.fps is not None and not 1 <= message.fps <= 60:
        raise ProtocolError("protocol", "view: fps must be a number from 1 to 60.", message.id)
    if isinstance(message, Settings) and not message.changes:
        raise ProtocolError("protocol", "settings: give at least one.", message.id)


UPLOAD_HEADER = struct.Struct("<BBHI")  # version, kind, pieces that follow, id


def parse_upload(data: bytes) -> Upload:
    """One binary message from a client. Raises ProtocolError."""
    if len(data) < UPLOAD_HEADER.size:
        raise ProtocolError("protocol", "A binary message begins with version, kind, pieces that follow, and an id.")
    version, kind, follow, message_id = UPLOAD_HEADER.unpack_from(data)
    if version != VERSION or kind not in (UPLOAD_MASK, UPLOAD_SESSION):
        raise ProtocolError("protocol", "An upload is version 1 and of kind 1 (mask) or 2 (session).", message_id)
    return Upload(id=message_id, kind=kind, follow=follow, data=data[UPLOAD_HEADER.size :])


def pack_upload(kind: int, message_id: int, data: bytes, follow: int = 0) -> bytes:
    """One binary message of a client. follow: how many more of the same upload there will be."""
    return UPLOAD_HEADER.pack(VERSION, kind, follow, message_id) + data


def upload_pieces(kind: int, message_id: int, data: bytes, piece_bytes: int) -> list[bytes]:
    """The messages that a client sends for an upload. piece_bytes: the server's limit, from its ``welcome``."""
    starts = range(0, max(len(data), 1), piece_bytes)
    left = len(starts)
    return [pack_upload(kind, message_id, data[at : at + piece_bytes], left - 1 - i) for i, at in enumerate(starts)]


# --- messages from the server -----------------------------------------------------------------------------------------


def ok(message_id: int | None) -> dict[str, Any]:
    return {"type": "ok", "id": message_id}


def error(code: str, message: str, message_id: int | None = None) -> dict[str, Any]:
    reply: dict[str, Any] = {"type": "error", "code": code, "message": message}
    if message_id is not None:
        reply["id"] = message_id
    return reply


FRAME_HEADER = struct.Struct("<2sBBBBHIIIHH6f")
FRAME_POINT = struct.Struct("<3f")
MAGIC = b"DF"


@dataclass(frozen=True)
class Frame:
    """A picture for a viewer, and what is known of it; times in milliseconds, points (x, y, distance to the target)."""

    format: str
    flags: int
    step: int
    stamp: int
    size: tuple[int, int]  # width, height of the encoded picture
    steps_ms: float
    render_ms: float
    encode_ms: float
    wait_ms: float
    loss: float | None
    points: tuple[tuple[float, float, float], ...]
    picture: bytes
    stamp_arrived: float | None = None  # by time.perf_counter; not sent

    def pack(self, number: int, stamp_ms: float) -> bytes:
        """number: of this frame for this viewer. stamp_ms: since the ``stamp`` message arrived, 0 if there was none."""
        header = FRAME_HEADER.pack(
            MAGIC,
            VERSION,
            FORMATS[self.format],
            self.flags,
            0,
            len(self.points),
            number & MAX_ID,
            self.step & MAX_ID,
            self.stamp,
            *self.size,
            self.steps_ms,
            self.render_ms,
            self.encode_ms,
            self.wait_ms,
            stamp_ms,
            math.nan if self.loss is None else self.loss,
        )
        return b"".join((header, *(FRAME_POINT.pack(*point) for point in self.points), self.picture))


def unpack_frame(data: bytes) -> tuple[Frame, int, float]:
    """(frame, its number, stamp_ms): what ``pack`` made. Raises ValueError if it is none."""
    if len(data) < FRAME_HEADER.size:
        raise ValueError("shorter than a frame's header")
    magic, version, code, flags, _, count, number, step, stamp, width, height, *times = FRAME_HEADER.unpack_from(data)
    start = FRAME_HEADER.size + count * FRAME_POINT.size
    if magic != MAGIC or version != VERSION or code not in FORMATS.values() or len(data) < start:
        raise ValueError("not a frame of version 1")
    found = tuple(FRAME_POINT.iter_unpack(data[FRAME_HEADER.size : start]))
    name = next(name for name, value in FORMATS.items() if value == code)
    steps_ms, render_ms, encode_ms, wait_ms, stamp_ms, loss = times
    frame = Frame(
        name, flags, step, stamp, (width, height), steps_ms, render_ms, encode_ms, wait_ms,
        None if math.isnan(loss) else loss, found, data[start:],
    )  # fmt: skip
    return frame, number, stamp_ms
