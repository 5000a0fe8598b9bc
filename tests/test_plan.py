"""``draggan-fast plan``: what it counts is exact, what it predicts is what a fresh process then needs."""

import json

import pytest
import torch
from draggan_fast.bench import plan_command, planning
from draggan_fast.bench.counting import LiveMemory
from draggan_fast.bench.probe import probe, resident_mb

import draggan_fast as dg
from draggan_fast.cli import main
from draggan_fast.cli_measure import memory

MB = 1_000_000


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_live_memory_by_hand(device):
    with LiveMemory(heap_limit=2000) as counted:
        a = torch.zeros(1000, device=device)  # 4000 bytes, 4032 in steps of 64
        assert (counted.live, counted.heap) == (4032, 0)
        b = a * 2
        view = b[10:20]
        del b
        assert counted.live == 2 * 4032  # the view keeps the whole
        del view
        assert counted.live == 4032
        c = torch.zeros(16, device=device)
        assert (counted.live, counted.heap, counted.swing) == (4032 + 64, 64, 64)
        counted.watch_swing()
        del c
        assert (counted.heap, counted.swing) == (0, 64)
    assert counted.peak == 2 * 4032


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_autograd_keeps_is_counted(device):
    x = torch.zeros(1 << 10, requires_grad=True, device=device)  # made outside: not counted
    with LiveMemory() as counted:
        y = x.exp()
        z = y.exp()  # both are kept for the backward
        del y
        assert counted.live == 2 * 4096
        z = z.sum()
        assert counted.live == 2 * 4096 + 64
        torch.autograd.grad(z, x)
        del z
    assert counted.live == 0
    # At the peak y and z are there, the product that is the gradient of y, the sum and its gradient.
    assert counted.peak == 3 * 4096 + 2 * 64


def test_the_meta_device_counts_what_the_cpu_allocates(small):
    """The truncated synthesis and its backward, on real tensors and on none."""
    peaks = []
    for device in ("cpu", "meta"):
        with torch.device("meta"):
            generator = dg.Generator(small.config).freeze()
        if device == "cpu":
            generator = small.generator
        ws = torch.zeros(1, small.config.num_ws, small.config.w_dim, device=device, requires_grad=True)
        with LiveMemory() as counted:
            feature = generator.features(ws, 4).x
            torch.autograd.grad(feature.square().sum(), ws)
            del feature
        peaks.append(counted.peak)
    assert peaks[0] == peaks[1]


def test_nothing_is_allocated():
    before = resident_mb()
    if before is None:
        pytest.skip("this system does not tell a process's memory")
    mode = planning.Mode("published", "half", True)
    prediction = planning.predict(plan_command.config_f(512), dg.DragConfig(), 1, mode, "cpu", 0)
    assert prediction.tensors > 3e9
    assert resident_mb() - before < 100


def test_more_costs_more():
    network = plan_command.config_f(32)
    config = dg.DragConfig(feature_block=3)

    def tensors(engine, mask, picture, points=1):
        return planning.predict(network, config, points, planning.Mode(engine, mask, picture), "cpu", 0).tensors

    plain = tensors("reference", "none", False)
    assert plain < tensors("reference", "half", False)
    assert plain <= tensors("reference", "none", True)
    assert tensors("fast", "none", False) <= tensors("fast", "none", True) < tensors("fast", "half", True)
    assert plain < tensors("reference", "none", False, points=64)
    assert tensors("reference", "half", True) < tensors("published", "half", True)


def test_every_mode_is_planned():
    assert {mode.engine for mode in planning.modes()} == set(planning.ENGINES)
    assert len(planning.modes()) == 10
    assert planning.modes("reference", "half") == [
        planning.Mode("reference", "half", False),
        planning.Mode("reference", "half", True),
    ]


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        (planning.Mode("published", "half", True), None),
        (planning.Mode("fast", "none", False), None),
        (planning.Mode("fast", "none", True), 256),
    ],
)
def test_a_fresh_process_needs_what_was_predicted(mode, size):
    name, network, config, _ = plan_command.subject(None, size)
    found = probe(mode.engine, name, mask=mode.mask, picture=mode.picture, threads=1)
    if found["peak_mb"] is None:
        pytest.skip("this system does not tell a process's peak memory")
    prediction = planning.predict(network, config, 1, mode, "cpu", int(found["baseline_mb"] * MB))
    assert prediction.total / MB == pytest.approx(found["peak_mb"], rel=0.15)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", "--engine", "reference", "--mask", "none", "--memory", "20GB", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "toy-animals, 128×128" in said
    assert "2 of 2 modes fit" in said
    record = json.loads(out.read_text())
    assert [row["name"] for row in record["rows"]] == ["step", "step + picture"]
    assert all(row["fits"] and row["predicted_mb"] > row["tensors_mb"] > 0 for row in record["rows"])
    assert record["memory_bytes"] == 20 * 10**9


def test_nothing_fits(capsys):
    assert main(["plan", "--engine", "reference", "--memory", "100MB"]) == 1
    assert "No mode fits into 100 MB: the smallest (reference, mask none, step) needs" in capsys.readouterr().out


def test_a_model_that_is_not_here_is_planned_all_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DRAGGAN_FAST_CACHE", str(tmp_path))
    assert main(["plan", "--model", "ffhq-512", "--engine", "reference", "--mask", "none"]) == 0
    said = capsys.readouterr().out
    assert "ffhq-512, 512×512" in said
    assert "not on this machine yet" in said
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_kind_is_read_for_its_configuration(golden):
    name, network, config, note = plan_command.subject(str(golden / "rosinality" / "rosinality.pt"), None)
    assert (network.resolution, config.feature_block, note) == (64, 4, "")
    assert name.endswith("rosinality.pt")


def test_of_safetensors_only_the_header_is_read(monkeypatch):
    monkeypatch.setattr(plan_command, "load_checkpoint", lambda path: pytest.fail("weights were read"))
    _, network, config, _ = plan_command.subject("toy-animals", None)
    assert network.resolution == 128
    assert config == dg.load("toy-animals", device="cpu").drag_config()


def test_a_measured_mode_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan_command, "probe", lambda *_, **__: {"peak_mb": 400.0})
    out = tmp_path / "plan.json"
    assert main(["plan", "--engine", "reference", "--mask", "none", "--check", "--json", str(out)]) == 0
    assert "400 MB" in capsys.readouterr().out
    assert json.loads(out.read_text())["rows"][0]["peak_mb"] == 400.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--memory", "much"], "'much' is not a size"),
        (["--memory", "0GB"], "'0GB' is not a size"),
        (["--engine", "warp"], "not 'warp'"),
        (["--resolution", "100"], "power of two from 8 to 1024"),
        (["--resolution", "64", "--model", "toy-animals"], "either --model or --resolution"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--points", "0"], "1 to 64 points"),
        (["--json", "x.txt"], "must end in .json"),
        (["--mask", "left"], "--mask"),
    ],
)
def test_bad_options(options, sentence, capsys, monkeypatch):
    monkeypatch.setattr(plan_command, "predict", lambda *_: pytest.fail("work was done"))
    assert main(["plan", *options]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_checking_a_model_that_is_not_here_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DRAGGAN_FAST_CACHE", str(tmp_path))
    assert main(["plan", "--model", "ffhq-512", "--check"]) == 2
    assert "models pull ffhq-512" in capsys.readouterr().err


def test_sizes():
    assert memory("4GB") == 4 * 10**9
    assert memory("1.5 GiB") == 3 << 29
    assert memory("800mb") == 800 * 10**6
