"""Any message at all, ten thousand times: each is answered once, what is refused changes nothing."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live_talk import POINTS, Talk, make_hub

numbers = st.one_of(st.integers(-5, 40), st.floats(-5, 40), st.just(1e300), st.just(2**64))
point = st.lists(numbers, min_size=2, max_size=2)
good_points = st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)).map(list), min_size=1, max_size=3)
junk = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5), st.lists(numbers, max_size=2))
stroke = st.fixed_dictionaries(
    {"points": st.lists(point, min_size=1, max_size=3), "radius": st.floats(0.5, 9), "movable": st.booleans()}
)
FIELDS = {
    "create": {"seed": st.integers(-1, 9), "truncation_psi": st.floats(0, 1), "label": st.integers(0, 2)},
    "points": {"handles": good_points, "targets": good_points},
    "targets": {"targets": good_points, "stamp": st.integers(0, 9)},
    "start": {"steps": st.integers(1, 9), "live": st.booleans()},
    "pause": {},
    "step": {"count": st.integers(0, 4)},
    "undo": {},
    "redo": {},
    "reset": {},
    "scrub": {"index": st.integers(0, 6)},
    "mask": {"strokes": st.lists(stroke, min_size=1, max_size=3), "base": st.sampled_from(["fixed", "present"])},
    "settings": {"lr": st.floats(-0.1, 1), "r1": numbers, "stop_distance": st.sampled_from([1, 2, "paper", "x"])},
    "view": {"fps": st.floats(0, 70), "quality": st.integers(1, 100), "preview": st.sampled_from(["auto", "always"])},
    "ack": {"frame": st.integers(0, 30)},
    "ping": {"stamp": st.integers(0, 9)},
    "hello": {"version": st.integers(0, 2)},
}  # fmt: skip


@st.composite
def messages(draw):
    """Mostly sensible messages, some with fields left out, replaced or added; some no messages at all."""
    kind = draw(st.sampled_from([*FIELDS, "junk", "binary"]))
    if kind == "junk":
        return draw(st.text(max_size=30))
    if kind == "binary":
        return draw(st.binary(max_size=40) | st.binary(max_size=30).map(lambda data: b"\x01\x02\0\0\0\0\0\0" + data))
    message = {"type": kind}
    for name, values in FIELDS[kind].items():
        if draw(st.integers(0, 9)):
            message[name] = draw(values)
    if not draw(st.integers(0, 9)):
        message[draw(st.sampled_from([*message, "extra", "type"]))] = draw(junk)
    return json.dumps(message)


HUB = make_hub(sessions=2)


def numbered(data, number):
    """(the message with this id, the id), or (what is no object, None)."""
    if isinstance(data, str) and data.startswith("{") and data.endswith("}"):
        return f'{{"id": {number}{", " if len(data) > 2 else ""}{data[1:]}', number
    return data, None


def test_no_message_breaks_a_session():
    """Every message is answered once, the refused ones change nothing, and in the end the picture can be dragged."""
    counted = 0

    @settings(max_examples=260, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(messages(), min_size=40, max_size=60))
    def converse(script):
        nonlocal counted
        counted += len(script)
        a_conversation(script)

    converse()
    assert counted >= 10_000


def a_conversation(script):
    talk = Talk(HUB)
    talk.must("create", seed=2)
    for index, given_data in enumerate(script):
        data, expected = numbered(given_data, index)
        live = talk.live
        before = None if live is None or live.drag is None else live.drag.state
        talk.conversation.receive(data)
        live = talk.live
        while live is not None and live.commands:
            live.obey()
            live.follow()
        heard = talk.hear()
        answers = [m for m in heard if m["type"] in ("ok", "error")]
        if expected is not None and b'"type": "ack"' not in str(data).encode():
            assert len(answers) == 1, (data, answers)
        for answer in answers:
            assert answer.get("code") != "internal", (data, answer)
            if answer["type"] == "error" and before is not None:
                assert talk.live.drag.state is before, data
        if index % 8 == 0:
            talk.hub.turns()
            talk.hear()
    talk.must("create", seed=1)
    talk.must("points", **POINTS)
    talk.must("step")
    talk.run()
    assert talk.live.drag.steps == 1
    talk.must("close")
