"""The training script: a tiny run through every stage, a resumed one, and an export that the program loads."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import draggan_fast as dg

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
        assert (same - tensor).abs().max() <= (1e-3 if name == "mapping.w_avg" else 0), name  # w_avg is measured anew


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


def test_restricted_styles_listen_only_where_w_varies(tools):
    toy = dg.load("toy-animals", device="cpu")
    generator = type(toy.generator)(toy.config)
    generator.load_state_dict(toy.generator.state_dict())
    mean, directions = tools.subspace.principal(generator, seed=1)
    generator = generator.requires_grad_(False)
    tools.subspace.restrict(generator, mean, directions)
    w = generator.mapping.w(torch.randn(1, 72, generator=torch.Generator().manual_seed(3)))
    ws = w[:, None].expand(-1, toy.config.num_ws, -1)
    off = torch.randn(ws.shape, generator=torch.Generator().manual_seed(4))
    off = off - (off @ directions.T) @ directions
    picture = generator.synthesis(ws)
    assert (generator.synthesis(ws + off) - picture).abs().max() < 1e-3
    assert (generator.synthesis(ws + 2 * directions[0]) - picture).abs().max() > 0.02
    state = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    tools.subspace.restrict(generator, mean, directions)
    assert all(torch.allclose(state[name], tensor, atol=1e-5) for name, tensor in generator.state_dict().items())
