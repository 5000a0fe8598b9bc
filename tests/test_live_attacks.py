"""What a hostile reviewer tried on the live server, and what it answers."""

import pytest

import draggan_fast as dg
from draggan_fast import live_hub, live_models, protocol
from draggan_fast.live_socket import Allowance
from draggan_fast.live_strokes import segments, stroke_mask
from draggan_fast.live_viewer import Viewer
from draggan_fast.live_worker import Busy
from tests.live_models import tiny_model
from tests.live_talk import Loop, Talk, make_hub


def test_lines_are_drawn_only_where_they_can_be_seen():
    """A line to the horizon costs what is seen of it: points may lie anywhere."""
    stroke = protocol.Stroke(tuple((float(x), 20.0) for x in (-99999, 99999, -99999)), 2.0, True)
    for (x0, y0), (x1, y1) in segments(stroke, (64, 64)):
        assert sorted((x0, x1)) == pytest.approx([-3, 67], abs=1e-6)
        assert y0 == y1 == 20
    mask = stroke_mask(protocol.Mask(strokes=(stroke,), base="fixed"), None, (64, 64))
    assert mask[19:22].all()
    assert not mask[:17].any()
    assert not mask[24:].any()
    beside = protocol.Stroke(((-50.0, -9.0), (50.0, -9.0), (-9.0, 50.0)), 0.4, True)
    assert len(segments(beside, (64, 64))) == 1


def test_who_has_been_replaced_cannot_close_the_picture():
    hub = make_hub()
    first = Talk(hub)
    first.must("create", seed=1)
    session = first.live.id
    second = Talk(hub, resume=session)
    hub.turns()
    first.say("close", id=99)
    answers = [m for m in first.hear() if m.get("id") == 99]
    assert [m["code"] for m in answers] == ["order"]
    hub.turns()
    assert hub.find(session) is second.live
    second.must("close")
    assert hub.find(session) is None


def test_uploaded_sessions_keep_the_servers_limits(monkeypatch):
    hub = make_hub(points=2)
    talk = Talk(hub)
    talk.must("create", seed=1)
    drag = dg.DragSession(tiny_model(), seed=1)
    drag.set_points([(5, 5), (9, 9), (12, 5)], [(6, 6), (9, 8), (13, 5)])

    def opened():
        with pytest.raises(dg.DragError, match="this server takes"):
            hub.models.open(drag.to_bytes())

    opened()  # three points
    drag = dg.DragSession(tiny_model(), seed=1)
    drag.set_points([(5, 5)], [(20, 20)])
    drag.run(3)
    assert hub.models.open(drag.to_bytes()).w_plus.equal(drag.w_plus)
    monkeypatch.setattr(live_models, "MAX_RECORD", 3)
    opened()  # three steps and the setting of the points


def test_one_upload_waits_at_a_time():
    talk = Talk(make_hub())
    talk.must("create", seed=1)
    for number in (7, 8):
        talk.conversation.receive(protocol.pack_upload(2, number, b"nothing"))
    assert [(m["id"], m["code"]) for m in talk.hear()] == [(8, "rate")]


def test_pieces_of_a_refused_upload_are_not_passed_over_for_ever(monkeypatch):
    """What comes faster than it may costs, also where nothing is said about it any more."""
    talk = Talk(make_hub())
    monkeypatch.setattr(talk.conversation, "_allowance", Allowance(0, 0))  # nothing is left of it
    talk.conversation._wrong = Allowance(0, 50)
    piece = protocol.pack_upload(2, 7, bytes(100), follow=9)
    for _ in range(64):  # as many as an honest client has on its way
        talk.conversation.receive(piece)
    assert [(m["code"], m["id"]) for m in talk.hear()] == [("rate", 7)]
    assert talk.viewer.closing is None
    for _ in range(60):
        talk.conversation.receive(piece)
    assert talk.viewer.closing[0] == protocol.CLOSE_POLICY


@pytest.mark.parametrize(("error", "code"), [(Busy("The server is stopping."), "limit"), (KeyError("x"), "internal")])
def test_what_the_server_could_not_do_is_answered_with_its_id(monkeypatch, error, code):
    def fail(*_):
        raise error

    hub = make_hub()
    talk = Talk(hub)
    monkeypatch.setattr(hub, "new_session", fail)
    talk.say("create", id=31, seed=1)
    talk.conversation.receive(protocol.pack_upload(2, 32, b"x"))
    talk.say("create", seed=1)
    assert [(m["code"], m.get("id")) for m in talk.hear()] == [(code, 31), (code, 32), (code, None)]


def test_who_never_says_hello_takes_nobodys_place():
    hub = make_hub()
    silent = [Viewer(Loop()) for _ in range(live_hub.STRANGERS + 1)]
    for viewer in silent:
        hub.arrive(viewer)
    assert [viewer.closing is not None for viewer in silent] == [True] + [False] * live_hub.STRANGERS
    assert Talk(hub).must("create", seed=1)
