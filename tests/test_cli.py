"""The command line as a user meets it: files written, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import draggan_fast as dg
from draggan_fast import media, ops
from draggan_fast.cli import main


@pytest.fixture
def rosinality(golden):
    return str(golden / "rosinality" / "rosinality.pt")


@pytest.fixture
def drag_arguments(rosinality, tmp_path):
    return ["drag", "--model", rosinality, "--seed", "3", "--device", "cpu", "--lr", "0.003",
            "--handle", "20,30", "--target", "32,30", "--steps", "4", "--out", str(tmp_path / "out")]  # fmt: skip


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def refused(capsys, arguments, *words):
    """The command fails with exit code 2 and one line on stderr that holds the words."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("draggan-fast: error: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in lines[0]


def test_drag_writes_everything(drag_arguments, tmp_path, capsys):
    assert main(drag_arguments) == 3  # four steps are not enough
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "after.png", "before.png", "comparison.png", "drag.webp", "report.json", "session.safetensors",
    ]  # fmt: skip
    assert "not reached after 4 steps" in capsys.readouterr().out
    before, after = read(out / "before.png"), read(out / "after.png")
    assert before.shape == after.shape == (64, 64, 3)
    assert not np.array_equal(before, after)
    with Image.open(out / "drag.webp") as animation:
        assert animation.n_frames == 5
        assert animation.size == (512, 512)
    for name in ("before.png", "after.png", "comparison.png", "drag.webp"):
        assert media.read_provenance(out / name)["digital_source_type"].endswith("trainedAlgorithmicMedia")

    report = json.loads((out / "report.json").read_text())
    assert report["reached"] is False
    assert report["handle_points"] == [[20, 30]]
    assert report["target_points"] == [[32, 30]]
    assert len(report["steps"]) == 4
    assert all(step["ms"] > 0 and step["loss"] > 0 for step in report["steps"])
    session = dg.DragSession.load(out / "session.safetensors", dg.load(drag_arguments[2]))
    assert np.array_equal(session.render(), after)


def test_drag_that_is_there_already(drag_arguments, capsys):
    drag_arguments[drag_arguments.index("--target") + 1] = "21,31"
    assert main([*drag_arguments, "--animation", "none"]) == 0
    assert "nothing was moved" in capsys.readouterr().out


@pytest.mark.parametrize("animation", ["gif", "mp4", "none"])
def test_animation_formats(drag_arguments, tmp_path, animation):
    assert main([*drag_arguments, "--animation", animation, "--no-overlay", "--watermark"]) == 3
    main(drag_arguments)  # a second drag into the same folder leaves nothing of the first
    main([*drag_arguments, "--animation", animation])
    names = {p.name for p in (tmp_path / "out").glob("drag.*")}
    assert names == ({f"drag.{animation}"} if animation != "none" else set())


def test_long_drags_are_thinned(drag_arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("draggan_fast.drag_command.MAX_FRAMES", 5)
    drag_arguments[drag_arguments.index("--steps") + 1] = "17"
    main(drag_arguments)
    with Image.open(tmp_path / "out" / "drag.webp") as animation:
        assert animation.n_frames == 6  # before steps 0, 4, 8, 12, 16, and after the last


def test_mask_latent_and_settings(drag_arguments, rosinality, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    latent = dg.DragSession(dg.load(rosinality, device="cpu"), seed=8).w_plus.numpy()
    np.save(tmp_path / "w.npy", latent)
    changed = [a for a in drag_arguments if a not in ("--seed", "3")]
    assert main([*changed, "--latent", str(tmp_path / "w.npy"), "--movable", str(tmp_path / "mask.png"),
                 "--preset", "paper", "--r1", "8", "--r2", "20", "--feature-block", "3", "--lambda-mask", "5",
                 "--stop-distance", "1.5", "--precision", "fp32", "--threads", "1"]) == 3  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    wanted = {
        "lr": 0.003,
        "r1": 8,
        "r2": 20,
        "feature_block": 3,
        "lambda_mask": 5,
        "stop_distance": 1.5,
        "max_steps": 4,
    }
    assert wanted.items() <= report["config"].items()
    again = ["--latent", str(tmp_path / "out" / "session.safetensors")]
    assert main([*changed, *again]) == 3
    assert main([*drag_arguments, "--space", "w"]) == 3


def test_replay(drag_arguments, rosinality, tmp_path, capsys):
    main(drag_arguments)
    session = str(tmp_path / "out" / "session.safetensors")
    assert main(["replay", session, "--out", str(tmp_path / "again.png")]) == 0
    assert "reproduced: 4 steps" in capsys.readouterr().out
    assert np.array_equal(read(tmp_path / "again.png"), read(tmp_path / "out" / "after.png"))


def test_replay_of_a_record_that_is_not_true(drag_arguments, tmp_path, capsys):
    main(drag_arguments)
    path = tmp_path / "out" / "session.safetensors"
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["w_plus"] += 1
    save_file(tensors, path, metadata=metadata)
    assert main(["replay", str(path)]) == 1
    assert "NOT reproduced" in capsys.readouterr().out


def test_generate(rosinality, tmp_path):
    out = tmp_path / "sheet.png"
    assert main(["generate", "--model", rosinality, "--seeds", "0-3,9", "--columns", "3", "--out", str(out)]) == 0
    with Image.open(out) as sheet:
        assert sheet.size[0] > 3 * 64
    assert media.read_provenance(out)["model"] == "rosinality"


def test_convert_keeps_the_pictures(golden, tmp_path, capsys):
    for family in ("nvlabs/nvlabs.pkl", "tf/tf_legacy.pkl", "rosinality/rosinality.pt"):
        out = tmp_path / "model.safetensors"
        assert main(["convert", str(golden / family), str(out)]) == 0
        printed = capsys.readouterr().out
        assert "×" in printed
        one, other = (dg.DragSession(dg.load(p, device="cpu"), seed=1) for p in (golden / family, out))
        assert one.model.content_hash == other.model.content_hash
        assert np.array_equal(one.render(), other.render())


def test_models_lists_embedded_and_public(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "toy-animals" in printed
    assert "ffhq-1024" in printed


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for op, backend in ops.backends().items():
        assert found["ops"][op].startswith(f"{backend.name}: {backend.reason}")
    assert "compiled library" in found
    assert main(["doctor"]) == 0
    assert "point_tracking" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("DRAGGAN_FAST_BACKEND", "nope"), ("DRAGGAN_FAST_COMPILE", "perhaps")])
def test_doctor_reports_what_is_asked_for_wrongly(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert value in printed
    assert "embedded model" in printed


def test_help_needs_no_torch():
    code = "import sys; from draggan_fast.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_has_help():
    for command in ("drag", "generate", "models", "convert", "replay", "doctor"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0


def replaced(arguments, option, *values):
    """arguments with the option's value changed (or the option removed)."""
    index = arguments.index(option)
    return arguments[:index] + ([option, *values] if values else []) + arguments[index + 2 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: replaced(a, "--handle"), ["at least one --handle"]),
        (lambda a: [*a, "--handle", "1,1"], ["2 --handle but 1 --target"]),
        (lambda a: replaced(a, "--handle", "64,3"), ["(64, 3) lies outside"]),
        (lambda a: replaced(a, "--target", "nan,3"), ["NaN"]),
        (lambda a: replaced(a, "--target", "20,30"), ["at its target already"]),
        (lambda a: replaced(a, "--target", "20.2,29.7"), ["at its target already"]),
        (lambda a: replaced(a, "--handle", "-5,3"), ["(-5, 3) lies outside"]),
        (lambda a: replaced(a, "--out", ""), ["empty"]),
        (lambda a: [*a, "--fps", "0"], ["fps is 0"]),
        (lambda a: [*a, "--r2", "1e6"], ["r2 must be"]),
        (lambda a: [*replaced(a, "--seed"), "--latent", "x.npy", "--psi", "1"], ["--psi and --label"]),
        (lambda a: [*replaced(a, "--seed"), "--latent", "x.txt"], ["x.txt"]),
        (lambda a: replaced(a, "--model", ""), ["empty"]),
        (lambda a: replaced(a, "--model", "a" * 5000 + ".pkl"), ["cannot be a file's path"]),
        (lambda a: replaced(a, "--target", "20"), ["'20' is not a point"]),
        (lambda a: replaced(a, "--steps", "0"), ["max_steps"]),
        (lambda a: replaced(a, "--lr", "-1"), ["lr must be"]),
        (lambda a: replaced(a, "--seed", "-1"), ["seed"]),
        (lambda a: replaced(a, "--model", "toy-animal"), ["toy-animals"]),
        (lambda a: replaced(a, "--model", "no/such/file.pkl"), ["no/such/file.pkl"]),
        (lambda a: replaced(a, "--device", "abacus"), ["abacus"]),
        (lambda a: [*a, "--precision", "fp8"], ["precision"]),
        (lambda a: [*a, "--threads", "0"], ["--threads"]),
        (lambda a: [*a, "--movable", "none.png"], ["none.png"]),
        (lambda a: [*replaced(a, "--seed"), "--latent", "none.npy"], ["none.npy"]),
        (lambda a: [*a, "--frobnicate"], ["--frobnicate"]),
        (lambda a: a[:1], ["--out"]),
        (lambda a: [], ["COMMAND"]),
        (lambda a: ["generate", "--seeds", "9-3", "--out", "x.png"], ["9-3"]),
        (lambda a: ["generate", "--seeds", "a", "--out", "x.png"], ["list of seeds"]),
        (lambda a: ["generate", "--out", "x.jpg"], [".png or .webp"]),
        (lambda a: ["generate", "--out", "no/such/folder/x.png"], ["does not exist"]),
        (lambda a: ["models", "pull"], ["models pull NAME"]),
        (lambda a: ["models", "pull", "ffhq-1025"], ["ffhq-1024"]),
        (lambda a: ["convert", "missing.pkl", "x.safetensors"], ["missing.pkl"]),
        (lambda a: ["convert", "missing.pkl", "x.pkl"], [".safetensors"]),
        (lambda a: ["replay", "missing.safetensors"], ["missing.safetensors"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_two(drag_arguments, capsys, change, words):
    refused(capsys, change(drag_arguments), *words)


def test_bad_masks(drag_arguments, tmp_path, capsys):
    Image.new("L", (63, 64), 255).save(tmp_path / "size.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "zero.png")
    refused(capsys, [*drag_arguments, "--movable", str(tmp_path / "size.png")], "63", "64")
    refused(capsys, [*drag_arguments, "--movable", str(tmp_path / "zero.png")], "zero.png")


def test_corrupt_checkpoint(drag_arguments, tmp_path, capsys):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x02garbage")
    refused(capsys, replaced(drag_arguments, "--model", str(tmp_path / "bad.pkl")), "bad.pkl")


def test_unwritable_folder(drag_arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused(capsys, replaced(drag_arguments, "--out", str(tmp_path / "file" / "out")), "Cannot write to the folder")


@pytest.mark.parametrize("limit", [2_000, 110_000])
def test_full_disk_leaves_old_files_whole(drag_arguments, tmp_path, limit):
    """A second run that meets a full disk (here: a file-size limit) fails in one line; nothing old is damaged.

    The smaller limit stops the session file, the larger one only the comparison picture.
    """
    assert main(drag_arguments) == 3
    out = tmp_path / "out"
    old = {p.name: p.read_bytes() for p in out.iterdir()}
    code = (
        "import resource, signal, sys; from draggan_fast.cli import main; import draggan_fast.commands\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main(sys.argv[1:]))"
    )
    changed = replaced(drag_arguments, "--seed", "4")
    result = subprocess.run([sys.executable, "-c", code, *changed], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("draggan-fast: error: ")
    assert {p.name for p in out.iterdir()} == set(old)
    small = {name for name, data in old.items() if len(data) < limit - 10_000}
    for name, data in old.items():
        assert ((out / name).read_bytes() == data) == (limit < 10_000 or name not in small), name


def test_a_failing_step_keeps_what_was_done(drag_arguments, tmp_path, capsys, monkeypatch):
    step = dg.DragSession.step

    def failing(self):
        if len(self.trajectory) == 2:
            raise dg.DragError("Step 2 is not finite and was taken back.")
        return step(self)

    monkeypatch.setattr(dg.DragSession, "step", failing)
    refused(capsys, drag_arguments, "not finite", "What was done before is in")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["steps"]) == 2
    assert (tmp_path / "out" / "drag.webp").is_file()


def test_output_that_the_terminal_cannot_show(rosinality, tmp_path):
    command = [sys.executable, "-m", "draggan_fast", "generate", "--model", rosinality, "--seeds", "0"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "x.png")],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another process")
def test_ctrl_c_keeps_what_is_done(drag_arguments, tmp_path):
    command = [sys.executable, "-m", "draggan_fast", *replaced(drag_arguments, "--steps", "100000")]
    command[command.index("--lr") + 1] = "1e-7"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as child:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert output.startswith("interrupted after")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"]
    assert (tmp_path / "out" / "session.safetensors").is_file()


def test_debug_shows_the_traceback():
    with pytest.raises(dg.DragError):
        main(["--debug", "replay", "missing.safetensors"])
