"""Messages parsed and refused, frames packed and unpacked; without any server."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draggan_fast import protocol
from draggan_fast.live_upload import Incoming
from draggan_fast.protocol import Limits, ProtocolError

LIMITS = Limits()


def parse(**message):
    return protocol.parse(json.dumps(message), LIMITS)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "hello", "version": 1, "token": "s"}, protocol.Hello(version=1, token="s")),
        ({"type": "create", "seed": 4, "id": 0}, protocol.Create(id=0, seed=4)),
        ({"type": "create", "seed": 2**32 - 1, "truncation_psi": 1, "model": "m", "label": 3},
         protocol.Create(seed=2**32 - 1, truncation_psi=1, model="m", label=3)),
        ({"type": "points", "handles": [[1, 2.5]], "targets": [[3, 4]]},
         protocol.SetPoints(handles=((1.0, 2.5),), targets=((3.0, 4.0),))),
        ({"type": "points", "handles": [], "targets": []}, protocol.SetPoints(handles=(), targets=())),
        ({"type": "targets", "targets": [[3, 4]], "stamp": 7}, protocol.MoveTargets(targets=((3.0, 4.0),), stamp=7)),
        ({"type": "start", "live": True}, protocol.Start(live=True)),
        ({"type": "step"}, protocol.Step(count=1)),
        ({"type": "scrub", "index": 3}, protocol.Scrub(index=3)),
        ({"type": "mask", "clear": True}, protocol.Mask(clear=True)),
        ({"type": "mask", "strokes": [{"points": [[1, 2]], "radius": 3, "movable": True}], "base": "present"},
         protocol.Mask(strokes=(protocol.Stroke(((1.0, 2.0),), 3.0, True),), base="present")),
        ({"type": "settings", "lr": 0.1, "stop_distance": "paper"}, protocol.Settings(lr=0.1, stop_distance="paper")),
        ({"type": "view", "fps": 12.5, "format": "webp"}, protocol.View(fps=12.5, format="webp")),
        ({"type": "ack", "frame": 2}, protocol.Ack(frame=2)),
        ({"type": "ping", "stamp": 2**53}, protocol.Ping(stamp=2**53)),
    ],
)  # fmt: skip
def test_what_is_understood(message, expected):
    assert parse(**message) == expected


def test_settings_that_were_given():
    assert parse(type="settings", lr=0.1, max_steps=5).changes == {"lr": 0.1, "max_steps": 5}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "protocol"), ("{", "protocol"), ("[]", "protocol"), ("null", "protocol"), ("{}", "protocol"),
        ('{"type": null}', "protocol"), ('{"type": "dance"}', "protocol"), ('{"type": ["pause"]}', "protocol"),
        ('{"type": "pause", "id": -1}', "protocol"), ('{"type": "pause", "id": 4294967296}', "protocol"),
        ('{"type": "pause", "id": 1.0}', "protocol"), ('{"type": "pause", "id": true}', "protocol"),
        ('{"type": "pause", "id": null}', "protocol"), ('{"type": "pause", "now": 1}', "protocol"),
        ('{"type": "create"}', "protocol"), ('{"type": "create", "seed": "1"}', "protocol"),
        ('{"type": "create", "seed": 4294967296}', "protocol"), ('{"type": "create", "seed": 1e3}', "protocol"),
        ('{"type": "create", "seed": 1, "truncation_psi": NaN}', "protocol"),
        ('{"type": "create", "seed": 1, "truncation_psi": 1e999}', "protocol"),
        ('{"type": "hello", "version": 2}', "protocol"), ('{"type": "hello", "version": 1, "token": 5}', "protocol"),
        ('{"type": "points", "handles": [[1, 2]]}', "protocol"),
        ('{"type": "points", "handles": [[1, 2]], "targets": []}', "value"),
        ('{"type": "points", "handles": [[1]], "targets": [[1, 2]]}', "protocol"),
        ('{"type": "points", "handles": [[1, 2, 3]], "targets": [[1, 2]]}', "protocol"),
        ('{"type": "points", "handles": {"0": [1, 2]}, "targets": [[1, 2]]}', "protocol"),
        ('{"type": "points", "handles": [[1, "2"]], "targets": [[1, 2]]}', "protocol"),
        ('{"type": "points", "handles": [[1, 1e300]], "targets": [[1, 2]]}', "protocol"),
        ('{"type": "points", "handles": [[1, Infinity]], "targets": [[1, 2]]}', "protocol"),
        ('{"type": "targets", "targets": [[1, 2]], "stamp": -1}', "protocol"),
        ('{"type": "step", "count": 0}', "protocol"), ('{"type": "step", "count": 101}', "protocol"),
        ('{"type": "start", "steps": 0}', "protocol"), ('{"type": "start", "live": 1}', "protocol"),
        ('{"type": "mask"}', "protocol"), ('{"type": "mask", "clear": false}', "protocol"),
        ('{"type": "mask", "strokes": []}', "protocol"), ('{"type": "mask", "clear": true, "base": "x"}', "protocol"),
        ('{"type": "mask", "strokes": [{"points": [], "radius": 1, "movable": true}]}', "protocol"),
        ('{"type": "mask", "strokes": [{"points": [[1, 1]], "radius": 0, "movable": true}]}', "protocol"),
        ('{"type": "mask", "strokes": [{"points": [[1, 1]], "radius": 1}]}', "protocol"),
        ('{"type": "settings"}', "protocol"), ('{"type": "settings", "layers": 3}', "protocol"),
        ('{"type": "settings", "lr": null}', "protocol"), ('{"type": "settings", "lr": true}', "protocol"),
        ('{"type": "view", "fps": 0}', "protocol"), ('{"type": "view", "fps": 61}', "protocol"),
        ('{"type": "view", "format": "png"}', "protocol"), ('{"type": "view", "quality": 0}', "protocol"),
        ('{"type": "ack"}', "protocol"), ('{"type": "upload", "kind": 1, "data": "x"}', "protocol"),
        ('{"type": "pause", "id": ' + "9" * 5000 + "}", "protocol"), ("[" * 60000, "protocol"),
    ],
)  # fmt: skip
def test_what_is_refused(text, code):
    with pytest.raises(ProtocolError) as caught:
        protocol.parse(text, LIMITS)
    assert caught.value.code == code
    assert caught.value.message[-1] == "."
    assert len(caught.value.message) < 400


def test_limits():
    many = [[1, 2]] * 65
    for message in ({"type": "points", "handles": many, "targets": many}, {"type": "targets", "targets": many}):
        with pytest.raises(ProtocolError) as caught:
            parse(**message)
        assert caught.value.code == "limit"
    stroke = {"points": [[1, 2]] * 2501, "radius": 1, "movable": True}
    with pytest.raises(ProtocolError):
        parse(type="mask", strokes=[stroke, stroke])
    with pytest.raises(ProtocolError):
        parse(type="mask", strokes=[{**stroke, "points": [[1, 2]]}] * 201)


def test_a_refusal_repeats_the_id():
    for message in ({"type": "dance", "id": 7}, {"type": "step", "count": -1, "id": 7}, {"id": 7, "type": "mask"}):
        with pytest.raises(ProtocolError) as caught:
            parse(**message)
        assert caught.value.reply()["id"] == 7
    with pytest.raises(ProtocolError) as caught:
        parse(type="dance")
    assert "id" not in caught.value.reply()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=12,
    )
)
def test_anything_is_parsed_or_refused(value):
    try:
        message = protocol.parse(json.dumps(value), LIMITS)
    except ProtocolError as error:
        json.dumps(error.reply(), allow_nan=False)
    else:
        assert isinstance(message, protocol.Message)


@given(st.binary(max_size=40))
def test_any_upload_is_parsed_or_refused(data):
    try:
        upload = protocol.parse_upload(data)
    except ProtocolError as error:
        assert error.code == "protocol"
    else:
        assert protocol.pack_upload(upload.kind, upload.id, upload.data, upload.follow) == data


@given(st.binary(max_size=60), st.integers(1, 30))
def test_pieces_make_the_upload(data, piece_bytes):
    incoming = Incoming(LIMITS)
    *first, last = [protocol.parse_upload(p) for p in protocol.upload_pieces(2, 7, data, piece_bytes)]
    assert all(len(piece.data) == piece_bytes for piece in first)
    assert [incoming.add(piece) for piece in first] == [None] * len(first)
    assert incoming.add(last) == protocol.Upload(id=7, kind=2, data=data)
    assert incoming.begins(last)


def pieces(*rows, limits=LIMITS):
    """What comes of messages (id, kind, how many follow, data): data of a whole upload, None, or a code."""
    incoming, heard = Incoming(limits), []
    for message_id, kind, follow, data in rows:
        try:
            whole = incoming.add(protocol.Upload(id=message_id, kind=kind, follow=follow, data=data))
            heard.append(whole and whole.data)
        except ProtocolError as error:
            assert error.message_id == message_id
            heard.append(error.code)
    return heard


def test_pieces_that_do_not_fit_are_refused_once():
    assert pieces((1, 2, 1, b"a"), (1, 2, 0, b"b"), (1, 2, 0, b"c")) == [None, b"ab", b"c"]
    for other in ((2, 2, 0, b"b"), (1, 1, 0, b"b"), (1, 2, 1, b"b"), (1, 2, 3, b"b")):
        assert pieces((1, 2, 1, b"a"), other)[1] == "order"
    assert pieces((1, 2, 2, b"a"), (1, 2, 2, b"x"), (1, 2, 1, b"b"), (1, 2, 0, b"c"), (1, 2, 0, b"new")) == [
        None, "order", None, None, b"new",
    ]  # fmt: skip
    few = protocol.Limits(upload_bytes=4)
    assert pieces((1, 2, 2, b"abc"), (1, 2, 1, b"de"), (1, 2, 0, b"f"), (1, 2, 0, b"abcd"), limits=few) == [
        None, "limit", None, b"abcd",
    ]  # fmt: skip
    assert pieces((1, 2, 0, b"abcde"), (1, 2, 0, b"abcd"), limits=few) == ["limit", b"abcd"]


def test_an_upload_between_the_pieces_of_another_is_refused_and_the_other_goes_on():
    """Each has one answer, and of none the tail is taken for an upload."""
    first = [(1, 2, 2, b"a"), (1, 2, 1, b"b"), (1, 2, 0, b"c")]
    second = [(2, 2, 2, b"x"), (2, 2, 1, b"y"), (2, 2, 0, b"z")]
    third = [(3, 2, 1, b"u"), (3, 2, 0, b"v")]
    assert pieces(first[0], second[0], *first[1:], *second[1:], *third) == [
        None, "order", None, b"abc", None, None, None, b"uv",
    ]  # fmt: skip
    assert pieces(first[0], second[0], third[0], second[1], third[1], first[1], second[2], first[2], *second) == [
        None, "order", "order", None, None, None, None, b"abc", None, None, b"xyz",
    ]  # fmt: skip
    # The refusal of the upload itself, not of an intruder, ends it.
    assert pieces(first[0], second[0], (1, 2, 0, b"c"), *second[1:], *third) == [
        None, "order", "order", None, None, None, b"uv",
    ]  # fmt: skip


FRAME = protocol.Frame(
    "jpeg", protocol.FLAG_PREVIEW | protocol.FLAG_RUNNING, 17, 2**32 - 1, (64, 48), 1.5, 2.5, 0.25, 8.0, -3.5,
    ((1.0, 2.0, 3.5), (63.0, 0.0, 0.0)), b"picture", 12.0,
)  # fmt: skip


def test_the_frame_header_is_as_documented():
    data = FRAME.pack(number=258, stamp_ms=4.5)
    assert data[:6] == b"DF\x01\x02\x05\x00"
    assert data[6:8] == (2).to_bytes(2, "little")
    assert [int.from_bytes(data[at : at + 4], "little") for at in (8, 12, 16)] == [258, 17, 2**32 - 1]
    assert [int.from_bytes(data[at : at + 2], "little") for at in (20, 22)] == [64, 48]
    assert memoryview(data[24:48]).cast("f").tolist() == [1.5, 2.5, 0.25, 8.0, 4.5, -3.5]
    assert memoryview(data[48:72]).cast("f").tolist() == [1, 2, 3.5, 63, 0, 0]
    assert data[72:] == b"picture"


def test_frames_are_read_back():
    frame, number, stamp_ms = protocol.unpack_frame(FRAME.pack(2**32 + 1, 4.5))
    assert (number, stamp_ms) == (1, 4.5)
    assert frame == protocol.Frame(**{**vars(FRAME), "stamp_arrived": None})
    none = protocol.Frame(**{**vars(FRAME), "loss": None, "format": "webp"}).pack(1, 0)
    assert none[3] == 1
    assert math.isnan(memoryview(none[44:48]).cast("f")[0])
    assert protocol.unpack_frame(none)[0].loss is None


@pytest.mark.parametrize("data", [b"", b"DF", b"XX" + bytes(60), b"DF\x01\x02" + bytes(2) + b"\xff\xff" + bytes(60)])
def test_what_is_no_frame(data):
    with pytest.raises(ValueError, match="frame"):
        protocol.unpack_frame(data)
