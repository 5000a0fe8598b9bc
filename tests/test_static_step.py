"""The step over static buffers against the session's step, and that nothing in it needs the host."""

import dataclasses

import numpy as np
import pytest
import torch

import draggan_fast as dg
from draggan_fast import graphs
from draggan_fast.static_step import bucket_of
from tests.test_golden_drags import CASES, golden_session

CPU = torch.device("cpu")


@pytest.fixture
def captured(monkeypatch):
    """Sessions that are made or stepped from now on go through ``graphs``, as on a GPU; there a step runs at once."""
    monkeypatch.setattr(graphs, "captures", lambda device: True)


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
