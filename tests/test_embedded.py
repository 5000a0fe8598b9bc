"""The embedded model: small, sharp, true to its renderer, and it drags."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import draggan_fast as dg
from draggan_fast import checkpoint, models
from draggan_fast.cli import main

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
    assert psnr.mean() >= 23


def test_it_is_sharp(pairs):
    drawn, rendered = pairs
    assert gradient_energy(drawn) >= 0.6 * gradient_energy(rendered)


@pytest.mark.parametrize("seed", range(5))
def test_it_drags(toy, seed):
    """A point of the face goes 10 pixels sideways, and the picture changes."""
    session = dg.DragSession(toy, seed=seed)
    before = session.render()
    session.set_points([(64, 74)], [(74, 74)])
    result = session.run(max_steps=100)
    assert result.done
    assert result.index > 5
    assert result.distances.max() <= 1
    assert np.abs(session.render().astype(int) - before).mean() > 2


def test_the_demo_reaches_its_target(tmp_path):
    """What ``make demo`` runs."""
    (line,) = [t for t in (ROOT / "Makefile").read_text().splitlines() if "draggan-fast drag" in t]
    arguments = shlex.split(line.replace("$(OUT)", str(tmp_path / "out")))[1:]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["reached"]
    assert len(report["steps"]) > 10
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"before.png", "after.png", "comparison.png", "drag.webp"}


def test_the_readmes_python_example_runs(capsys):
    code = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})
    assert "(128, 128, 3) uint8" in capsys.readouterr().out
