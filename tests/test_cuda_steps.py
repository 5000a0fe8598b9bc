"""The fast engine on a real GPU: captured steps against steps made one by one, and what they promise. Run by
tools/gpu_run.sh.

Without a GPU every test here is skipped, and counted; tests/test_static_step.py runs the same on the CPU, with a
stand-in for CUDA graphs.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from draggan_fast.bench.workloads import crawling_drag, random_model

import draggan_fast as dg
from draggan_fast import engine, graphs
from tests.test_golden_drags import CASES, GOLDEN, golden_session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: captured steps are not run"),
]
PRECISIONS = ("fp32", "bf16", "fp16")


@pytest.fixture(scope="module")
def network():
    return dg.load(GOLDEN / "nvlabs.pkl", device="cuda", precision="fp32")


@pytest.fixture(scope="module")
def toys():
    return dg.load("toy-animals", device="cuda", precision="fp32")


def new_session(model, precision="fp32", points=2, mask=False, **changes):
    size = model.image_size[0]
    session = dg.DragSession(
        dataclasses.replace(model, precision=precision), seed=3, config=model.drag_config(engine="fast", **changes)
    )
    if mask:
        session.set_mask(np.tri(size))
    places = np.random.RandomState(points).randint(size // 8, size * 7 // 8, (points, 2))
    targets = np.clip(places + np.random.RandomState(7).randint(-12, 13, (points, 2)), 0, size - 1)
    session.set_points(places, targets)
    return session


@pytest.mark.parametrize("case", CASES)
def test_golden_drags(network, case):
    """The published program's handles at every iteration, by captured steps."""
    session, record, _ = golden_session(network, case, "fast")
    for index, expected in enumerate(record["steps"]):
        result = session.step()
        assert np.array_equal(result.handle_points, np.array(expected["handles_yx"])[:, ::-1]), f"iteration {index}"
        assert result.done == expected["stop"]
        if expected["loss"] is not None:
            assert result.loss == pytest.approx(expected["loss"], rel=1e-3)
    assert session._queue() is not None
    assert session._engine.captured


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mask", [False, True], ids=["free", "mask"])
@pytest.mark.parametrize("points", [1, 5])
def test_captured_steps_are_those_made_one_by_one(network, points, mask, precision):
    session, other = (new_session(network, precision, points, mask) for _ in range(2))
    other.may_capture = False
    for _ in range(5):
        found, expected = session.step(), other.step()
        if precision == "fp32" or points == 1:
            assert np.array_equal(found.handle_points, expected.handle_points)
            assert found.loss == pytest.approx(expected.loss, rel=1e-4 if precision == "fp32" else 2e-2)
    if precision == "fp32":
        assert (session.w_plus - other.w_plus).abs().max() < 1e-5


def test_the_first_step_with_a_mask_sees_an_unchanged_feature(network):
    """The held feature, computed outside the graph, has the bits of the one inside: their difference is zero, and so is
    its sign."""
    session = new_session(network, "bf16", mask=True)
    session.step()
    free = new_session(network, "bf16")
    free.set_mask(np.ones(free.image_size))  # holds nothing
    assert session.trajectory[0].loss == pytest.approx(free.step().loss, rel=1e-2)


def test_a_run_is_a_loop_of_steps(network):
    session, other = (new_session(network) for _ in range(2))
    latents = []
    session.run(6, lambda result: latents.append(session.w_plus))
    for latent in latents:
        other.step()
        assert (other.w_plus - latent).abs().max() < 1e-6


def test_nothing_waits_while_a_step_is_enqueued(network, monkeypatch):
    session = new_session(network, mask=True)
    session.run(2)  # captures
    enqueue = graphs.CapturedStep.enqueue

    def watched(self, inputs):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            return enqueue(self, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(graphs.CapturedStep, "enqueue", watched)
    session.run(4)
    assert len(session.trajectory) == 6


def test_the_same_drag_has_the_same_bits(network):
    runs = [new_session(network, "bf16", points=1) for _ in range(2)]
    for session in runs:
        session.run(10)
    assert torch.equal(runs[0].w_plus, runs[1].w_plus)


def test_threads_and_streams_take_turns(network):
    """Two sessions on streams of their own share one graph."""
    alone = new_session(network, points=1)
    alone.run(8)
    sessions, streams = [new_session(network, points=1) for _ in range(2)], [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(4):
        for session, stream in zip(sessions, streams):
            with torch.cuda.stream(stream):
                session.run(2)
    torch.cuda.synchronize()
    for session in sessions:
        assert (session.w_plus - alone.w_plus).abs().max() < 1e-6


def test_a_step_that_is_not_finite_is_undone(network):
    session = new_session(network)
    session.run(2)
    session.config = dataclasses.replace(session.config, lr=1e6)
    session._change(adam_mean=torch.full_like(session._state.adam_mean, 1e38))
    state = session._state
    with pytest.raises(dg.DragError, match="Step 2 is not finite and was taken back"):
        session.run(3)
    assert session._state is state


@pytest.mark.parametrize("precision", PRECISIONS)
def test_drags_arrive(toys, precision):
    for seed in range(3):
        session = dg.DragSession(dataclasses.replace(toys, precision=precision), seed=seed)
        session.set_points([(64, 74)], [(72, 70)])
        assert session.run(max_steps=120).done


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pictures_of_the_engines_agree(toys, precision):
    fast = dg.DragSession(dataclasses.replace(toys, precision=precision), seed=3).render().astype(int)
    slow = dg.DragSession(toys, seed=3, config=toys.drag_config(engine="reference")).render().astype(int)
    assert np.abs(fast - slow).max() <= {"fp32": 1, "bf16": 12, "fp16": 3}[precision]


@pytest.mark.parametrize("mask", ["none", "half"])
def test_memory_at_full_size(mask):
    """Issue 5: at most 1 GB at 1024², network included."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    drag = crawling_drag(random_model(1024, "cuda"), "fast", "bf16", mask=mask)
    for _ in range(3):
        drag.step()
    assert torch.cuda.max_memory_allocated() - before <= 1e9


def test_two_thousand_steps_leak_nothing():
    drag = crawling_drag(random_model(64, "cuda"), "fast", "bf16")
    drag.session.run(200)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    drag.session.run(1800)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert len(drag.session.trajectory) == 2000


def test_auto_is_captured_and_fast(toys):
    session = dg.DragSession(dataclasses.replace(toys, precision="auto"), seed=0)
    assert (session.engine, session.precision) == ("fast", engine.best_precision(toys.device)[0])
    assert graphs.captures(toys.device)
