"""DragSession: points, masks, undo, saving, replaying; bad input changes nothing."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import draggan_fast as dg
from draggan_fast import session_file
from draggan_fast.views import beyond

HANDLES, TARGETS = [(20, 30), (40, 41)], [(30, 30), (40, 50)]


def new_session(model, **changes):
    session = dg.DragSession(model, seed=3, config=model.drag_config(lr=2e-2, **changes))
    session.set_points(HANDLES, TARGETS)
    return session


def fingerprint(session):
    """Everything a user can see of a session."""
    return (
        session.w_plus.numpy().tobytes(),
        session.handle_points.tolist(),
        session.target_points.tolist(),
        None if session.movable_mask is None else session.movable_mask.tobytes(),
        session.done,
        len(session.trajectory),
    )


def test_ten_lines_of_python(small):
    session = dg.DragSession(small, seed=3)
    session.set_points([(20, 30)], [(26, 30)])
    seen = []
    result = session.run(max_steps=4, callback=lambda r: seen.append(r.index))
    assert seen == list(range(result.index + 1))
    picture = session.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (64, 64, 3)


def test_render_is_the_synthesis_of_the_current_latent(small):
    session = new_session(small)
    for _ in range(2):
        session.step()
        image = small.generator.synthesis(session.w_plus[None])[0]
        expected = (image * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(session.render(), expected)


def test_rendering_between_steps_changes_nothing(small):
    quiet, shown = new_session(small), new_session(small)
    for _ in range(3):
        quiet.step()
        shown.render()
        shown.step()
    assert fingerprint(quiet) == fingerprint(shown)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_gradient_mode_does_not_matter(golden, small, mode):
    plain = new_session(small)
    plain.set_mask(np.tri(64))
    plain.step()
    with mode():
        guarded = new_session(dg.load(golden / "rosinality" / "rosinality.pt", device="cpu", precision="fp32"))
        guarded.set_mask(np.tri(64))
        guarded.render()
        guarded.step()
    assert fingerprint(plain) == fingerprint(guarded)


def test_points_and_masks_may_be_tensors(small):
    session = new_session(small)
    session.set_points(torch.tensor(HANDLES), torch.tensor(TARGETS, dtype=torch.bfloat16))
    session.set_mask(np.tri(64)[::-1])
    session.set_mask(torch.tril(torch.ones(64, 64, dtype=torch.bool)))
    assert session.handle_points.tolist() == [list(p) for p in HANDLES]
    assert session.movable_mask.sum() == 64 * 65 // 2


def test_step_changes_only_the_first_rows(small):
    session = new_session(small, layers=4)
    session.step()
    moved = (session.w_plus - session.w0).abs().amax(dim=1) > 0
    assert moved.tolist() == [True] * 4 + [False] * 6


def test_space_w_keeps_its_rows_equal(small):
    session = new_session(small, space="w")
    session.step()
    rows = session.w_plus[:6]
    assert torch.equal(rows, rows[:1].expand_as(rows))
    assert not torch.equal(rows[0], session.w_plus[6])


def test_space_w_moves_rows_that_differ_alike(small):
    """A drag goes on from what an earlier one, a truncation cutoff or style mixing has left."""
    w = torch.arange(10.0)[:, None] * 0.01 + torch.ones(10, 512)
    session = dg.DragSession(small, w=w, config=small.drag_config(lr=2e-2, space="w"))
    session.set_points(HANDLES, TARGETS)
    session.step()
    change = session.w_plus - session.w0
    assert change[0].abs().amax() > 0
    assert torch.allclose(change[:6], change[:1].expand(6, -1), atol=1e-6)
    assert not change[6:].any()


def test_points_snap_to_pixels(small):
    session = dg.DragSession(small, seed=0)
    session.set_points([(10.4, -0.2), (63.49, 5.5)], [(1, 1), (2, 2)])
    assert session.handle_points.tolist() == [[10, 0], [63, 6]]


def test_mask_holds_the_fixed_region(small):
    """With the mask the fixed part changes by less than a third of what it does without."""
    movable = np.zeros((64, 64))
    movable[:, :40] = 1
    changes = []
    for mask in (None, movable):
        session = dg.DragSession(small, seed=3, config=small.drag_config(lr=3e-3))
        before = session.render().astype(float)
        session.set_mask(mask)
        session.set_points([(20, 30)], [(32, 30)])
        for _ in range(12):
            session.step()
        changes.append(np.abs(session.render() - before)[:, 44:].mean())
    assert changes[1] < changes[0] / 3


def test_an_all_movable_mask_is_no_mask(small):
    plain, masked = new_session(small), new_session(small)
    masked.set_mask(np.ones((64, 64)))
    plain.step()
    masked.step()
    assert torch.equal(plain.w_plus, masked.w_plus)


def test_below_one_pixel_a_handle_goes_on_to_its_target():
    """It stands one pixel off: done by the published rule, moved on by the stricter one."""
    toy = dg.load("toy-animals", device="cpu")
    loose, strict = (dg.DragSession(toy, seed=3, config=toy.drag_config(stop_distance=s)) for s in (1, 0.5))
    for session in (loose, strict):
        session.set_points([(64, 74)], [(65, 74)])
    assert loose.run(max_steps=60).index == 0
    assert np.array_equal(loose.w_plus, loose.w0)
    result = strict.run(max_steps=60)
    assert result.done
    assert result.index > 0
    assert strict.handle_points.tolist() == [[65, 74]]


def test_beyond_is_one_pixel_farther():
    handles = torch.tensor([[[0.0, 0.0], [5.0, 5.0], [1.0, 1.0]]])
    targets = torch.tensor([[[3.0, 4.0], [5.0, 5.0], [1.0, 0.0]]])
    expected = torch.tensor([[[3.6, 4.8], [5.0, 5.0], [1.0, -1.0]]])
    assert torch.allclose(beyond(handles, targets), expected)


def test_done_when_within_the_stop_distance(small):
    session = dg.DragSession(small, seed=3)
    session.set_points([(20, 30)], [(21, 31)])
    before = session.w_plus.clone()
    result = session.step()
    assert result.done
    assert result.loss is None
    assert torch.equal(session.w_plus, before)
    assert session.step() is result


def test_references_are_kept_for_old_points_and_taken_for_new_ones(small):
    session = new_session(small)
    for _ in range(3):
        session.step()
    old = session._state.references.clone()
    now = session.handle_points.tolist()
    session.set_points([[5, 5], now[1]], [[9, 9], [40, 52]])
    session.step()
    new = session._state.references
    assert torch.equal(new[:, 1], old[:, 1])
    assert not new.isnan().any()
    assert not torch.equal(new[:, 0], old[:, 0])


def test_targets_move_while_running(small):
    session = new_session(small)
    session.step()
    session.move_targets([(25, 35), (44, 44)])
    session.step()
    assert session.target_points.tolist() == [[25, 35], [44, 44]]
    assert session.undo()
    assert session.target_points.tolist() == [list(t) for t in map(list, TARGETS)]
    assert not session.undo()


def test_undo_and_redo_whole_drags(small):
    session = new_session(small)
    start = fingerprint(session)
    for _ in range(3):
        session.step()
    first = fingerprint(session)
    session.set_points(session.handle_points, np.array([(22, 22), (50, 50)]))
    second_start = fingerprint(session)
    for _ in range(2):
        session.step()
    second = fingerprint(session)

    assert session.undo()
    assert fingerprint(session) == second_start
    assert session.undo()
    assert fingerprint(session) == start
    assert not session.undo()
    assert session.redo()
    assert session.redo()
    assert fingerprint(session) == second
    assert not session.redo()
    assert first[0] != second[0]

    session.undo()
    session.undo()
    for _ in range(3):
        session.step()
    assert fingerprint(session)[0] == first[0]  # the same drag again gives the same latent
    assert not session.redo()  # a new drag ends what could be redone


@pytest.mark.parametrize(
    "change", [lambda s: s.set_points([(5, 5)], [(9, 9)]), lambda s: s.set_mask(np.eye(64)), lambda s: s.set_mask(None)]
)
def test_new_points_or_mask_end_what_could_be_redone(small, change):
    session = new_session(small)
    session.step()
    session.undo()
    change(session)
    after = fingerprint(session)
    assert not session.redo()
    assert fingerprint(session) == after


def test_what_is_handed_out_is_not_the_state(small):
    session = new_session(small)
    result = session.step()
    before = fingerprint(session)
    for mine in (session.handle_points, session.target_points, session.w_plus, session.w0, session.locate()):
        mine[:] = 8
    for theirs in (result.handle_points, result.distances):
        assert not theirs.flags.writeable
    assert fingerprint(session) == before
    assert session.w0.abs().max() < 5


def test_locate_agrees_with_a_drag_that_is_done(small):
    session = dg.DragSession(small, seed=3, config=small.drag_config(r2=40))
    session.set_points([(20, 30)], [(21, 31)])
    assert session.locate().tolist() == [[20, 30]]
    session.step()
    assert session.done
    assert np.array_equal(session.locate(), session.handle_points)


def test_locate_finds_what_the_next_step_finds(small):
    session = new_session(small)
    for _ in range(3):
        session.step()
        before = fingerprint(session)
        found = session.locate()
        assert fingerprint(session) == before
        assert np.array_equal(found, session.step().handle_points)


def test_reset(small):
    session = new_session(small)
    session.set_mask(np.eye(64))
    session.step()
    edited = fingerprint(session)
    session.reset()
    assert torch.equal(session.w_plus, session.w0)
    assert session.handle_points.shape == (0, 2)
    assert session.movable_mask is not None
    assert session.trajectory == ()
    assert session.undo()
    assert fingerprint(session) == edited


def test_saved_session_goes_on_exactly(small, tmp_path):
    movable = np.ones((64, 64))
    movable[:10] = 0
    session = new_session(small)
    session.set_mask(movable)
    for _ in range(3):
        session.step()
    path = session.save(tmp_path / "a.safetensors")
    loaded = dg.DragSession.load(path, small)
    assert fingerprint(loaded) == fingerprint(session)
    assert loaded.seed == 3
    assert loaded.config == session.config
    for _ in range(2):
        session.step()
        loaded.step()
    assert fingerprint(loaded) == fingerprint(session)
    assert [r.loss for r in loaded.trajectory] == [r.loss for r in session.trajectory]


def test_saved_session_replays(small, tmp_path):
    session = new_session(small)
    session.step()
    session.set_mask(np.tri(64))
    session.step()
    session.move_targets([(25, 35), (44, 44)])
    session.step()
    session.undo()
    session.step()
    session.set_points([(7, 7)], [(20, 20)])
    session.step()
    found = session_file.replay_session(session.save(tmp_path / "a.safetensors"), small)
    assert found.reproduced
    assert found.max_w_difference == 0
    assert found.max_loss_difference == 0
    assert fingerprint(found.session) == fingerprint(session)


def test_session_file_names_its_model(small, nvlabs, tmp_path):
    path = new_session(small).save(tmp_path / "a.safetensors")
    with pytest.raises(dg.DragError, match="was made with the model"):
        dg.DragSession.load(path, nvlabs)


def test_session_finds_its_model_where_it_was_loaded_from(golden, tmp_path, monkeypatch):
    source = golden / "rosinality" / "rosinality.pt"
    path = new_session(dg.load(source, device="cpu")).save(tmp_path / "a.safetensors")
    assert dg.DragSession.load(path).model.name == "rosinality"
    damage_document(lambda d: d["model"].update(source="elsewhere.pt"))(path)
    with pytest.raises(dg.DragError, match=r"needs the model 'rosinality'.*--model"):
        dg.DragSession.load(path)


def damage_document(change):
    def damage(path):
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()["session"])
        change(document)
        save_file(load_file(path), path, metadata={"session": json.dumps(document)})

    return damage


def damage_tensor(name, value):
    def damage(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
        save_file(tensors, path, metadata=metadata)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_text("hello"),
        lambda path: path.unlink(),
        damage_document(lambda d: d.update(format="other")),
        damage_document(lambda d: d.update(version=99)),
        damage_document(lambda d: d.pop("config")),
        damage_document(lambda d: d["config"].update(lr=-1)),
        damage_document(lambda d: d["start"].update(surprise=1)),
        damage_document(lambda d: d.update(trajectory=[{"handle_points": 1}])),
        damage_document(lambda d: d.update(trajectory=[], done=True)),
        damage_document(lambda d: d.update(events=[{"kind": "mask", "tensor": True}])),
        damage_document(lambda d: d.update(adam_steps="many")),
        damage_tensor("w0", None),
        damage_tensor("w0", torch.zeros(3)),
        damage_tensor("state.parameter", torch.zeros(1, 2, 3)),
        damage_tensor("state.parameter", torch.full((1, 6, 512), torch.nan)),
        damage_tensor("state.adam_mean", None),
        damage_tensor("state.target_points", None),
        damage_tensor("state.references", torch.zeros(1, 9, 9)),
        damage_tensor("state.parameter", torch.zeros(1, 6, 512, dtype=torch.int64)),
        damage_tensor("state.parameter", torch.zeros(1, 6, 512, dtype=torch.float64)),
        damage_tensor("state.adam_variance", torch.full((1, 6, 512), -1.0)),
        damage_tensor("state.handle_points", torch.zeros(2)),
        damage_tensor("state.handle_points", torch.full((1, 2, 2), 1e9)),
        damage_tensor("state.handle_points", torch.zeros(1, 0, 2)),
        damage_tensor("state.movable_mask", torch.ones(1, 64, 64, dtype=torch.uint8)),
        damage_document(lambda d: d.update(adam_steps=-1)),
        damage_document(lambda d: d.update(adam_steps=10**400)),
        damage_document(lambda d: d.update(events=[{"kind": "steps", "count": 10**12}])),
        damage_document(lambda d: d.update(events=[{"kind": "steps"}])),
        damage_document(lambda d: d.update(events=[*d["events"], {"kind": "surprise"}])),
        damage_document(lambda d: d["start"].update(seed="x")),
        damage_document(lambda d: d["config"].update(r2=1e6)),
        damage_document(lambda d: d.update(model=[])),
    ],
)
def test_damaged_session_files_are_refused(small, tmp_path, damage):
    session = new_session(small)
    session.step()
    path = session.save(tmp_path / "a.safetensors")
    damage(path)
    with pytest.raises(dg.DragError):
        dg.DragSession.load(path, small)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (damage_tensor("w_plus", torch.zeros(10, 512)), "max_w_difference"),
        (damage_tensor("w_plus", torch.full((10, 512), torch.nan)), "max_w_difference"),
        (damage_document(lambda d: d["start"].update(seed=99)), "same_start"),
        (damage_document(lambda d: d["start"].update(truncation_psi=0.1)), "same_start"),
        (damage_document(lambda d: d["trajectory"][1].update(handle_points=[[1, 1], [2, 2]])), "same_handles"),
        (damage_document(lambda d: d["trajectory"][1].update(loss=0.9)), "max_loss_difference"),
        (damage_document(lambda d: d["config"].update(lr=0.3)), "max_w_difference"),
    ],
)
def test_a_replay_notices(small, tmp_path, damage, finding):
    session = new_session(small)
    for _ in range(3):
        session.step()
    path = session.save(tmp_path / "a.safetensors")
    damage(path)
    found = session_file.replay_session(path, small)
    assert not found.reproduced
    assert not getattr(found, finding) or getattr(found, finding) > 1e-2


def test_saving_to_an_impossible_place(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dg.DragError, match="Cannot write the session"):
        new_session(small).save(tmp_path / "file" / "a.safetensors")


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda s: s.set_points([], []), "at least one point"),
        (lambda s: s.set_points([(1, 1)], [(1, 1), (2, 2)]), "one target per handle"),
        (lambda s: s.set_points([(64, 1)], [(1, 1)]), r"handle_points: \(64, 1\) lies outside"),
        (lambda s: s.set_points([(1, 1)], [(1, -1)]), r"target_points: \(1, -1\) lies outside"),
        (lambda s: s.set_points([(1, float("nan"))], [(1, 1)]), "NaN"),
        (lambda s: s.set_points([(1, 2, 3)], [(1, 1, 1)]), "pairs"),
        (lambda s: s.set_points([("a", "b")], [(1, 1)]), "pairs of numbers"),
        (lambda s: s.move_targets([(1, 1)]), "2 handle"),
        (lambda s: s.set_mask(np.ones((64, 63))), "they must agree"),
        (lambda s: s.set_mask(np.zeros((64, 64))), "zero everywhere"),
        (lambda s: s.set_mask(np.full((64, 64), np.nan)), "NaN"),
        (lambda s: s.set_mask("white"), "array"),
        (lambda s: s.run(max_steps=0), "max_steps"),
        (lambda s: s.run(max_steps=2.5), "max_steps"),
        (lambda s: s.set_points([(10**400, 1)], [(1, 1)]), "pairs of numbers"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(small, attempt, message):
    session = new_session(small)
    session.step()
    before = fingerprint(session)
    with pytest.raises(dg.DragError, match=message) as caught:
        attempt(session)
    assert "\n" not in str(caught.value)
    assert fingerprint(session) == before
    session.step()


def test_a_model_is_not_a_name():
    with pytest.raises(dg.DragError, match=r"draggan_fast\.load"):
        dg.DragSession("toy-animals", seed=0)


def test_a_step_without_points(small):
    with pytest.raises(dg.DragError, match="No points"):
        dg.DragSession(small, seed=0).step()


def test_a_step_that_is_not_finite_is_taken_back(small):
    session = new_session(small)
    session.configure(lr=1e6)
    session._change(adam_mean=torch.full_like(session._state.adam_mean, 1e38))
    before = fingerprint(session)
    with pytest.raises(dg.DragError, match="not finite"):
        session.step()
    assert fingerprint(session) == before
    assert session.render().shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either a seed or a latent"),
        ({"seed": 0, "w": np.zeros(512)}, "either a seed or a latent"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"seed": 0, "label": 3}, "no classes"),
        ({"seed": 0, "truncation_psi": float("nan")}, "truncation_psi"),
        ({"seed": 0, "noise": "random"}, "noise"),
        ({"w": np.zeros((3, 512))}, "w must have the shape"),
        ({"w": np.full(512, np.inf)}, "NaN or infinite"),
        ({"w": np.full(512, 1e19)}, "beyond"),
        ({"seed": 0, "config": dg.DragConfig(feature_block=5)}, "feature_block 5 does not exist"),
        ({"seed": 0, "config": dg.DragConfig(feature_block=4, layers=11)}, "layers is 11"),
        ({"seed": 0, "truncation_cutoff": 2.5}, "truncation_cutoff"),
        ({"seed": 0, "truncation_cutoff": -1}, "truncation_cutoff"),
        ({"seed": 0, "truncation_psi": "a"}, "truncation_psi"),
        ({"seed": 0, "truncation_psi": 10**400}, "truncation_psi"),
        ({"seed": 0, "config": {"lr": 1}}, "config must be a DragConfig"),
        ({"w": ["a", "b"]}, "array of numbers"),
        ({"w": [[1, 2], [3]]}, "array of numbers"),
    ],
)
def test_bad_starts(small, arguments, message):
    with pytest.raises(dg.DragError, match=message):
        dg.DragSession(small, **arguments)


@pytest.mark.parametrize("form", ["w", "w_plus", "batched"])
def test_start_from_a_latent(small, form):
    seeded = dg.DragSession(small, seed=3)
    latent = {"w": seeded.w_plus[0], "w_plus": seeded.w_plus, "batched": seeded.w_plus[None]}[form]
    assert np.array_equal(dg.DragSession(small, w=latent).render(), seeded.render())


@pytest.mark.parametrize(
    "change",
    [{"lr": 0}, {"lr": "fast"}, {"lr": float("inf")}, {"r1": -1}, {"feature_block": 2.0}, {"layers": 0},
     {"space": "z"}, {"stop_distance": 0}, {"stop_distance": "soon"}, {"max_steps": True},
     {"r1": 1e300}, {"r2": 1e6}, {"lr": 10**400}, {"layers": np.nan}],
)  # fmt: skip
def test_bad_settings(change):
    with pytest.raises(dg.DragError):
        dg.DragConfig(**change)


def test_presets():
    published, paper = dg.DragConfig.published(), dg.DragConfig.paper()
    assert (published.lr, paper.lr) == (1e-3, 2e-3)
    assert [published.stop_pixels(h, 1) for h in (256, 512, 1024)] == [2, 2, 4]
    assert (paper.stop_pixels(512, 5), paper.stop_pixels(512, 6)) == (1, 2)
    exact = dg.DragConfig(stop_distance=0.5)
    assert (exact.stop_pixels(128, 1), exact.stop_pixels(128, 2)) == (0.5, 1)
    assert [published.pixels(3, h) for h in (64, 256, 512, 1024)] == [1, 2, 3, 6]


def test_load_refuses_what_is_not_there(golden):
    with pytest.raises(dg.DragError, match="precision"):
        dg.load(golden / "rosinality" / "rosinality.pt", precision="fp8")
    with pytest.raises(dg.DragError, match="device"):
        dg.load(golden / "rosinality" / "rosinality.pt", device="abacus")
    with pytest.raises(dg.DragError, match="not supported"):
        dg.load(golden / "rosinality" / "rosinality.pt", device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(dg.DragError, match="No CUDA device"):
            dg.load(golden / "rosinality" / "rosinality.pt", device="cuda")
