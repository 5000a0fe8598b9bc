"""Any message at all, ten thousand times: each is answered once, what is refused changes nothing."""

import json
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live_talk import POINTS, Talk, make_hub


def number(rng):
    return rng.choice((rng.randint(-5, 40), rng.uniform(-5, 40), 1e300, 2**64))


def junk(rng):
    return rng.choice((None, True, number(rng), "é" * rng.randrange(5), [number(rng)], [], {}, {"x": [[]]}))


def good_points(rng):
    return [[rng.randint(0, 31), rng.randint(0, 31)] for _ in range(rng.randint(1, 3))]


def strokes(rng):
    def stroke():
        line = [[number(rng), number(rng)] for _ in range(rng.randint(1, 3))]
        return {"points": line, "radius": rng.uniform(0, 9), "movable": rng.random() < 0.7}

    return [stroke() for _ in range(rng.randint(1, 3))]


FIELDS = {
    "create": {
        "seed": lambda rng: rng.randint(-1, 9), "truncation_psi": random.Random.random,
        "label": lambda rng: rng.randint(0, 2),
    },
    "points": {"handles": good_points, "targets": good_points},
    "targets": {"targets": good_points, "stamp": lambda rng: rng.randint(0, 9)},
    "start": {"steps": lambda rng: rng.randint(1, 9), "live": lambda rng: rng.random() < 0.5},
    "pause": {},
    "step": {"count": lambda rng: rng.randint(0, 4)},
    "undo": {},
    "redo": {},
    "reset": {},
    "scrub": {"index": lambda rng: rng.randint(0, 6)},
    "mask": {"strokes": strokes, "base": lambda rng: rng.choice(("fixed", "movable", "present"))},
    "settings": {
        "lr": lambda rng: rng.uniform(-0.1, 1), "r1": number,
        "stop_distance": lambda rng: rng.choice((1, 2, "paper", "x")),
    },
    "view": {
        "fps": lambda rng: rng.uniform(0, 70), "quality": lambda rng: rng.randint(0, 100),
        "preview": lambda rng: rng.choice(("auto", "always")),
    },
    "ack": {"frame": lambda rng: rng.randint(0, 30)},
    "ping": {"stamp": lambda rng: rng.randint(0, 9)},
    "hello": {"version": lambda rng: rng.randint(0, 2)},
}  # fmt: skip


def message(seed):
    """Mostly sensible messages, some with fields left out, replaced or added; some no messages at all."""
    rng = random.Random(seed)
    kind = rng.choice([*FIELDS, "junk", "binary"])
    if kind == "junk":
        return "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x250)))) for _ in range(rng.randrange(30))
        )
    if kind == "binary":
        header = bytes((1, rng.randrange(4), 0, 0, 0, 0, 0, 0)) if rng.random() < 0.5 else b""
        return header + rng.randbytes(rng.randrange(40))
    found = {"type": kind}
    for name, make in FIELDS[kind].items():
        if rng.random() < 0.9:
            found[name] = make(rng)
    if rng.random() < 0.1:
        found[rng.choice([*found, "extra", "type"])] = junk(rng)
    return json.dumps(found)


# Drawn by its seed: hypothesis leaves out and exchanges whole messages when it looks for a smaller example, and drawing
# every field of ten thousand messages would take most of the test's time.
messages = st.integers(0, 2**32 - 1).map(message)
HUB = make_hub(sessions=2)


def numbered(data, number):
    """(the message with this id, the id), or (what is no object, None)."""
    if isinstance(data, str) and data.startswith("{") and data.endswith("}"):
        return f'{{"id": {number}{", " if len(data) > 2 else ""}{data[1:]}', number
    return data, None


def test_no_message_breaks_a_session():
    """Every message is answered once, the refused ones change nothing, and in the end the picture can be dragged."""
    counted = 0

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(messages, min_size=50, max_size=70))
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
    talk.conversation.end()
