"""The training script: a tiny run through every stage, a resumed one, and an export that the program loads."""

import json
import sys
from pathlib import Path

import pytest

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
        "coarse": 4, "full": 4, "finish": 6,
    }  # fmt: skip
    assert dg.DragSession(model, seed=0).render().shape == (128, 128, 3)

    train("--run", tmp_path / "again", "--pool-dir", tmp_path / "run" / "pool", "--resume-from", out,
          "--stage", "none", "--export", tmp_path / "copy.safetensors")  # fmt: skip
    copy = dg.load(tmp_path / "copy.safetensors", device="cpu")
    for name, tensor in model.generator.state_dict().items():
        same = copy.generator.state_dict()[name]
        assert (same - tensor).abs().max() <= (1e-3 if name == "mapping.w_avg" else 0), name  # w_avg is measured anew
