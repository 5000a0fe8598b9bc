"""The step over static buffers against the session's step, and that nothing in it needs the host."""

import dataclasses
import gc
import importlib

import numpy as np
import pytest
import torch
from draggan_fast.bench.probe import resident_mb
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import draggan_fast as dg
from draggan_fast import engine, graphs, ops, regions
from draggan_fast import static_step as static_step_module
from draggan_fast.frozen import FrozenSynthesis
from draggan_fast.session_file import replay_session
from draggan_fast.static_step import StepBuffers, bucket_of, plan_for, static_step
from tests.fake_cuda import Indexing
from tests.graph_emulator import HostWaits, Watch, emulate
from tests.test_golden_drags import CASES, golden_session

CPU = torch.device("cpu")
OP = "motion_supervision"


@pytest.fixture(autouse=True)
def nothing_captured_yet():
    """The networks outlive a test; what was captured of them must not."""
    for kept in engine._frozen.values():
        for shared in kept.values():
            shared.captured.clear()


def replayed(session):
    """The same session, by static steps."""
    other = dg.DragSession(session.model, w=session.w0, config=session.config, noise=session.noise)
    other._adopt(session._state)
    other._steps = graphs.StepQueue(other._engine)
    return other


def assert_same_step(found, expected, session, other, exact=False):
    assert found.index == expected.index
    assert np.array_equal(found.handle_points, expected.handle_points)
    assert np.array_equal(found.distances, expected.distances)
    assert found.done == expected.done
    assert (found.loss is None) == (expected.loss is None)
    if found.loss is not None:
        assert found.loss == pytest.approx(expected.loss, rel=0 if exact else 1e-5)
    assert (session.w_plus - other.w_plus).abs().max() <= (0 if exact else 2e-6)
    assert session._state.adam_steps == other._state.adam_steps
    assert session._state.moved == other._state.moved


@pytest.mark.parametrize("case", CASES)
def test_golden_drags(nvlabs, case):
    """Step for step what the session computes, which test_golden_drags.py holds to the published program's record."""
    session, record, _ = golden_session(nvlabs, case, "fast")
    other = replayed(session)
    for _ in record["steps"][:4]:
        assert_same_step(other.step(), session.step(), session, other)


@pytest.fixture
def graphs_made(monkeypatch):
    return emulate(monkeypatch, graphs)


def new_session(model, points=1, mask=False, **changes):
    size = model.image_size[0]
    session = dg.DragSession(model, seed=3, config=model.drag_config(**changes))
    if mask:
        session.set_mask(np.tri(size))
    places = np.random.RandomState(points).randint(2, size - 2, (points, 2))
    targets = np.clip(places + np.random.RandomState(7).randint(-12, 13, (points, 2)), 0, size - 1)
    session.set_points(places, targets)
    return session


SETTINGS = {
    "w_plus": {},
    "w": {"space": "w"},
    "reg": {"reg": 0.3},
    "block 2": {"feature_block": 2},
    "three rows": {"layers": 3},
    "paper's stop": {"stop_distance": "paper"},
    "to the pixel": {"stop_distance": 0.5},
}


@pytest.mark.parametrize("mask", [False, True], ids=["free", "mask"])
@pytest.mark.parametrize("points", [1, 3, 5, 16])
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_captured_step_is_the_sessions(small, graphs_made, changes, points, mask):
    session = new_session(small, points, mask, engine="fast", **changes)
    other = replayed(session)
    session.may_capture = False
    for _ in range(3):
        assert_same_step(other.step(), session.step(), session, other)
    (graph,) = graphs_made
    assert graph.replays == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision(small, graphs_made, monkeypatch, precision):
    """Without padding the very same operations, so the very same bits."""
    monkeypatch.setattr(engine, "refusal", lambda precision, device: None)  # float16, slowly, on a CPU
    session = new_session(dataclasses.replace(small, precision=precision), 1, engine="fast")
    other = replayed(session)
    session.may_capture = False
    assert session.precision == precision
    for _ in range(4):
        assert_same_step(other.step(), session.step(), session, other, exact=True)


@pytest.mark.parametrize("mask", [False, True], ids=["free", "mask"])
def test_a_drag_to_its_end(graphs_made, mask):
    """Toy animals: the same drag, step for step; afterwards replays change nothing."""
    model = dg.load("toy-animals", device="cpu", precision="fp32")
    session = dg.DragSession(model, seed=29)
    if mask:
        session.set_mask(np.tri(128, k=20))
    session.set_points([(67, 78)], [(64, 77)])
    other = replayed(session)
    session.may_capture = False
    while not session.done:
        assert_same_step(other.step(), session.step(), session, other)
        assert len(session.trajectory) < 30
    assert other.step() is other.trajectory[-1]
    (step,) = other._engine.captured.values()
    before = copies(step.buffers)
    for _ in range(2):
        step._replay()
        assert step.buffers.record[0] == 0  # it did not run
    assert_equal_buffers(step.buffers, before)


def copies(buffers):
    names = [field.name for field in dataclasses.fields(buffers) if field.name != "record"]
    return {name: None if (t := getattr(buffers, name)) is None else t.clone() for name in names}


def assert_equal_buffers(buffers, before):
    for name, old in before.items():
        new = getattr(buffers, name)
        assert new is old is None or torch.equal(new.nan_to_num(), old.nan_to_num()), name


def test_run_is_a_loop_of_steps(small, graphs_made):
    """Enqueued ahead, read late: the same states, and the callback sees the session as each step left it."""
    session = new_session(small, 2, engine="fast")
    other = replayed(session)
    session.may_capture = False
    seen = []

    def callback(result):
        assert result is other.trajectory[-1]
        seen.append(other.w_plus)

    other.run(5, callback)
    for latent in seen:
        session.step()
        assert (session.w_plus - latent).abs().max() < 2e-6
    assert len(seen) == 5
    assert graphs_made[0].replays == 5


def test_run_enqueues_a_step_before_it_reads_the_last_one(small, graphs_made, monkeypatch):
    order = []
    enqueue, read = graphs.CapturedStep.enqueue, graphs.Pending.read

    def enqueuing(self, inputs):
        order.append("enqueue")
        return enqueue(self, inputs)

    def reading(self):
        order.append("read")
        return read(self)

    monkeypatch.setattr(graphs.CapturedStep, "enqueue", enqueuing)
    monkeypatch.setattr(graphs.Pending, "read", reading)
    new_session(small, engine="fast").run(3)
    assert order == ["enqueue", "enqueue", "read", "enqueue", "read", "read"]
    order.clear()
    session = new_session(small, engine="fast")
    session.step()
    session.step()
    assert order == ["enqueue", "read"] * 2


def test_whatever_changes_the_session_between_steps(small, graphs_made):
    """Targets, points, mask, undo, settings, stopping early: what was enqueued ahead of it is dropped."""

    def go(session):
        def once(_result):
            return False

        def targets(result):
            if result.index == 3:
                session.move_targets([(30, 40), (20, 50)])

        session.run(10, once)
        session.run(4, targets)
        session.set_points([(5, 5), *session.handle_points[:1]], [(9, 9), (40, 52)])
        session.run(2)
        session.undo()
        session.set_mask(np.tri(64))
        session.run(2)
        session.configure(lr=2e-3, lambda_mask=3.0, reg=0.1)
        session.step()
        session.set_mask(None)
        session.set_points([(5, 5), (30, 30), (9, 50)], [(9, 9), (35, 30), (9, 40)])
        session.run(2, targets)
        session.redo()
        session.reset()
        session.set_points([(30, 30)], [(36, 30)])
        session.run(2)

    session = new_session(small, 2, engine="fast")
    other = replayed(session)
    session.may_capture = False
    go(session)
    go(other)
    assert len(session.trajectory) == len(other.trajectory)
    for found, expected in zip(other.trajectory, session.trajectory):
        assert np.array_equal(found.handle_points, expected.handle_points)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert (session.w_plus - other.w_plus).abs().max() < 2e-6
    assert len(session._history) == len(other._history)


def test_sessions_share_what_is_captured(small, graphs_made):
    """Two sessions on one network take turns on the same buffers and do not notice each other."""
    alone = [new_session(small, points, engine="fast") for points in (3, 4)]
    together = [replayed(session) for session in alone]
    for session in alone:
        session.may_capture = False
    for _ in range(3):
        for session in alone:
            session.run(2)
        results = [session.run(2) for session in together]
        for result, session, expected in zip(results, together, alone):
            assert_same_step(result, expected.trajectory[-1], session, expected)
    assert len(graphs_made) == 1


def test_saved_and_loaded(small, graphs_made, tmp_path):
    session = new_session(small, 2, mask=True, engine="fast")
    session.run(3)
    path = session.save(tmp_path / "s.safetensors")
    loaded = dg.DragSession.load(path, small)
    session.run(2)
    loaded.run(2)
    assert torch.equal(session.w_plus, loaded.w_plus)
    replay = replay_session(path, small)
    assert replay.reproduced
    assert replay.max_w_difference == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_that_is_not_finite_is_undone_and_told(small, graphs_made, ahead):
    session = new_session(small, engine="fast")
    session.run(2)
    good = session.config
    session._change(config=dataclasses.replace(good, lr=1e6))
    session._change(adam_mean=torch.full_like(session._state.adam_mean, 1e38))
    state = session._state
    with pytest.raises(dg.DragError, match="Step 2 is not finite and was taken back"):
        session.run(3) if ahead else session.step()
    assert session._state is state
    (step,) = session._engine.captured.values()
    assert step.buffers.failed
    assert torch.equal(step.buffers.parameter, state.parameter)
    assert torch.equal(step.buffers.handle_points, state.handle_points)
    assert step.buffers.record[0] == (0 if ahead else 1)  # what was enqueued behind it did not run
    session._change(config=good)
    session._change(adam_mean=torch.zeros_like(session._state.adam_mean))
    assert session.step().loss > 0


@pytest.mark.parametrize("captures", [False, True])
def test_nothing_arrives_in_features_that_are_no_numbers(small, graphs_made, captures):
    session = new_session(small, engine="fast")
    session.may_capture = captures
    session.step()
    session.set_points([(20, 30)], [(21, 31)])
    assert session.step().done
    session.set_points([(20, 30)], [(21, 31)])
    session._change(parameter=torch.full_like(session._state.parameter, 3e38))
    state = session._state
    with pytest.raises(dg.DragError, match="not finite and was taken back"):
        session.step()
    assert session._state is state


def test_another_plan_is_another_graph_and_the_oldest_goes(small, graphs_made, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_CAPTURED", 2)
    session = new_session(small, 1, engine="fast")
    for radius in (3, 4, 3, 6, 3, 4):
        session.configure(r1=float(radius * 8))
        session.step()
    assert len(graphs_made) == 4
    assert len(session._engine.captured) == 2


def test_what_cannot_be_captured_is_told(small, graphs_made, monkeypatch):
    def syncing(engine, plan, buffers):
        static_step(engine, plan, buffers)
        buffers.done.item()

    monkeypatch.setattr(graphs, "static_step", syncing)
    with pytest.raises(dg.DragError, match=r"cannot be captured in a CUDA graph.*DRAGGAN_FAST_GRAPH=off"):
        new_session(small, engine="fast").step()


def test_who_is_captured(small, monkeypatch):
    cuda = torch.device("cuda")
    assert graphs.captures(cuda)
    assert not graphs.captures(CPU)
    assert graphs.queue_for(engine.ReferenceEngine(small.generator, 2, "const")) is None
    monkeypatch.setenv(graphs.ENVIRONMENT, "off")
    assert not graphs.captures(cuda)
    monkeypatch.setenv(graphs.ENVIRONMENT, "perhaps")
    with pytest.raises(dg.DragError, match="must be on or off"):
        graphs.captures(cuda)


def test_buckets():
    assert [bucket_of(n) for n in (1, 2, 4, 5, 16, 17, 64, 65, 129)] == [1, 4, 4, 16, 16, 64, 64, 128, 192]


# --- nothing in it needs the host -------------------------------------------------------------------------------------


def eager_step(session):
    """(a function that makes the session's step at once over static buffers, the buffers, the plan)."""
    queue = graphs.StepQueue(session._engine)
    feature0 = session._mask_feature() if session._holds_something() else None
    queue.step(session._state, session.config, session._w0, feature0, ahead=False)
    (step,) = session._engine.captured.values()
    return step._replay, step.buffers, step.plan


CONFIGURATIONS = {
    "crops": {"points": 2},
    "dense, mask": {"points": 2, "mask": True},
    "reg, w, padded": {"points": 3, "reg": 0.1, "space": "w"},
}


@pytest.mark.parametrize("backend", [name for name in ("reference", "cpp") if name in ops.available_backends(OP)])
@pytest.mark.parametrize("options", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_no_step_waits_for_the_device_and_each_allocates_the_same(small, options, backend):
    """Also the first one after a reference was taken, the last one, and those after the end."""
    with ops.forced_backend(backend):
        session = new_session(small, engine="fast", **options)
        step, buffers, plan = eager_step(session)
        assert (plan.first_on_crops is None) == ("mask" in options)
        buffers.references.fill_(torch.nan)
        counts = []
        for index in range(6):
            if index == 3:  # the targets are where the handles are: the drag ends
                buffers.target_points.copy_(buffers.handle_points)
            with Watch() as watch:
                step()
            counts.append((watch.calls, watch.allocations, watch.allocated_bytes))
            assert buffers.done == (index >= 3)
    assert counts[0][1] > 100
    assert all(count == counts[0] for count in counts)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: bool(x > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.to("meta"),
        torch.unique,
        lambda x: x.masked_select(x > 0),
    ],
)
def test_the_watch_sees_what_would_wait(wait):
    with pytest.raises(HostWaits), Watch():
        wait(torch.ones(1))


def tiny_session(**changes):
    """An 8-pixel network of four channels."""
    generator = dg.Generator(dg.GeneratorConfig(8, 8, 8, (4, 4), (8,))).eval().freeze()
    model = dg.Model("tiny", "tiny", generator, "", "random", {}, CPU, "fp32")
    session = dg.DragSession(model, seed=0, config=model.drag_config(engine="fast", lr=1e-9, **changes))
    session.set_points([(1, 1), (6, 5)], [(6, 7), (2, 0)])
    return session


def test_two_thousand_steps_leak_nothing():
    step, buffers, _plan = eager_step(tiny_session())

    def alive():
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects()), resident_mb()

    for _ in range(200):
        step()
    tensors, before = alive()
    for _ in range(1800):
        step()
    now, after = alive()
    assert buffers.adam_steps == 2001
    assert now == tensors
    assert after - before < 4
    assert buffers.parameter.isfinite().all()


def test_the_tool_that_times_steps_on_a_gpu(small, graphs_made, monkeypatch):
    """Its rows, of a session that goes through the stand-in; on a GPU tools/gpu_run.sh runs it."""
    gpu_step = importlib.import_module("tools.gpu_step")
    monkeypatch.setattr(gpu_step, "REPEATS", 1)
    monkeypatch.setattr(gpu_step, "REPLAYS", 1)
    monkeypatch.setattr(gpu_step, "WARM_UP", 0)
    cases = list(gpu_step.cases(CPU))
    assert ("fp32", 16, "half", "whole") in cases
    assert ("bf16", 1, "none", "crops") in cases
    found = {}
    for case in (("fp32", 1, "none", "crops"), ("fp32", 1, "none", "whole")):
        found[case] = [one["name"] for one in gpu_step.measured(small, case)]
    assert list(found.values()) == [
        [f"{name}, crops" for name in ("replay", "run", "step", "eager")],
        [f"{name}, whole" for name in ("replay", "run", "step")],
    ]
    assert len(graphs_made) == 2
    assert static_step_module.first_block is regions.first_block  # put back


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("masked", [False, True], ids=["crops", "mask"])
def test_a_step_stays_on_the_gpu(masked, precision, monkeypatch):
    """On tensors that only claim to be on one: nothing is made elsewhere, nothing asks for a value."""
    monkeypatch.setattr(engine, "level_cost", lambda device, precision: 0.0)
    cuda = torch.device("cuda")
    with FakeTensorMode(), Indexing():
        with cuda:
            generator = dg.Generator(dg.GeneratorConfig(64, 8, 8, (4, 4, 4, 4, 4), (8,))).eval().freeze()
        synthesis = FrozenSynthesis(generator, 4, engine.DTYPES[precision])
        fast = engine.FastEngine(synthesis, precision, (64, 64))
        config = dg.DragConfig(feature_block=4, layers=6, reg=0.1)
        plan = plan_for(fast, 10, 8, config, 3, masked)
        assert (plan.first_on_crops is None) == masked
        buffers = StepBuffers.allocate(fast, plan)
        static_step(fast, plan, buffers)
        assert {t.device.type for t in vars(buffers).values() if t is not None} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            bool(buffers.done)
