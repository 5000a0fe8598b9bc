"""The embedded model: small, sharp, true to its renderer, and it drags."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import draggan_fast as dg
from draggan_fast import checkpoint, models

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT_SEED, HELD_OUT = 20261122, 8


@pytest.fixture(scope="module")
def toy():
    return dg.load("toy-animals", device="cpu")


@pytest.fixture(scope="module")
def pairs(toy):
    """(pictures of the generator, pictures of the renderer) of the same latents, both [N, 3, 128, 128] in −1…1."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import toy_animals
    finally:
        sys.path.pop(0)
    z = torch.randn(HELD_OUT, toy.config.z_dim, generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    z = z / z.square().mean(dim=1, keepdim=True).sqrt()
    with torch.no_grad():
        return toy.generator(z).clamp(-1, 1), toy_animals.render(z, toy.config.resolution).image


def gradient_energy(images):
    return images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()


def test_it_is_small_and_ours(toy):
    path = models.resolve("toy-animals")
    assert path.stat().st_size <= 12_000_000
    assert toy.metadata["licence"] == "Apache-2.0"
    assert toy.family == "draggan-fast"
    stored = checkpoint.load_checkpoint(path)
    assert checkpoint.content_hash(stored.tensors, stored.config) == toy.content_hash


def test_it_draws_what_the_renderer_draws(pairs):
    drawn, rendered = pairs
    psnr = 10 * torch.log10(4 / (drawn - rendered).square().mean(dim=(1, 2, 3)))
    assert psnr.mean() >= 22


def test_it_is_sharp(pairs):
    drawn, rendered = pairs
    assert gradient_energy(drawn) >= 0.6 * gradient_energy(rendered)


@pytest.mark.parametrize("seed", range(5))
def test_it_drags(toy, seed):
    """A point of the face goes 8 pixels sideways, within the steps the demo has."""
    session = dg.DragSession(toy, seed=seed)
    before = session.render()
    session.set_points([(64, 74)], [(72, 74)])
    result = session.run(max_steps=100)
    assert result.done
    assert result.distances.max() <= session.config.stop_pixels(128, 1)
    assert np.abs(session.render().astype(int) - before).mean() > 1
