"""draggan-fast eval: its statistics, its protocol on cases whose answer is known, and its command."""

import argparse
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from draggan_fast.bench import eval_drags, eval_landmarks, eval_mask, eval_pairs, eval_runs, evaluation
from draggan_fast.bench import optical_flow as flow
from draggan_fast.bench.drag_runs import DragRun, FlowTrackedSession, run_drag, settings_config
from draggan_fast.bench.evaluation import Case, Options, Workbench
from draggan_fast.bench.intervals import mean_interval, ratio_interval
from draggan_fast.bench.perceptual import lpips, why_no_lpips

import draggan_fast as dg
from draggan_fast.cli import main


@pytest.fixture(scope="module")
def bench():
    return Workbench(Options("landmarks", "toy-animals", "cpu", seed=0, max_steps=3))


# --- intervals --------------------------------------------------------------------------------------------------


def test_the_interval_of_a_known_case():
    """The bootstrap's interval of a mean is the normal one, ±1.96 σ/√n, for many values."""
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = mean_interval(list(values))
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval(list(values)) == found


def test_equal_values_have_no_width():
    assert mean_interval([3.0] * 7) == (3.0, 3.0, 3.0)
    assert mean_interval([2.0]) == (2.0, 2.0, 2.0)


def test_a_ratio_is_one_of_sums():
    """1 of 1 pixel and 1 of 9: two of ten, not the mean of 100 % and 11 %."""
    assert ratio_interval([1, 1], [1, 9]).mean == pytest.approx(0.2)
    assert ratio_interval([4, 8], [5, 10]) == pytest.approx((0.8, 0.8, 0.8))


@pytest.mark.parametrize(("top", "bottom"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_no_interval_of_nothing(top, bottom):
    with pytest.raises(ValueError, match="positive denominator"):
        ratio_interval(top, bottom)


# --- the protocol -----------------------------------------------------------------------------------------------


def test_what_did_not_move_went_nowhere_and_what_arrived_went_all_the_way():
    start = np.array([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])
    goal = start + np.array([[3.0, 4.0], [0.0, -5.0], [10.0, 0.0]])
    which = np.array([0, 1])
    still = eval_landmarks.judged(start, start, goal, which)
    assert still["after"].tolist() == still["before"].tolist() == [5.0, 5.0]
    assert still["before_all"] == pytest.approx(20 / 3)
    assert (still["asked"], still["gone"]) == (10.0, 0.0)
    there = eval_landmarks.judged(start, goal, goal, which)
    assert there["after"].tolist() == [0.0, 0.0]
    assert there["gone"] == pytest.approx(there["asked"])
    half = eval_landmarks.judged(start, (start + goal) / 2, goal, which)
    assert half["gone"] == pytest.approx(5.0)
    sideways = eval_landmarks.judged(start, start + np.array([[-4.0, 3.0], [5.0, 0.0], [0.0, 0.0]]), goal, which)
    assert sideways["gone"] == pytest.approx(0.0)
    assert (sideways["after"] > sideways["before"]).all()


@pytest.mark.parametrize("points", ["1", "5", "all"])
def test_a_drag_that_moves_nothing_and_one_that_arrives(bench, monkeypatch, points):
    """The picture decides, whatever the tracker says."""
    first, second = eval_landmarks.pair(bench, 40)
    case = Case("ours", points)
    found = {}
    for name, after in (("still", first.pixels), ("perfect", second.pixels)):

        def drag(model, w0, handles, targets, config, after=after, **rest):
            return DragRun(first.pixels, after, np.asarray(targets, np.float32), done=True, steps=7, seconds=0.5)

        monkeypatch.setattr(evaluation, "run_drag", drag)
        found[name] = eval_landmarks.measure(bench, case, 40)
    still, perfect = found["still"], found["perfect"]
    assert np.array_equal(still["after"], still["before"])
    assert not still["success"]
    assert still["success_tracker"]  # which is why it is no judge
    assert np.abs(perfect["after"]).max() < 1e-4
    assert perfect["success"]
    row = eval_landmarks.row(case, [still, perfect])
    assert row["after"] == pytest.approx(row["before"] / 2, rel=1e-4)
    assert row["success"] == row["way"] == pytest.approx(0.5)
    assert row["steps"] == 7


def test_no_edit_is_where_a_drag_starts(bench):
    record = eval_landmarks.measure(bench, Case(evaluation.NO_EDIT, "5"), 0)
    assert np.array_equal(record["after"], record["before"])
    assert record["gone"] == 0
    assert "steps" not in record


def test_landmarks_at_the_border_are_not_dragged(bench, monkeypatch):
    first, second = eval_landmarks.pair(bench, 0)
    outside = second.landmarks.copy()
    nose = bench.detector.index("nose")
    outside[nose] = (64.0, 127.0)
    monkeypatch.setattr(eval_landmarks, "pair", lambda *_: (first, second._replace(landmarks=outside)))
    assert nose not in eval_landmarks.dragged(bench, "all", 0)
    five = eval_landmarks.dragged(bench, "5", 0)
    assert [bench.detector.names[k] for k in five] == ["eye_left", "eye_right", "mouth_left", "mouth_right"]


def test_one_point_drags_take_landmarks_at_random_but_the_same_ones_again(bench):
    chosen = [eval_landmarks.dragged(bench, "1", index).tolist() for index in range(4)]
    assert len({k for (k,) in chosen}) > 1
    assert chosen == [eval_landmarks.dragged(bench, "1", index).tolist() for index in range(4)]


def test_settings_are_the_programs_the_papers_and_the_models(bench):
    toy = bench.model
    assert settings_config(toy, "published") == dg.DragConfig.published()
    assert settings_config(toy, "paper", max_steps=9) == dg.DragConfig.paper(max_steps=9)
    assert settings_config(toy, "fast") == toy.drag_config()
    with pytest.raises(dg.DragError, match="no settings 'slow'"):
        settings_config(toy, "slow")


def test_engines_make_the_same_drag(bench):
    """Published program and session: the same picture in the end, whichever one is behind by an update."""
    picture = bench.picture(5)
    handles, targets = np.array([[64.0, 74.0]]), np.array([[76.0, 70.0]])
    config = settings_config(bench.model, "published", lr=0.02, max_steps=4)
    ours, theirs = (run_drag(bench.model, picture.w0, handles, targets, config, engine=e)
                    for e in ("reference", "published"))  # fmt: skip
    assert ours.steps == theirs.steps == 4
    assert np.array_equal(ours.before, picture.pixels)
    assert np.abs(ours.after.astype(int) - theirs.after).max() <= 2
    assert np.abs(ours.after.astype(int) - ours.before).mean() > 1


def test_ablations_change_one_thing_each_and_say_what_cannot_be_had(bench):
    cases = {case.name: case for case in eval_landmarks.ablations(bench.model)}
    assert cases["feature block 6"].absent == "toy-animals has the blocks 0 to 5."
    assert cases["feature block 5"].absent is None
    radii = {name: bench.config(case).pixels(bench.config(case).r1, 128) for name, case in cases.items()}
    assert [radii[f"r1 {r} px"] for r in range(2, 6)] == [2, 3, 4, 5]
    assert bench.config(cases["latent space w_plus"]).space == "w_plus"
    base = bench.config(cases["base: block 4, r1 1 px, w, features"])
    assert base == bench.config(Case("ours"))
    assert replace(bench.config(cases["feature block 3"]), feature_block=base.feature_block) == base


def drags_cases(bench, **given):
    arguments = argparse.Namespace(engine=("fast",), precision=("auto",), points=("1", "5"), set=None, device="cpu")
    vars(arguments).update(given)
    return eval_drags.cases(arguments, bench.model)


def test_settings_of_a_drag_can_be_changed(bench):
    (case,) = drags_cases(bench, points=("5",), set='{"lr": 0.02, "space": "w_plus"}')
    assert case.points == "5"
    assert bench.config(case) == bench.model.drag_config(lr=0.02, space="w_plus", max_steps=bench.options.max_steps)
    assert [c.changes for c in drags_cases(bench)] == [(), ()]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"set": "lr=2"}, "--set must be a JSON object"), ({"set": "[1]"}, "--set must be a JSON object"),
     ({"set": '{"speed": 1}'}, "Drag settings must be"), ({"set": '{"lr": -1}'}, "lr must be"),
     ({"points": ("2",)}, "--points knows 1, 5")],
)  # fmt: skip
def test_changes_that_make_no_sense_are_refused(bench, given, message):
    with pytest.raises(dg.DragError, match=message):
        drags_cases(bench, **given)


def test_random_drags_stay_inside_and_have_the_asked_length(bench):
    for index in range(3):
        picture, which, way = eval_drags.request_of(bench, "1", index)
        assert which.tolist() == [index]
        assert 8 <= np.hypot(*way) <= 24
        assert bench.inside(picture.landmarks[which] + way).all()


def test_the_movable_disc_holds_handle_and_target():
    disc = eval_mask.movable_disc(128, np.array([40.0, 60.0]), np.array([52.0, 60.0]))
    assert disc[60, 40]
    assert disc[60, 52]
    assert disc[60, 46 + 25]
    assert not disc[60, 46 + 27]
    assert not disc[60 + 27, 46]


# --- optical flow -----------------------------------------------------------------------------------------------


def textured(shift=(0.0, 0.0), size=128):
    """A smooth random texture, moved by (x, y) pixels."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    random = np.random.default_rng(3)
    total = np.zeros((size, size))
    for _ in range(40):
        kx, ky = random.normal(0, 0.25, 2)
        total += np.sin(kx * (x - shift[0]) + ky * (y - shift[1]) + random.uniform(0, 6.3))
    grey = (127 + 127 * total / np.abs(total).max()).astype(np.uint8)
    return np.stack([grey] * 3, axis=2)


@pytest.mark.parametrize("follower", ["dis", "lucas-kanade"])
def test_flow_follows_a_shift(follower):
    points = np.array([[40.0, 50.0], [64.25, 80.5], [90.0, 33.0]], np.float32)
    for shift in ((3.0, -2.0), (0.25, 0.5)):
        found = flow.FOLLOWERS[follower](textured(), textured(shift), points)
        assert np.abs(found - points - shift).max() < 0.25


def test_flow_is_read_between_pixels():
    field = np.zeros((4, 5, 2), np.float32)
    field[..., 0], field[..., 1] = np.arange(5), 10 * np.arange(4)[:, None]
    points = np.array([[1.5, 2.25], [4.0, 3.0], [9.0, -1.0]], np.float32)
    assert np.allclose(flow.sample_flow(field, points), [[1.5, 22.5], [4.0, 30.0], [4.0, 0.0]])


@pytest.mark.parametrize("tracker", ["dis", "lucas-kanade"])
def test_a_drag_can_be_tracked_by_flow(bench, tracker):
    """The nose goes towards its target, the tracker's points lie between pixels, and looking changes nothing."""
    picture = bench.picture(29)
    nose = picture.landmarks[bench.detector.index("nose")]
    config = settings_config(bench.model, "fast", max_steps=10)
    run = run_drag(bench.model, picture.w0, nose[None], nose[None] + [[8.0, 0.0]], config, tracker=tracker)
    assert run.handle_points[0, 0] > nose[0] + 1
    assert (run.handle_points % 1 != 0).any()
    session = FlowTrackedSession(bench.model, picture.w0, config, flow.FOLLOWERS[tracker])
    session.set_points([nose], [nose + np.array([8.0, 0.0])])
    for _ in range(3):
        session.step()
    assert np.array_equal(session.locate(), session.locate())


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "draggan-fast[eval]" in flow.why_absent("dis")
    with pytest.raises(dg.DragError, match="Optical flow needs OpenCV"):
        flow.follow_lucas_kanade(textured(), textured(), np.zeros((1, 2), np.float32))
    for module in (flow, sys.modules[why_no_lpips.__module__]):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert flow.why_absent("raft") == "RAFT needs torchvision, which is not installed."
    assert why_no_lpips() == "LPIPS needs the package lpips, which is not installed."
    assert lpips(textured(), textured()) is None


def test_flow_points_are_few_and_consistent(bench):
    shifted = textured((2.0, 1.0))
    handles, targets = eval_pairs.flow_points(bench, textured(), shifted, 0)
    assert handles.shape == targets.shape == (eval_pairs.SPARSE, 2)
    assert np.median(np.abs(targets - handles - [2.0, 1.0])) < 0.2


# --- the command ------------------------------------------------------------------------------------------------

TINY = [
    "--points", "1", "--settings", "fast", "--engine", "reference", "--max-steps", "3", "--device", "cpu",
    "--threads", "1",
]  # fmt: skip


def test_a_tiny_evaluation_end_to_end(tmp_path, capsys, monkeypatch):
    record, sheet = tmp_path / "l.json", tmp_path / "sheet.png"
    command = ["eval", "landmarks", "--pairs", "2", *TINY, "--json", str(record)]
    assert main([*command, "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr().out
    assert "no edit" in shown
    content = json.loads(record.read_text())
    assert set(content) == {"machine", "request", "complete", "rows", "pairs"}
    assert content["complete"]
    nothing, ours = content["rows"]
    assert (nothing["name"], ours["name"]) == ("no edit", "ours")
    assert ours | {"suite": "landmarks", "settings": "fast", "engine": "reference", "points": "1", "pairs": 2} == ours
    assert ours["tracker"] == "features"
    assert ours["tracker_distance"] > ours["stop_distance"]
    assert nothing["after"] == nothing["before"] == ours["before"]
    assert ours["after"] < ours["before"]
    assert ours["after_ci"][0] <= ours["after"] <= ours["after_ci"][1]
    assert len(content["pairs"]) == 4
    assert dg.media.read_provenance(sheet)["model"] == "toy-animals"

    # A third pair is added, the others are not dragged again; another seed does not belong into that file.
    made = []
    monkeypatch.setattr(evaluation, "run_drag", lambda *a, **k: made.append(1) or run_drag(*a, **k))
    assert main([*[w if w != "2" else "3" for w in command], "--resume"]) == 0
    assert len(made) == 1
    again = json.loads(record.read_text())
    assert again["rows"][1]["pairs"] == 3
    assert again["pairs"][:4] == content["pairs"]
    assert main([*command, "--resume", "--seed", "1"]) == 2
    assert "cannot be resumed: it was made with seed 0" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    measured, calls = eval_runs.measured, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(eval_runs, "measured", interrupted)
    record = tmp_path / "l.json"
    assert main(["eval", "landmarks", "--pairs", "3", *TINY, "--json", str(record)]) == 130
    content = json.loads(record.read_text())
    assert not content["complete"]
    assert [row["pairs"] for row in content["rows"]] == [2, 1]
    assert "interrupted after 3 drags" in capsys.readouterr().err


def test_a_failed_drag_loses_no_others(tmp_path, capsys, monkeypatch):
    def failing(*arguments, **rest):
        raise dg.DragError("Step 0 is not finite.")

    monkeypatch.setattr(evaluation, "run_drag", failing)
    record = tmp_path / "l.json"
    assert main(["eval", "landmarks", "--pairs", "1", *TINY, "--json", str(record)]) == 2
    assert "Step 0 is not finite." in capsys.readouterr().err
    assert len(json.loads(record.read_text())["pairs"]) == 1  # no edit


@pytest.mark.parametrize(
    ("study", "option", "rows"),
    [("drags", "--drags", ["ours", "ours"]), ("pairs", "--pairs", ["no edit", "ours", "ours"]),
     ("mask", "--drags", ["without mask", "with mask"])],
)  # fmt: skip
def test_the_other_studies_end_to_end(study, option, rows, tmp_path, capsys):
    record = tmp_path / "r.json"
    arguments = [
        option,
        "1",
        "--engine",
        "reference",
        "--max-steps",
        "2",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--json",
        str(record),
    ]
    assert main(["eval", study, *arguments, "--sheet", str(tmp_path / "s.webp")]) == 0
    assert [row["name"] for row in json.loads(record.read_text())["rows"]] == rows
    assert (tmp_path / "s.webp").stat().st_size > 1000


def test_several_processes_measure_the_same(tmp_path):
    def records(*more):
        path = tmp_path / f"{len(more)}.json"
        words = ["eval", "drags", "--drags", "1", "--max-steps", "2", "--device", "cpu", "--json", str(path), *more]
        assert main(words) == 0
        return [{k: v for k, v in r.items() if k != "seconds"} for r in json.loads(path.read_text())["pairs"]]

    assert records("--jobs", "2") == records("--threads", "1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["landmarks", "--points", "7"], "--points knows 1, 5, all, not '7'."),
        (["landmarks", "--settings", "slow"], "--settings knows published, paper, fast, not 'slow'."),
        (["landmarks", "--engine", "warp"], "There is no engine 'warp'"),
        (["landmarks", "--precision", "fp4"], "not in 'fp4'"),
        (["landmarks", "--pairs", "0"], "--pairs must be from 1"),
        (["drags", "--drags", "0"], "--drags must be from 1"),
        (["mask", "--max-steps", "0"], "--max-steps must be from 1"),
        (["pairs", "--seed", "-1"], "--seed must not be negative"),
        (["landmarks", "--json", "l.txt"], "must end in .json"),
        (["landmarks", "--sheet", "nowhere/s.png"], "does not exist"),
        (["landmarks", "--resume"], "name it"),
        (["landmarks", "--jobs", "2", "--threads", "2"], "leave --threads out"),
        (["nonsense"], "invalid choice"),
        ([], "required"),
    ],
)
def test_slips_are_told_in_one_line(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_other_models_have_no_landmarks(golden, capsys):
    path = golden / "rosinality" / "rosinality.pt"
    assert main(["eval", "drags", "--model", str(path), "--device", "cpu"]) == 2
    assert "eval knows the landmarks of toy-animals only" in capsys.readouterr().err
