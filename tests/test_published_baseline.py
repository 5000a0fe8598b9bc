"""The benchmark's baseline is the published program: it makes the recorded drags too."""

import numpy as np
import pytest
import torch
from draggan_fast.bench import published

from tests.test_golden_drags import CASES, golden_session


@pytest.mark.parametrize("case", CASES)
def test_trajectory(nvlabs, case):
    session, record, tensors = golden_session(nvlabs, case)
    mask = session.movable_mask
    drag = published.PublishedDrag(
        nvlabs,
        session.w0,
        [tuple(map(int, p)) for p in session.handle_points],
        [tuple(map(int, p)) for p in session.target_points],
        session.config,
        None if mask is None else torch.from_numpy(mask).float(),
    )
    for index, expected in enumerate(record["steps"][:25]):
        loss, stop, picture = drag.step()
        assert np.array_equal(np.array(drag.handle_points), np.array(expected["handles_yx"])[:, ::-1])
        assert stop == expected["stop"]
        assert loss == (None if expected["loss"] is None else pytest.approx(expected["loss"], rel=1e-3))
        w = tensors["w"][index].reshape(-1, 512)
        assert (drag.w.detach()[0, : len(w)] - w).abs().max() < 1e-3
        assert picture.shape == (256, 256, 3)
    if not stop:
        assert drag.generator.synthesis.blocks[3].conv1.weight.grad is not None


def test_the_shared_model_is_left_alone(nvlabs):
    session, _, _ = golden_session(nvlabs, "drag_one_point")
    drag = published.PublishedDrag(nvlabs, session.w0, [(100, 123)], [(150, 123)], session.config)
    drag.step()
    assert all(p.grad is None and not p.requires_grad for p in nvlabs.generator.parameters())
