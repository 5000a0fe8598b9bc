"""DragSession as a live front-end uses it: settings changed while dragging, snapshots, previews, sessions as bytes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import draggan_fast as dg
from draggan_fast import session_file
from draggan_fast.session_state import UNDO_DEPTH, Log, PackedMask
from tests.test_session import HANDLES, TARGETS, fingerprint, new_session


@pytest.fixture(scope="module")
def animals():
    return dg.load("toy-animals", device="cpu", precision="fp32")


def replayed(session, tmp_path):
    """What a replay of the saved session finds."""
    return session_file.replay_session(session.save(tmp_path / "session.safetensors"), session.model)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_hold_for_the_steps_from_now_on(small):
    changed, fresh = new_session(small), new_session(small)
    fresh.step()
    changed.configure(lr=1e-3)
    changed.step()
    assert changed.config.lr == 1e-3
    far = (fresh.w_plus - fresh.w0).abs().max()
    assert float((changed.w_plus - changed.w0).abs().max()) == pytest.approx(float(far) / 20, rel=1e-3)


def test_every_setting_can_be_changed(small):
    session = new_session(small)
    changes = {"lr": 0.01, "r1": 5, "r2": 9, "lambda_mask": 7, "reg": 1.5, "stop_distance": 3, "max_steps": 9}
    session.configure(**changes)
    assert {name: getattr(session.config, name) for name in changes} == changes
    assert session.config.feature_block == new_session(small).config.feature_block


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"layers": 3}, "cannot be changed"), ({"engine": "reference"}, "cannot be changed"), ({"lr": -1}, "lr must be"),
     ({"lr": 0.01, "r1": 0}, "r1 must be"), ({"speed": 1}, "speed cannot"), ({"stop_distance": "soon"}, "one of")],
)  # fmt: skip
def test_a_wrong_setting_changes_nothing(small, changes, message):
    session = new_session(small)
    session.step()
    before, config, events = fingerprint(session), session.config, list(session.state.events)
    with pytest.raises(dg.DragError, match=message):
        session.configure(**changes)
    assert (fingerprint(session), session.config, list(session.state.events)) == (before, config, events)


def test_undo_takes_settings_back_that_were_changed_in_the_drag(small):
    session = new_session(small)
    session.step()
    session.configure(lr=0.5, r2=20)
    session.step()
    assert session.undo()
    assert session.config == new_session(small).config
    assert session.redo()
    assert (session.config.lr, session.config.r2) == (0.5, 20)


def test_reset_keeps_the_settings_and_replays(small, tmp_path):
    session = new_session(small)
    session.step()
    session.configure(lr=1e-3, reg=2)
    session.reset()
    assert (session.config.lr, session.config.reg) == (1e-3, 2)
    session.set_points(HANDLES, TARGETS)
    session.step()
    assert replayed(session, tmp_path).reproduced
    assert dg.DragSession.load(tmp_path / "session.safetensors", small).config == session.config


def test_another_stop_distance_may_end_or_open_a_drag(small):
    session = dg.DragSession(small, seed=3)
    session.set_points([(20, 30)], [(24, 30)])
    session.configure(stop_distance=10)
    assert session.step().done
    session.configure(r1=4)
    assert session.done
    session.configure(stop_distance=1)
    assert not session.done
    assert not session.step().done


def test_a_mask_weight_of_zero_and_back(animals, tmp_path):
    """Without weight a mask asks for features around the handle only, with it for all: what is kept must follow."""
    session = dg.DragSession(animals, seed=29)
    session.set_mask(np.tri(128))
    session.set_points([(67, 78)], [(52, 74)])
    session.configure(lambda_mask=0)
    session.step()
    session.locate()
    session.configure(lambda_mask=20)
    session.step()
    session.step()
    assert replayed(session, tmp_path).reproduced


def test_settings_are_saved_loaded_and_replayed(small, tmp_path):
    session = new_session(small)
    session.configure(lr=5e-3)
    session.configure(r2=9, lr=6e-3)  # before any step: one event
    session.step()
    session.configure(stop_distance=2, lambda_mask=3)
    session.step()
    kinds = [event["kind"] for event in session.state.events]
    assert kinds == ["points", "settings", "steps", "settings", "steps"]
    found = replayed(session, tmp_path)
    assert found.reproduced
    assert found.session.config == session.config
    loaded = dg.DragSession.load(tmp_path / "session.safetensors", small)
    assert loaded.config == session.config
    session.step()
    loaded.step()
    assert fingerprint(loaded) == fingerprint(session)


# --- points taken away ------------------------------------------------------------------------------------------------


def test_points_can_be_taken_away(small, tmp_path):
    session = new_session(small)
    session.step()
    picture = session.render()
    session.remove_points()
    assert (len(session.handle_points), len(session.target_points), session.done) == (0, 0, False)
    assert np.array_equal(session.render(), picture)
    with pytest.raises(dg.DragError, match="No points"):
        session.step()
    loaded = dg.DragSession.load(session.save(tmp_path / "bare.safetensors"), small)
    for other in (session, loaded):
        other.set_points([(30, 30)], [(40, 30)])
        other.step()
    assert fingerprint(loaded) == fingerprint(session)
    assert replayed(session, tmp_path).reproduced
    assert session.undo()
    assert session.undo()
    assert session.handle_points.tolist() == [list(p) for p in HANDLES]


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_a_state_is_gone_back_to(small, tmp_path):
    session = new_session(small)
    session.step()
    kept, seen, picture = session.state, fingerprint(session), session.render()
    session.configure(lr=0.3)
    session.set_mask(np.tri(64))
    for _ in range(2):
        session.step()
    later = fingerprint(session)
    session.restore(kept)
    assert fingerprint(session) == seen
    assert np.array_equal(session.render(), picture)
    assert session.undo()
    assert fingerprint(session) == later
    assert session.redo()
    for _ in range(2):
        session.step()
    assert len(session.trajectory) == 3
    straight = new_session(small)
    for _ in range(3):
        straight.step()
    assert np.allclose(session.w_plus, straight.w_plus, atol=1e-5)
    assert replayed(session, tmp_path).reproduced


def test_going_over_many_states_is_undone_at_once(small):
    session = new_session(small)
    states = [session.state]
    for _ in range(3):
        session.step()
        states.append(session.state)
    end = fingerprint(session)
    session.restore(states[0])
    session.restore(states[1], undoable=False)
    session.restore(states[2], undoable=False)
    assert session.undo()
    assert fingerprint(session) == end


def test_a_state_of_another_session_is_refused(small):
    session, other = new_session(small), new_session(small)
    before = fingerprint(session)
    for method in (session.restore, session.picture_of):
        for wrong in (other.state, None, "state"):
            with pytest.raises(dg.DragError, match="own state"):
                method(wrong)
    assert fingerprint(session) == before


def test_undo_reaches_so_far_and_no_farther(small):
    session = new_session(small)
    for _ in range(UNDO_DEPTH + 5):
        session.reset()
    assert len(session.history) == UNDO_DEPTH
    assert session.history.forget_oldest()
    assert sum(1 for _ in iter(session.undo, False)) == UNDO_DEPTH - 1
    assert not session.history.can_undo
    assert session.history.can_redo
    assert not session.history.forget_oldest()


def test_released_features_are_made_again(small, tmp_path):
    session, plain = new_session(small), new_session(small)
    session.set_mask(np.tri(64))
    plain.set_mask(np.tri(64))
    for _ in range(3):
        session.render()
        session.release()
        session.step()
        plain.step()
    assert fingerprint(session) == fingerprint(plain)
    assert replayed(session, tmp_path).reproduced


# --- previews ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_preview_is_the_picture_before_the_finer_blocks(animals, engine):
    session = dg.DragSession(animals, seed=29, config=animals.drag_config(engine=engine))
    preview, picture = session.preview(), session.render()
    assert preview.shape == (64, 64, 3)
    assert preview.dtype == np.uint8
    assert picture.shape == (128, 128, 3)
    small = picture.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - preview).mean() < 12  # the finer blocks add detail to it, and little else
    assert np.array_equal(session.picture_of(session.state), picture)
    assert np.array_equal(session.picture_of(session.state, preview=True), preview)


def test_both_engines_give_the_same_preview(animals):
    previews = [
        dg.DragSession(animals, seed=29, config=animals.drag_config(engine=engine)).preview().astype(int)
        for engine in ("reference", "fast")
    ]
    assert np.abs(previews[0] - previews[1]).max() <= 1


def test_previews_between_steps_change_nothing(animals, tmp_path):
    quiet, shown = (dg.DragSession(animals, seed=29) for _ in range(2))
    for session in (quiet, shown):
        session.set_points([(67, 78)], [(52, 74)])
    for index in range(4):
        quiet.step()
        if index % 2:
            shown.preview()
        shown.step()
    assert quiet.handle_points.tolist() == shown.handle_points.tolist()
    assert np.allclose(quiet.w_plus, shown.w_plus, atol=1e-3)
    assert replayed(shown, tmp_path).reproduced


def test_a_network_without_early_colours_previews_the_picture(nvlabs):
    network = dataclasses.replace(nvlabs.config, architecture="orig", resolution=32, channels=(16, 16, 8, 8))
    torch.manual_seed(3)
    model = dataclasses.replace(nvlabs, generator=dg.Generator(network).eval().freeze())
    config = dg.DragConfig(feature_block=2, layers=4)
    label = 0 if network.c_dim else None
    for engine in ("reference", "fast"):
        session = dg.DragSession(model, seed=0, label=label, config=dataclasses.replace(config, engine=engine))
        assert np.array_equal(session.preview(), session.render())


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_are_the_file(small, tmp_path):
    session = new_session(small)
    session.set_mask(np.tri(64))
    session.step()
    data = session.to_bytes()
    assert load(data).keys() == load(session.save(tmp_path / "session.safetensors").read_bytes()).keys()
    assert fingerprint(dg.DragSession.from_bytes(data, small)) == fingerprint(session)


def test_bytes_never_open_a_file(small, nvlabs, tmp_path, monkeypatch):
    data = new_session(nvlabs).to_bytes()
    monkeypatch.setattr("draggan_fast.loading.load", lambda *_: pytest.fail("a file was opened"))
    with pytest.raises(dg.DragError, match="was made with the model"):
        dg.DragSession.from_bytes(data, small)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_damaged_bytes_are_refused(small, cut):
    with pytest.raises(dg.DragError, match="not a session file"):
        dg.DragSession.from_bytes(new_session(small).to_bytes()[:cut], small)


def altered(data, change):
    """A session file whose document went through ``change``."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["session"])
    tensors = load(data)
    change(document, tensors)
    return save(tensors, metadata={"session": json.dumps(document)})


def set_event(**event):
    def change(document, _):
        document["events"][1] = {**document["events"][1], **event}

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_event(changes={"layers": 1}),
        set_event(changes={"lr": -1}),
        set_event(changes=[1]),
        set_event(changes=None),
        set_event(kind="restore"),
        lambda document, _: document.update(version=True),
        lambda document, _: document.update(version=4),
        lambda document, _: document.pop("config"),
        lambda document, _: document.update(start=None),
        lambda document, tensors: tensors.update({"mask.2": torch.ones(64, 64, dtype=torch.uint8)}),
        lambda document, tensors: tensors.update({"mask.2": tensors["mask.2"].float()}),
        lambda document, tensors: tensors.pop("mask.2"),
        lambda document, tensors: document["events"].append(
            {"kind": "points", "handle_points": [], "target_points": 1}
        ),
    ],
)
def test_hostile_documents_are_refused(small, change):
    session = new_session(small)
    session.configure(lr=0.01)
    session.set_mask(np.tri(64))
    session.step()
    with pytest.raises(dg.DragError):
        dg.DragSession.from_bytes(altered(session.to_bytes(), change), small)


def test_sessions_of_version_2_are_read(small):
    """Their masks take a byte a pixel."""
    session = new_session(small)
    session.set_mask(np.tri(64))
    session.step()

    def older(document, tensors):
        document["version"] = 2
        tensors["mask.1"] = torch.from_numpy(np.tri(64).astype(np.uint8))

    loaded = dg.DragSession.from_bytes(altered(session.to_bytes(), older), small)
    assert fingerprint(loaded) == fingerprint(session)
    assert np.array_equal(list(loaded.state.events)[1]["movable_mask"].unpack(), np.tri(64).astype(bool))


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_log_is_what_was_added():
    empty = Log()
    short = empty.plus(1).plus(2)
    longer, other = short.plus(3), short.with_last(4)
    assert [list(log) for log in (empty, short, longer, other)] == [[], [1, 2], [1, 2, 3], [1, 4]]
    assert [len(log) for log in (empty, short, longer, other)] == [0, 2, 3, 2]
    assert (longer.last, other.last) == (3, 4)
    with pytest.raises(IndexError):
        _ = empty.last


def test_a_long_log_is_made_read_and_freed():
    log = Log.of(range(300_000))
    assert sum(log) == 299_999 * 150_000
    del log  # 300,000 links freed one in another must not exhaust the stack


@pytest.mark.parametrize("shape", [(3, 3), (64, 64), (5, 7)])
def test_packed_masks(shape):
    mask = np.random.RandomState(0).rand(*shape) > 0.5
    packed = PackedMask.of(mask)
    assert np.array_equal(packed.unpack(), mask)
    assert packed.bits.nbytes == -(-mask.size // 8)
