"""The published program's recorded drags, reproduced iteration by iteration (float32, CPU)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import draggan_fast as dg
from draggan_fast import ops

GOLDEN = Path(__file__).parent / "golden" / "nvlabs"
BACKENDS = [name for name in ops.available_backends("mask_loss") if name != "triton"]  # its interpreter takes hours
CASES = sorted(p.stem for p in GOLDEN.glob("drag_*.json"))


@pytest.fixture(scope="module")
def model():
    return dg.load(GOLDEN / "nvlabs.pkl", device="cpu", precision="fp32")


def golden_session(model, case, engine="reference"):
    """The session a golden file describes, with its record; golden points are (y, x)."""
    record = json.loads((GOLDEN / f"{case}.json").read_text())
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    config = dg.DragConfig.published(
        lr=record["lr"],
        r1=record.get("r1", 3),
        r2=record.get("r2", 12),
        reg=record.get("reg", 0),
        lambda_mask=record.get("lambda_mask", 20),
        feature_block=record.get("feature_idx", 5),
        space="w_plus" if record["w_plus"] else "w",
        engine=engine,
    )
    session = dg.DragSession(model, seed=record["seed"], truncation_psi=record["truncation_psi"], config=config)
    if record["mask"]:
        assert record["mask"] == "columns 0..W/2-1 are 1 (fixed), the rest 0"
        movable = np.ones(session.image_size)
        movable[:, : session.image_size[1] // 2] = 0
        session.set_mask(movable)
    flip = slice(None, None, -1)
    session.set_points(np.array(record["handles_yx"])[:, flip], np.array(record["targets_yx"])[:, flip])
    return session, record, tensors


def test_all_eight_cases_are_here():
    assert len(CASES) == 8


@pytest.mark.parametrize("engine", ["reference", "fast"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_trajectory(model, case, backend, engine):
    with ops.forced_backend(backend):
        follow(model, case, engine)


def follow(model, case, engine):
    session, record, tensors = golden_session(model, case, engine)
    w0 = tensors["w0"]
    w0 = w0[0] if w0.ndim == 3 else w0.expand_as(session.w0)
    assert (session.w0 - w0).abs().max() < 1e-5
    assert record["steps"]
    for index, expected in enumerate(record["steps"]):
        result = session.step()
        handles = np.array(expected["handles_yx"])[:, ::-1]
        assert result.index == index
        assert np.array_equal(result.handle_points, handles), f"iteration {index}"
        assert result.done == expected["stop"]
        if expected["loss"] is None:
            assert result.loss is None
        else:
            assert result.loss == pytest.approx(expected["loss"], rel=3e-4)
        if not result.done:
            rows = session.w_plus[: session.config.layers]
            w = tensors["w"][index].reshape(-1, rows.shape[-1])
            assert (rows - w.expand_as(rows)).abs().max() < 1e-4
    if "image" in tensors:
        ws = session.w_plus[None]
        image = model.generator.synthesis(ws).detach()
        assert (image - tensors["image"]).abs().max() < 1e-3


def test_weights_never_get_gradients(model):
    session, _, _ = golden_session(model, "drag_one_point")
    session.step()
    assert all(p.grad is None and not p.requires_grad for p in model.generator.parameters())


def test_the_sessions_adam_is_torchs(model):
    """The out-of-place Adam of the session is torch.optim.Adam."""
    session, _, _ = golden_session(model, "drag_one_point")
    parameter = session._state.parameter.detach().clone().requires_grad_()
    adam = torch.optim.Adam([parameter], lr=session.config.lr)
    for seed in range(5):
        gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 1e-3
        session._change(**session._adam(gradient))
        parameter.grad = gradient.clone()
        adam.step()
    assert (session._state.parameter - parameter).abs().max() < 1e-6
