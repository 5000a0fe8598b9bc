"""Pictures edited in the server: every message's effect, frames, viewers, failures, the timeline."""

import gc
import io
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

import draggan_fast as dg
from draggan_fast import live_pictures, live_session, live_timeline, protocol
from draggan_fast.live_strokes import stroke_mask
from draggan_fast.live_timeline import Timeline
from tests.live_models import tiny_model
from tests.live_talk import POINTS, Talk, make_hub


@pytest.fixture
def talk():
    talk = Talk(make_hub())
    talk.must("create", seed=3)
    return talk


def test_welcome_says_what_there_is():
    welcome = Talk(make_hub(tiny_model(), tiny_model("other"), sessions=3)).welcome
    assert (welcome["version"], welcome["model"], welcome["models"]) == (1, "tiny", ["tiny", "other"])
    assert welcome["limits"]["sessions"] == 3
    assert welcome["settings"]["lr"] == 0.05
    assert welcome["published"]["lr"] == 1e-3
    assert welcome["resumed"] is False


def test_create_shows_a_picture():
    talk = Talk(make_hub())
    said = talk.must("create", seed=3, truncation_psi=0.5)
    assert said["session"] == {
        **said["session"], "seed": 3, "truncation_psi": 0.5, "model": "tiny", "width": 32, "height": 32,
        "mask": None, "handles": [], "label": None,
    }  # fmt: skip
    assert said["status"]["state"] == "idle"
    assert [f.size for f in talk.frames] == [(32, 32)]
    picture = np.asarray(Image.open(io.BytesIO(talk.frames[0].picture)))
    expected = dg.DragSession(tiny_model(), seed=3, truncation_psi=0.5).render()
    assert np.abs(picture.astype(int) - expected).mean() < 12


def test_a_refused_create_keeps_the_picture(talk):
    drag = talk.live.drag
    for fields in ({"seed": 1, "label": 2}, {"seed": 1, "model": "none"}, {"seed": 1, "truncation_psi": 1e9}):
        assert talk.refused("create", **fields) == "value"
    assert talk.live.drag is drag


def test_a_drag_from_points_to_done(talk):
    talk.must("points", **POINTS)
    assert talk.live.state == "paused"
    talk.must("start")
    heard = talk.run()
    states = [m["state"] for m in heard if m["type"] == "status"]
    assert talk.live.state in ("done", "limit")
    assert states[-1] == talk.live.state
    talk.settle()
    last = talk.frames[-1]
    assert last.size == (32, 32)
    assert last.step == talk.live.drag.steps
    assert not last.flags & (protocol.FLAG_RUNNING | protocol.FLAG_PREVIEW)


def test_steps_then_pause(talk):
    talk.must("points", **POINTS)
    talk.must("step", count=3)
    talk.run()
    assert (talk.live.state, talk.live.drag.steps) == ("paused", 3)
    talk.must("start", steps=2)
    talk.run()
    assert (talk.live.state, talk.live.drag.steps) == ("limit", 5)


def test_live_waits_at_its_target_and_follows_it(talk):
    talk.must("points", handles=[[10, 10]], targets=[[10, 10]])
    talk.must("start", live=True)
    talk.run()
    assert talk.live.state == "waiting"
    assert talk.live.drag.done
    talk.must("targets", targets=[[14, 10]], stamp=5)
    assert talk.live.state in ("running", "waiting")
    talk.run(5)
    talk.settle()
    assert talk.frames[-1].stamp == 5
    talk.must("pause")
    assert talk.live.state == "paused"
    talk.must("targets", targets=[[18, 10]], stamp=6)
    assert talk.live.state == "paused"


def test_live_goes_on_after_its_step_limit(talk):
    talk.must("settings", max_steps=2)
    talk.must("points", handles=[[4, 4]], targets=[[30, 30]])
    talk.must("start", live=True)
    talk.run()
    assert talk.live.state == "limit"
    talk.must("targets", targets=[[29, 30]])
    talk.run()
    assert talk.live.drag.steps == 4


def test_targets_reflect_the_stamp_only_after_a_step(talk):
    talk.must("points", **POINTS)
    talk.must("targets", targets=[[22, 12]], stamp=9)
    talk.must("view", quality=50)
    talk.hub.turns()
    talk.hear()
    assert talk.frames[-1].stamp == 0
    talk.must("step")
    talk.run()
    talk.settle()
    assert talk.frames[-1].stamp == 9


def test_of_targets_that_wait_only_the_last_are_worked_on_and_all_are_answered(talk, monkeypatch):
    talk.must("points", **POINTS)
    moved, move = [], dg.DragSession.move_targets
    monkeypatch.setattr(dg.DragSession, "move_targets", lambda drag, to: (moved.append(to), move(drag, to)))
    for index, (x, y) in enumerate([(11, 10), (12, 10), (99, 10), (14, 10)]):
        talk.say("targets", targets=[[x, y]], stamp=index, id=100 + index)
    talk.say("targets", targets=[[15, 10], [1, 1]], id=104)
    talk.say("pause", id=105)
    while talk.live.commands:
        talk.hub.turns()
    answers = {m["id"]: m.get("code", m["type"]) for m in talk.hear() if "id" in m}
    assert answers == {100: "ok", 101: "ok", 102: "value", 103: "ok", 104: "value", 105: "ok"}
    assert talk.live.drag.target_points.tolist() == [[14, 10]]


def test_out_of_order(talk):
    for kind in ("undo", "redo", "hello"):
        assert talk.refused(kind, **({"version": 1} if kind == "hello" else {})) == "order"
    assert talk.refused("start") == "value"
    assert talk.refused("ack", frame=99) == "order"
    assert talk.refused("scrub", index=1) == "value"
    assert talk.refused("targets", targets=[[1, 1]]) == "value"
    assert talk.refused("points", handles=[[40, 1]], targets=[[1, 1]]) == "value"


def test_before_there_is_a_picture():
    talk = Talk(make_hub())
    for kind in ("start", "pause", "undo", "reset", "close"):
        assert talk.refused(kind) == "order"
    talk.must("view", fps=10)
    assert talk.viewer.view.fps == 10
    assert talk.refused("create", seed=1, label=7) == "value" if talk.live else True
    talk.must("create", seed=1)


def test_undo_redo_reset(talk):
    talk.must("points", **POINTS)
    start = talk.live.drag.w_plus.clone()
    talk.must("step", count=4)
    talk.run()
    moved = talk.live.drag.w_plus.clone()
    assert talk.must("undo")["status"]["redo"] is True
    assert torch.equal(talk.live.drag.w_plus, start)
    talk.must("redo")
    assert torch.equal(talk.live.drag.w_plus, moved)
    status = talk.must("reset")["status"]
    assert (status["handles"], status["state"], status["position"]) == ([], "idle", 0)
    talk.must("undo")
    assert torch.equal(talk.live.drag.w_plus, moved)


def test_scrubbing_goes_back_forgets_and_is_undone_at_once(talk):
    talk.must("points", **POINTS)
    talk.must("step", count=6)
    talk.run()
    end = talk.live.drag.state
    assert len(talk.live.kept) == 7
    for index in (5, 2, 3):
        status = talk.must("scrub", index=index)["status"]
        assert (status["position"], status["step"], status["timeline"]) == (index, index, 7)
    talk.settle()
    assert talk.frames[-1].flags & protocol.FLAG_TIMELINE
    talk.must("undo")
    assert talk.live.drag.state is end
    assert talk.live._timeline.position == 6
    talk.must("scrub", index=3)
    talk.must("step")
    talk.run()
    assert len(talk.live.kept) == 5
    assert talk.live.drag.steps == 4


def test_settings_and_mask_come_back_with_undo(talk):
    talk.must("points", **POINTS)
    talk.must("step")
    talk.run()
    talk.must("settings", lr=0.2)
    talk.must("mask", strokes=[{"points": [[16, 16]], "radius": 9, "movable": True}])
    talk.must("step")
    talk.run()
    talk.must("undo")  # the drag with the mask
    said = talk.must("undo")
    assert said["session"]["settings"]["lr"] == 0.05
    assert said["session"]["mask"] is None
    assert talk.must("redo")["session"]["mask"] is not None


def test_a_mask_that_fixes_everything_is_refused(talk):
    stroke = [{"points": [[16, 16]], "radius": 60, "movable": False}]
    assert talk.refused("mask", strokes=stroke, base="movable") == "value"
    assert talk.refused("mask", strokes=stroke * 199, base="movable") in ("value", "limit")


@pytest.mark.parametrize("base", ["fixed", "movable", "present"])
def test_strokes_are_capsules(base):
    present = np.zeros((64, 64), bool)
    present[:8] = True
    line = ((10.0, 20.0), (50.0, 40.0))
    strokes = (protocol.Stroke(line, 7.0, True), protocol.Stroke(((50.0, 40.0),), 4.0, False))
    mask = stroke_mask(protocol.Mask(strokes=strokes, base=base), present, (64, 64))
    y, x = np.mgrid[:64, :64].astype(float)
    (ax, ay), (bx, by) = line
    along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
    distance = np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay))
    hole = np.hypot(x - 50, y - 40)
    ground = {"fixed": np.zeros((64, 64), bool), "movable": np.ones((64, 64), bool), "present": present}[base]
    expected = np.where(hole <= 4, False, ground | (distance <= 7))
    assert np.array_equal(mask, expected)


def test_uploads(talk):
    talk.must("points", **POINTS)
    talk.must("step", count=2)
    talk.run()
    saved = talk.live.drag.to_bytes()

    def upload(kind, data):
        talk.conversation.receive(protocol.pack_upload(kind, 77, data))
        talk.hub.turns()
        (answer,) = [m for m in talk.hear() if m.get("id") == 77]
        return answer.get("code", "ok")

    before = talk.live.drag.state
    png = io.BytesIO()
    Image.fromarray(np.tri(32, dtype=np.uint8) * 255).save(png, format="PNG")
    big = io.BytesIO()
    Image.new("L", (9000, 9000)).save(big, format="PNG")
    masks = (b"", b"GIF89a", png.getvalue()[:60], big.getvalue(), saved)
    sessions = (b"", saved[:90], png.getvalue())
    for kind, data in [*((1, data) for data in masks), *((2, data) for data in sessions)]:
        assert upload(kind, data) == "value"
    assert talk.live.drag.state is before
    assert upload(1, png.getvalue()) == "ok"
    assert np.array_equal(talk.live.drag.movable_mask, np.tri(32).astype(bool))
    assert upload(2, saved) == "ok"
    assert talk.live.drag.steps == 2
    assert talk.live.drag.movable_mask is None
    assert torch.equal(talk.live.drag.w_plus, before_w(before, talk.live.drag))


def before_w(state, drag):
    return drag._w_plus(state.parameter)[0]


def test_a_session_of_another_kind_is_refused(talk):
    config = tiny_model().drag_config(feature_block=1)
    other = dg.DragSession(tiny_model(), seed=0, config=config).to_bytes()
    reference = dg.DragSession(tiny_model(), seed=0, config=tiny_model().drag_config(engine="reference")).to_bytes()
    quiet = dg.DragSession(tiny_model(), seed=0, noise="none").to_bytes()
    foreign = dg.DragSession(tiny_model("foreign"), seed=0).to_bytes()
    for data, words in ((other, "block 1"), (reference, "reference"), (quiet, "none"), (foreign, "not served")):
        talk.conversation.receive(protocol.pack_upload(2, 5, data))
        talk.hub.turns()
        (answer,) = [m for m in talk.hear() if m["type"] == "error"]
        assert words in answer["message"]


# --- frames and viewers -----------------------------------------------------------------------------------------------


def test_previews_while_running_and_full_pictures_at_rest(talk):
    talk.must("view", preview="always")
    talk.must("points", handles=[[4, 4]], targets=[[30, 30]])
    talk.frames.clear()
    talk.must("start", steps=6)
    talk.must("view", fps=60)
    talk.run()
    assert {f.size for f in talk.frames} == {(16, 16)}
    talk.must("view", preview="never")
    talk.settle()
    assert talk.frames[-1].size == (32, 32)


def test_formats(talk):
    for name, magic in (("webp", b"RIFF"), ("jpeg", b"\xff\xd8")):
        talk.must("view", format=name, quality=80)
        time.sleep(0.05)
        talk.hub.turns()
        talk.hear()
        assert talk.frames[-1].format == name
        assert talk.frames[-1].picture.startswith(magic)
    talk.must("view", format="raw")
    time.sleep(0.05)
    talk.hub.turns()
    talk.hear()
    frame = talk.frames[-1]
    pixels = np.frombuffer(frame.picture, np.uint8).reshape(32, 32, 4)
    assert (pixels[..., 3] == 255).all()
    np.testing.assert_array_equal(pixels[..., :3], talk.live.drag.render())
    large = np.zeros((257, 256, 3), np.uint8)  # whatever is asked for
    assert [live_pictures.format_for(p, "raw") for p in (large, large[:-1])] == ["jpeg", "raw"]
    assert live_pictures.format_for(large, "webp") == "webp"


def test_a_viewer_that_does_not_acknowledge_gets_two_frames_and_then_the_newest(talk):
    talk.must("points", handles=[[4, 4]], targets=[[30, 30]])
    talk.must("view", fps=60, preview="never")
    talk.settle()
    sent = talk.viewer._sent
    talk.say("start", steps=40)
    while talk.live.commands or talk.live.state == "running":
        talk.hub.turns()
        talk.viewer.take()  # sent, and never acknowledged
        time.sleep(0.002)
    assert talk.viewer._sent == sent + 2
    assert talk.live.drag.steps == 40
    assert talk.live.screen.stats.dropped > 0
    assert not talk.viewer.wants_frame()
    talk.viewer.ack(talk.viewer._sent)
    talk.settle()
    assert talk.frames[-1].step == 40


def test_stats_come_once_a_second(talk, monkeypatch):
    monkeypatch.setattr(live_session, "STATUS_SECONDS", 0.05)
    talk.must("points", handles=[[4, 4]], targets=[[30, 30]])
    talk.must("start", live=True)
    heard = []
    for _ in range(60):
        talk.hub.turns()
        heard += talk.hear()
        time.sleep(0.003)
    stats = [m for m in heard if m["type"] == "stats"]
    assert stats
    assert stats[-1].keys() == {
        "type", "steps_per_second", "frames_per_second", "dropped", "stages", "memory_mb", "sessions",
    }  # fmt: skip
    assert stats[-1]["stages"].keys() == {"step", "render", "encode", "wait"}
    assert stats[-1]["sessions"] == 1
    assert stats[-1]["memory_mb"] > 50


def test_a_viewer_that_never_reads_is_sent_away(talk):
    for _ in range(2100):
        talk.say("ping")
    assert talk.viewer.closing[0] == 1008


def test_resuming_takes_the_picture_over(talk):
    talk.must("points", **POINTS)
    talk.must("start", live=True)
    first, session_id = talk.live, talk.live.id
    other = Talk(talk.hub, resume=session_id)
    assert other.welcome["resumed"] is True
    talk.hub.turns()
    said = {m["type"]: m for m in other.hear()}
    assert said["session"]["session"] == session_id
    assert "status" in said
    assert other.frames
    assert talk.viewer.closing[0] == 4001
    talk.say("reset")
    talk.hub.turns()
    assert first.drag.steps > 0  # the former viewer's messages count no more
    assert Talk(talk.hub, resume="nobody").welcome["resumed"] is False


def test_a_picture_without_a_viewer_pauses_and_ends(talk):
    hub, live = talk.hub, talk.live
    talk.must("points", **POINTS)
    talk.must("start", live=True)
    talk.conversation.end()
    hub.turns()
    assert (live.state, live.viewer) == ("paused", None)
    assert live.wakes_at() > time.monotonic() + 500
    assert hub.find(live.id) is live
    live._gone_since -= 601
    hub.turns()
    assert hub.find(live.id) is None
    assert live not in hub._worker._tasks
    assert Talk(hub, resume=live.id).welcome["resumed"] is False


def test_as_many_pictures_as_there_may_be():
    hub = make_hub(sessions=2)
    talks = [Talk(hub) for _ in range(3)]
    talks[0].must("create", seed=1)
    talks[1].must("create", seed=2)
    assert talks[2].refused("create", seed=3) == "limit"
    talks[0].must("create", seed=4)  # in place of its own
    talks[1].must("close")
    talks[2].must("create", seed=3)
    assert talks[1].refused("pause") == "order"


def test_a_viewer_without_a_picture_holds_no_place():
    hub = make_hub(sessions=1)
    talk = Talk(hub)
    assert talk.ask("create", seed=1, label=3)[0]["code"] == "value"
    assert talk.live.wakes_at() is None
    talk.conversation.end()
    hub.turns()
    other = Talk(hub)
    other.must("create", seed=1)


# --- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("what is this"), "internal"),
        (dg.DragError("Step 3 is not finite."), "value"),
    ],
)
def test_a_step_that_fails_leaves_the_session_alive(talk, monkeypatch, error, code):
    talk.must("points", **POINTS)
    before = talk.live.drag.state

    def fail(_):
        raise error

    monkeypatch.setattr(dg.DragSession, "step", fail)
    said = talk.must("start")
    monkeypatch.undo()
    assert talk.live.state == said["status"]["state"] == "failed"
    assert talk.live.drag.state is before
    assert said["error"]["code"] == code
    assert said["status"]["message"] == said["error"]["message"]
    assert f'draggan_errors_total{{code="{code}"}} 1.0' in talk.hub.metrics.text().decode()
    talk.must("start", steps=2)
    talk.run()
    assert talk.live.drag.steps == 2


def test_a_picture_that_fails_leaves_the_session_alive(talk, monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr(dg.DragSession, "render", fail)
    said = talk.must("reset")
    assert said.get("error", {"code": "memory"})["code"] == "memory"
    time.sleep(0.05)
    talk.hub.turns()
    monkeypatch.undo()
    assert talk.live.state == "failed"
    talk.must("points", **POINTS)
    talk.must("step")
    talk.run()
    assert talk.live.drag.steps == 1


def test_an_unforeseen_error_between_messages_stops_the_picture_and_no_more(talk, monkeypatch):
    def fail(*_):
        raise RuntimeError("oops")

    talk.must("points", **POINTS)
    before = talk.live.drag.state
    monkeypatch.setattr(dg.DragSession, "move_targets", fail)
    said = talk.must("targets", targets=[[12, 12]])
    monkeypatch.undo()
    assert said["error"]["code"] == "internal"
    assert said["status"]["state"] == "failed"
    assert talk.live.drag.state is before
    assert talk.live in talk.hub._worker._tasks
    talk.must("step")
    talk.run()
    assert talk.live.drag.steps == 1


def test_an_unforeseen_error_in_a_message_is_told_and_changes_nothing(talk, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("oops")

    monkeypatch.setattr(dg.DragSession, "set_points", fail)
    assert talk.refused("points", **POINTS) == "internal"
    monkeypatch.undo()
    talk.must("points", **POINTS)
    assert "session failed" in caplog.text


def test_a_picture_has_an_end_of_steps(talk, monkeypatch):
    monkeypatch.setattr(live_session, "MAX_RECORD_BYTES", 412 * 5 + 2 * 258)
    talk.must("points", handles=[[4, 4]], targets=[[30, 30]])
    talk.must("start")
    heard = talk.run()
    assert talk.live.state == "limit"
    steps = talk.live.drag.steps
    assert 3 <= steps <= 6
    assert f"{steps} steps" in [m for m in heard if m["type"] == "status"][-1]["message"]
    talk.must("start", live=True)
    assert (talk.live.state, talk.live.drag.steps) == ("limit", steps)
    talk.must("reset")
    assert talk.live.drag.steps == 0


def test_the_record_of_a_long_drag_is_as_large_as_is_counted():
    drag = dg.DragSession(tiny_model(), seed=3, config=tiny_model().drag_config(lr=1e-6))
    drag.set_points([(4, 4), (9, 9)], [(30, 30), (30, 20)])
    drag.step()
    gc.collect()
    tracemalloc.start()
    before, counted = tracemalloc.get_traced_memory()[0], live_session.record_bytes(drag.state)
    for index in range(150):
        drag.move_targets([(30, 20 + index % 9), (30, 20)])
        drag.step()
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * used < live_session.record_bytes(drag.state) - counted < 1.5 * used


def test_masks_do_not_pile_up(talk, monkeypatch):
    monkeypatch.setattr(live_session, "MAX_HELD_BYTES", 20 * 32 * 32 * 4)
    talk.must("points", **POINTS)
    for index in range(30):
        talk.must("mask", strokes=[{"points": [[16, index]], "radius": 9, "movable": True}])
        talk.must("step")
        talk.run()
    drag = talk.live.drag
    assert live_timeline.held_bytes([*talk.live.kept, *drag.history]) <= 21 * 32 * 32 * 4
    assert drag.history.can_undo or len(talk.live.kept) > 3
    assert drag.steps == 30


# --- the timeline -----------------------------------------------------------------------------------------------------


def test_a_long_timeline_is_thinned_evenly(monkeypatch):
    monkeypatch.setattr(live_timeline, "MAX_KEPT", 30)
    drag = dg.DragSession(tiny_model(), seed=3, config=tiny_model().drag_config(lr=1e-6))  # it never arrives
    drag.set_points([(4, 4)], [(30, 30)])
    timeline = Timeline(drag.state)
    for _ in range(99):
        drag.step()
        timeline.add(drag.state)
    steps = [len(state.trajectory) for state in timeline.states]
    assert len(steps) <= live_timeline.MAX_KEPT
    assert len(steps) > live_timeline.MAX_KEPT // 2
    assert steps[0] == 0
    assert steps[-1] == 99
    assert set(np.diff(steps[:-1])) == {4}
    assert timeline.position == len(steps) - 1


def test_a_kept_state_is_small():
    """Two states of a drag share what they can: a thousand steps must not be copied into every state."""
    drag = dg.DragSession(tiny_model(), seed=3)
    drag.set_mask(np.tri(32))
    drag.set_points([(4, 4)], [(30, 30)])
    states = [drag.state]
    for _ in range(20):
        drag.step()
        states.append(drag.state)
    assert live_timeline.held_bytes(states) < 20 * 3 * 4 * 8 * 4 * 1.7 + 32 * 32 * 4 + 4096
