"""The training script: a tiny run through every stage, a resumed one, and an export that the program loads."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import draggan_fast as dg

LRELU_PAIR = 1.2 * math.sqrt(2)  # lrelu(v) − lrelu(−v) in units of v
TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Runs the script with a pool of a few pictures."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import toy_training.pool
    import train_toy_animals

    for module in (toy_training.pool, train_toy_animals):
        monkeypatch.setattr(module, "HELD_OUT", 24)  # as many as a contact sheet shows

    def run(*arguments):
        base = ["train_toy_animals.py", "--run", str(tmp_path / "run"), "--pool", "4", "--batch", "2", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", [*base, "--no-compile", "--pictures", "4", *map(str, arguments)])
        train_toy_animals.main()

    return run


def test_every_stage_resume_and_export(train, tmp_path, capsys):
    out = tmp_path / "tiny.safetensors"
    train("--stage", "all")
    train("--stage", "finish", "--pictures", "6", "--export", out, "--evaluate")  # goes on from the saved state
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {"psnr", "l1", "gradient_energy"} <= set(printed[-2]) | set(printed[-1])

    model = dg.load(out, device="cpu")
    stages = model.metadata["training"]["stages"]
    assert {name: stage["pictures"] for name, stage in stages.items() if name != "mapping"} == {
        "coarse": 4, "full": 4, "finish": 6, "drag": 4,
    }  # fmt: skip
    assert dg.DragSession(model, seed=0).render().shape == (128, 128, 3)

    train("--run", tmp_path / "again", "--pool-dir", tmp_path / "run" / "pool", "--resume-from", out,
          "--stage", "none", "--export", tmp_path / "copy.safetensors")  # fmt: skip
    copy = dg.load(tmp_path / "copy.safetensors", device="cpu")
    for name, tensor in model.generator.state_dict().items():
        same = copy.generator.state_dict()[name]
        # w_avg is measured anew, by then with weights as float16 has them, which the computed layer amplifies.
        assert (same - tensor).abs().max() <= (1e-2 if name == "mapping.w_avg" else 0), name


def test_stopped_after_white_it_goes_on(train, tmp_path):
    out = tmp_path / "white.safetensors"
    train("--stage", "render")
    train("--stage", "white")
    train("--stage", "white")  # again: nothing
    train("--stage", "drag", "--export", out)
    config = dg.load(out, device="cpu").config
    assert (config.w_dim, len(config.mapping_widths)) == (168, 4)
    train("--run", tmp_path / "on", "--pool-dir", tmp_path / "run" / "pool", "--resume-from", out, "--stage", "white")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum(line.get("event") == "white-end" for line in log) == 1
    assert not (tmp_path / "on" / "log.jsonl").exists(), "it was white already"


# --- the stage drag -----------------------------------------------------------------------------------------------


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import toy_animals
    from toy_training import subspace, tracking

    return SimpleNamespace(toy_animals=toy_animals, subspace=subspace, tracking=tracking)


@pytest.fixture
def pairs(tools):
    draw = torch.Generator().manual_seed(7)
    return tools.tracking.PairsOfAnimals(128, draw, torch.device("cpu")).draw_pairs(2)


def test_a_pair_is_one_animal_in_two_poses(tools, pairs):
    """Landmarks are the renderer's, and a place has the same head-local coordinates in both renders."""
    scene = tools.toy_animals.render(pairs.psi * pairs.latents, 128, maps=True)
    assert torch.equal(scene.landmarks, pairs.landmarks)
    head, x, y = (scene.maps[:, tools.toy_animals.MAPS.index(name)] for name in ("head", "head_x", "head_y"))
    places = pairs.points[:, scene.landmarks.shape[1] :, None]
    seen = tools.tracking.sample(torch.stack([head, x, y], dim=1), places, 128)[:, :, 0]
    visible = (seen[0::2, :, 0] > 0.99) & (seen[1::2, :, 0] > 0.99)
    assert visible.float().mean() > 0.8
    assert (seen[0::2] - seen[1::2])[visible].abs().median() < 1e-3
    assert (pairs.points[0::2] - pairs.points[1::2]).norm(dim=2).mean() > 1


def test_the_tracking_loss_wants_features_that_tell_places_apart(tools, pairs):
    names = tools.toy_animals.MAPS
    maps = tools.toy_animals.render(pairs.psi * pairs.latents, 128, maps=True).maps
    maps = maps[:, [names.index("head_x"), names.index("head_y")]]
    knowing = tools.tracking.tracking_loss(maps, pairs.points, 128)
    blind = tools.tracking.tracking_loss(torch.ones_like(maps), pairs.points, 128)
    astray = pairs.points.clone()
    astray[1::2, :, 0] += 4.0
    assert blind.item() == pytest.approx(math.log((2 * tools.tracking.REACH + 1) ** 2), abs=0.05)
    assert knowing < blind - 0.5
    assert tools.tracking.tracking_loss(maps, astray, 128) > knowing + 0.2


@pytest.mark.parametrize("power", [1.0, 1.3])
def test_a_whitened_network_draws_the_same_and_has_no_idle_direction(tools, monkeypatch, power):
    subspace = tools.subspace
    monkeypatch.setattr(subspace, "POWER", power)
    monkeypatch.setattr(subspace, "SAMPLES", 4096)
    config = dg.GeneratorConfig(
        resolution=16, z_dim=72, w_dim=512, channels=(16, 16, 8), mapping_widths=(128, 512), use_noise=False
    )
    torch.manual_seed(5)
    generator = dg.Generator(config).requires_grad_(False)
    white = subspace.whitened(generator, seed=1).requires_grad_(False)
    mean, directions, _ = subspace.principal(generator, seed=1)
    z = torch.randn(4096, 72, generator=torch.Generator().manual_seed(3))
    w = white.mapping.w(z)
    places = w[:, : subspace.COMPONENTS] - w[:, subspace.COMPONENTS :]
    deviations = places.std(dim=0)
    assert deviations.square().mean() == pytest.approx(LRELU_PAIR**2, rel=0.05)
    if power == 1:
        assert (deviations / deviations.mean() - 1).abs().max() < 0.1
    else:  # what varies most in w is told in the largest units
        assert deviations[:10].mean() < 0.9 * deviations[-10:].mean()
    assert (white.mapping.w_avg - w.mean(dim=0)).abs().max() < 0.1

    inside = mean + (generator.mapping.w(z[:4]) - mean) @ directions.T @ directions
    expected = generator.synthesis(inside[:, None].repeat(1, config.num_ws, 1))
    torch.testing.assert_close(white(z[:4]), expected, atol=1e-3, rtol=1e-3)
    # What is added to a place and to its opposite alike is not listened to.
    ws = w[:4, None].repeat(1, config.num_ws, 1)
    both = torch.randn(4, config.num_ws, subspace.COMPONENTS).repeat(1, 1, 2)
    torch.testing.assert_close(white.synthesis(ws + both), white.synthesis(ws), atol=1e-3, rtol=1e-3)
    assert (white.synthesis(ws + torch.randn_like(ws)) - white.synthesis(ws)).abs().max() > 0.02


def test_without_held_out_pictures_nothing_is_begun(train, tmp_path):
    with pytest.raises(SystemExit, match="no held-out pictures"):
        train("--stage", "none", "--export", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
