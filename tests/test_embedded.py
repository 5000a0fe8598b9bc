"""The embedded model: small, sharp, true to its renderer, and it drags."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from draggan_fast.bench import eval_drags
from draggan_fast.bench.evaluation import Case, Options, Workbench

import draggan_fast as dg
from draggan_fast import checkpoint, models
from draggan_fast.cli import main

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT_SEED, HELD_OUT = 20261122, 8
HASH = "17090343e89c644cf3976be554aed469a5f9c3575d4d76ed7ebddcb528ebdc52"


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
    assert checkpoint.content_hash(stored.tensors, stored.config) == toy.content_hash == HASH


def test_it_draws_what_the_renderer_draws(pairs):
    drawn, rendered = pairs
    psnr = 10 * torch.log10(4 / (drawn - rendered).square().mean(dim=(1, 2, 3)))
    assert psnr.mean() >= 24


def test_it_is_sharp(pairs):
    drawn, rendered = pairs
    assert gradient_energy(drawn) >= 0.85 * gradient_energy(rendered)


def test_every_direction_of_w_is_one_that_pictures_vary_in(toy):
    """w = (lrelu(v), lrelu(−v)): the 84 places v all vary, the first, poses, least, and styles listen to v alone."""
    draw = torch.Generator().manual_seed(1)
    w = toy.generator.mapping.w(torch.randn(4096, toy.config.z_dim, generator=draw))
    one, other = w.chunk(2, dim=1)
    deviations = (one - other).std(dim=0)
    assert 1.2 < deviations.max() / deviations.min() < 4
    assert deviations.argmin() == 0
    ws = w[:1, None].expand(-1, toy.config.num_ws, -1)
    off = torch.randn(1, toy.config.num_ws, one.shape[1], generator=draw).repeat(1, 1, 2)
    torch.testing.assert_close(toy.generator.synthesis(ws + off), toy.generator.synthesis(ws), atol=5e-3, rtol=0)


def test_no_picture_is_made_of_the_channels_for_tracking(toy):
    """The last 16 of the tracked block: whatever they hold, the picture is the same."""
    block = toy.drag_config().feature_block
    ws = toy.generator.mapping(torch.randn(1, toy.config.z_dim, generator=torch.Generator().manual_seed(2)))
    activations = toy.generator.features(ws, block)
    changed = activations.x.clone()
    changed[:, -16:] = torch.randn(changed[:, -16:].shape, generator=torch.Generator().manual_seed(3))
    without = activations._replace(outputs=(*activations.outputs[:-1], changed))
    assert torch.equal(toy.generator.render(without, ws), toy.generator.render(activations, ws))


def test_what_is_dragged_really_moves():
    """Five seeded drags of 16 to 23 pixels, by the landmark detector and not by the drag's own tracker."""
    bench = Workbench(Options("drags", "toy-animals", "cpu", seed=5, max_steps=150))
    names = ("nose", "eye_left", "mouth_right", "chin", "cheek_left")
    records = [eval_drags.measure(bench, Case("ours", engine="fast"), bench.detector.index(name)) for name in names]
    assert [record["landmarks"] for record in records] == [[name] for name in names]
    assert all(record["success_tracker"] for record in records)
    ways = np.array([record["way"][0] for record in records])
    assert ways.mean() >= 0.85
    assert ways.min() >= 0.6  # the chin, of which there is little to see
    assert np.median([record["left"][0] for record in records]) <= 4


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
