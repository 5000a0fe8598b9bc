"""The landmark detector that judges drags: small, right on pictures it has not seen, and trained reproducibly."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from draggan_fast.bench import landmarks
from draggan_fast.bench.landmarks import CELLS, SIDE, expected_points, load_detector
from safetensors import safe_open

import draggan_fast as dg
from draggan_fast.generator import normalize_second_moment

TOOLS = Path(__file__).resolve().parent.parent / "tools"
FRESH_SEED, FRESH = 20261124, 12  # not the seed of the pool that it was trained on


@pytest.fixture(scope="module")
def tools():
    """The renderer, the augmentation and the training script."""
    sys.path.insert(0, str(TOOLS))
    try:
        import toy_animals
        import train_landmarks
        from toy_training import augment
    finally:
        sys.path.remove(str(TOOLS))
    return SimpleNamespace(toy_animals=toy_animals, augment=augment, train_landmarks=train_landmarks)


@pytest.fixture(scope="module")
def latents(tools):
    draw = torch.Generator().manual_seed(FRESH_SEED)
    return normalize_second_moment(torch.randn(FRESH, tools.toy_animals.LATENT_DIM, generator=draw))


@pytest.fixture(scope="module")
def rendered(tools, latents):
    """(pictures: uint8 [H, W, 3] each, landmarks [N, 21, 2])."""
    with torch.no_grad():
        scene = tools.toy_animals.render(latents, SIDE)
    pixels = ((scene.image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return list(pixels), scene.landmarks.numpy()


def test_the_file_is_small_and_ours(tools):
    assert landmarks.WEIGHTS.stat().st_size <= 2_000_000
    with safe_open(landmarks.WEIGHTS, framework="pt") as file:
        assert json.loads(file.metadata()["landmarks"])["licence"] == "Apache-2.0"
    detector = load_detector()
    assert detector.names == tools.toy_animals.LANDMARKS
    assert detector.index("nose") == tools.toy_animals.LANDMARKS.index("nose")


def test_it_is_right_on_fresh_renders(rendered):
    pictures, truth = rendered
    error = np.linalg.norm(load_detector()(pictures) - truth, axis=2)
    assert error.mean() <= 0.5
    assert error.mean(axis=0).max() <= 1.0  # no kind of landmark is guessed


def test_it_finds_the_generators_landmarks_too(latents, rendered):
    """The generator puts them about a pixel off (ears two); a detector that fails on its pictures would be far off."""
    model = dg.load("toy-animals", device="cpu")
    with torch.no_grad():
        images = (model.generator(latents) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    error = np.linalg.norm(load_detector()(list(images.permute(0, 2, 3, 1).numpy())) - rendered[1], axis=2)
    assert error.mean() <= 1.5


def test_larger_pictures_have_their_own_pixels(rendered):
    """A point p of 128 pixels is 2p + ½ of 256."""
    picture = rendered[0][0]
    detector = load_detector()
    doubled = detector([picture.repeat(2, axis=0).repeat(2, axis=1)])
    assert np.abs(doubled - (2 * detector([picture]) + 0.5)).max() < 1.0
    assert detector([]).shape == (0, 21, 2)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((128, 160, 3), np.uint8),
        np.zeros((128, 128), np.uint8),
        np.zeros((128, 128, 3)),
    ],
)
def test_pictures_that_do_not_fit_are_refused(picture):
    with pytest.raises(dg.DragError, match="landmark detector reads"):
        load_detector()([picture])


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "bad.safetensors"
    for content in (b"", b"not a safetensors file", landmarks.WEIGHTS.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(dg.DragError, match=r"bad\.safetensors cannot be used"):
            load_detector.__wrapped__(path)


def test_the_soft_argmax_reads_cells_as_pixels():
    logits = torch.zeros(1, 1, CELLS, CELLS)
    logits[0, 0, 5, 20] = 1000.0
    assert expected_points(logits).tolist() == [[[20.5 * 4 - 0.5, 5.5 * 4 - 0.5]]]
    assert expected_points(torch.zeros(1, 1, CELLS, CELLS)).tolist() == [[[63.5, 63.5]]]


# --- training ---------------------------------------------------------------------------------------------------


def blobs(points, size=SIDE):
    """Pictures with one bright spot each, at points [N, 2]."""
    ticks = torch.arange(size).float()
    x, y = (torch.exp(-0.5 * ((ticks - points[:, axis, None]) / 2.0) ** 2) for axis in (0, 1))
    return (y[:, :, None] * x[:, None, :])[:, None].expand(-1, 3, -1, -1).contiguous()


def test_points_move_with_the_picture(tools):
    points = torch.tensor([[40.0, 70.0], [64.0, 50.0], [90.0, 60.0], [70.0, 80.0], [50.0, 55.0], [75.0, 66.0]])
    moved, at = tools.augment.move(blobs(points), points[:, None], torch.Generator().manual_seed(5))
    weight = moved[:, 0] / moved[:, 0].sum(dim=(1, 2), keepdim=True)
    ticks = torch.arange(SIDE).float()
    seen = torch.stack([(weight.sum(1) * ticks).sum(1), (weight.sum(2) * ticks).sum(1)], dim=1)
    assert torch.allclose(seen, at[:, 0], atol=0.05)
    assert (at[:, 0] - points).norm(dim=1).max() > 5


def test_degraded_pictures_stay_pictures(tools):
    image = blobs(torch.full((8, 2), 64.0))
    changed = tools.augment.degrade(image, torch.Generator().manual_seed(1))
    assert changed.shape == image.shape
    assert changed.abs().max() <= 1
    assert (changed - image).abs().mean(dim=(1, 2, 3)).min() > 0.01


def test_only_landmarks_in_the_picture_are_asked_for(tools):
    points = torch.tensor([[[64.0, 64.0], [-3.0, 64.0], [64.0, 127.5], [1.0, 126.0]]])
    assert tools.augment.visible(points, SIDE).tolist() == [[True, False, False, True]]
    heat = tools.augment.target_heat(points[:, :1], SIDE, CELLS)
    assert heat.sum().item() == pytest.approx(1)
    assert torch.allclose(expected_points(heat.log()), points[:, :1], atol=0.05)


def test_a_killed_training_run_goes_on_as_it_would_have(tools, rendered, tmp_path, monkeypatch):
    """Interrupted after a checkpoint and resumed: the same weights to the bit."""
    trainer = tools.train_landmarks
    pictures, truth = rendered
    repeats = trainer.HELD_OUT // FRESH + 2
    pool = SimpleNamespace(
        images=np.tile(np.stack(pictures).transpose(0, 3, 1, 2), (repeats, 1, 1, 1)),
        landmarks=np.tile(truth, (repeats, 1, 1)),
        total=repeats * FRESH,
    )
    monkeypatch.setattr(trainer, "BATCH", 2)
    monkeypatch.setattr(trainer, "SAVE_STEPS", 2)
    monkeypatch.setattr(trainer, "errors", lambda network, pool, count: np.zeros(1))

    def weights(run, steps=5):
        run.mkdir(exist_ok=True)
        network = trainer.train(argparse.Namespace(run=run, steps=steps, seed=3), pool)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    whole = weights(tmp_path / "whole")
    loss_of, calls = trainer.loss_of, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "loss_of", killed)
        with pytest.raises(KeyboardInterrupt):
            weights(tmp_path / "killed")
    assert torch.equal(weights(tmp_path / "killed"), whole)
