"""``draggan-fast bench``: the record's contract, honest refusals, comparison. No test asserts a time."""

import contextlib
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from draggan_fast.bench import (
    against,
    bench_command,
    benchmark_ops,
    compare,
    engines,
    machine,
    materialised,
    op_cases,
    op_memory,
    probe,
    rows,
    tables,
    timing,
    verify,
    workloads,
)
from draggan_fast.bench.options import SUITES, Options
from draggan_fast.bench.suites import floor, frame, ops, scaling, step
from draggan_fast.kernels import reference

import draggan_fast as dg
from draggan_fast import DragError
from draggan_fast import ops as public_ops
from draggan_fast.cli import main
from tests.test_cli import refused

CPU = torch.device("cpu")
PROMISED = {
    "suite", "name", "engine", "resolution", "points", "mask", "precision", "p20_ms", "p50_ms", "p80_ms",
    "ratio_to_published", "peak_mb",
}  # fmt: skip


@pytest.fixture
def rosinality(golden):
    return str(golden / "rosinality" / "rosinality.pt")


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch):
    """A machine of 100 GFLOP/s and 10 GB/s: measuring the real one takes seconds."""
    kinds = {"matmul": "GFLOP/s", "conv": "GFLOP/s"}
    readings = {f"{k}_{p}": floor.Reading(u, 100.0, 1.0, {}) for k, u in kinds.items() for p in ("fp32", "bf16")}
    for level in ("", "llc_", "cached_"):
        readings |= {level + kind: floor.Reading("GB/s", 10.0, 1.0, {}) for kind in ("copy", "read", "fill")}
    against.ceilings.cache_clear()
    monkeypatch.setattr(floor, "ceilings", lambda device, threads: floor.Ceilings(device, threads, 0, readings))
    yield
    against.ceilings.cache_clear()


def options_for(*models, **changes):
    """The smallest request: three repeats of each variant, one point, no mask."""
    values = {
        "suites": (), "models": models, "resolutions": (), "points": (1,), "masks": ("none",), "every_case": True,
        "engines": ("published", "reference"), "precisions": None, "device": CPU, "threads": 1, "quick": True,
        "seconds": 0.0,
    }  # fmt: skip
    return Options(**(values | changes))


# --- what is measured, and how ----------------------------------------------------------------------------------


def test_variants_take_turns_and_the_order_turns_round():
    calls = []
    times = timing.alternate([partial(calls.append, name) for name in "abc"], repeats=2, warm_up=1, device=CPU)
    assert "".join(calls) == "abccbaabc"
    assert [len(t) for t in times] == [2, 2, 2]


def test_never_fewer_than_three_repeats_nor_more_than_asked():
    counts = [0, 0]

    def count(index):
        counts[index] += 1

    variants = [partial(count, 0), partial(count, 1)]
    times = timing.alternate_within(variants, seconds=0.0, device=CPU, warm_up=2)
    assert counts == [5, 5]
    assert [len(t) for t in times] == [3, 3]
    times = timing.alternate_within(variants, seconds=60.0, device=CPU, most=7)
    assert [len(t) for t in times] == [7, 7]


def test_percentiles_and_paired_ratios():
    found = timing.summary([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert found == {"p20_ms": 2.0, "p50_ms": 3.5, "p80_ms": 5.0, "noise": pytest.approx(3 / 7)}
    factor, noise = timing.ratio([10.0, 20.0, 40.0], [1.0, 2.0, 4.0])
    assert (factor, noise) == (10.0, 0.0)  # the drift is in both and cancels


def test_cold_inputs_rotate():
    made = []

    def make():
        made.append(object())
        return made[-1]

    copies = timing.rotation(make, bytes_each=10, total=35)
    seen = [next(copies) for _ in range(8)]
    assert len(made) == 4
    assert seen == made + made


@pytest.mark.parametrize("resolution", [64, 256, 1024])
@pytest.mark.parametrize("n", [1, 5, 16, 64])
def test_points_are_distinct_and_inside(resolution, n):
    handles, targets = workloads.default_points(resolution, n)
    assert len(set(handles)) == len(handles) == len(targets) == n
    assert all(0 <= v < resolution for point in (*handles, *targets) for v in point)
    assert all(math.dist(h, t) > 2 for h, t in zip(handles, targets))


def test_the_random_network_is_the_same_every_time_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, second = workloads.random_model(8), workloads.random_model(8)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [m.generator.synthesis.blocks[1].conv0.weight for m in (first, second)]
    assert torch.equal(*weights)
    assert not weights[0].requires_grad
    assert first.config.channels == (512, 512)


def test_a_step_of_the_published_width_is_four_times_30_6_giga_multiply_adds_counted_twice():
    config = dg.GeneratorConfig(1024, 512, 512, workloads.CONFIG_F, workloads.MAPPING_F)
    assert workloads.step_gflop(config, 5) == pytest.approx(4 * 30.58, rel=1e-3)


def test_the_crawling_drag_never_arrives(small):
    drag = workloads.crawling_drag(small, "reference", "fp32", points=4, mask="half")
    for _ in range(3):
        drag.step()
    assert not drag.done
    assert drag.loss > 0


def test_materialised_ops_compute_what_the_reference_computes():
    for case in op_cases.op_cases(CPU, points=(1, 5), image=48, shape=(7, 12, 12)):
        feature = case.feature()
        arguments = case.arguments(feature)
        expected = getattr(reference, case.op)(feature, *arguments)
        found = case.published(cold=False)()
        if case.op in ("motion_supervision", "mask_loss"):
            assert found[0] == pytest.approx(expected[0].item(), rel=1e-5), case.name
            assert (found[1] - expected[1]).abs().max() <= 1e-5 * expected[1].abs().max(), case.name
        elif case.op == "point_tracking":
            assert torch.equal(found, expected[0])
        else:
            assert (found - expected).abs().max() < 1e-5


def test_inactive_points_are_left_alone_by_the_materialised_way():
    torch.manual_seed(0)
    feature, handles = torch.randn(1, 3, 8, 8), torch.tensor([[[4.0, 5.0]]])
    off = torch.zeros(1, 1, dtype=torch.bool)
    assert torch.equal(materialised.point_tracking(feature, torch.randn(1, 1, 3), handles, off, 3, (16, 16)), handles)


def test_extra_memory_is_counted_to_the_byte():
    def run():
        large = torch.zeros(1000, 256)  # 1 024 000 bytes, gone when the small one is made
        small = large[:10].clone()
        del large
        return small

    assert op_memory.extra_bytes(run, CPU) == 1_024_000 + 10_240


def test_the_mode_in_its_own_process_pays_for_itself_alone(rosinality):
    ballast = np.ones(300_000_000, dtype=np.uint8)  # 300 MB here must not show there
    found = probe.probe("published", rosinality, threads=1)
    assert found["resolution"] == 64
    assert 0 < found["baseline_mb"] <= found["loaded_mb"] <= found["peak_mb"]
    assert found["peak_mb"] < found["baseline_mb"] + 290  # with triton installed, torch.optim imports it
    assert all(found[key] > 0 for key in ("import_ms", "load_ms", "first_picture_ms", "first_step_ms", "warm_step_ms"))
    assert ballast.all()


def test_a_mode_that_fails_in_its_process_says_why(monkeypatch):
    done = subprocess.CompletedProcess(
        [], 1, stdout="", stderr="Traceback …\ndraggan_fast.errors.DragError: No room.\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(DragError, match=r"published on m failed in its own process: No room"):
        probe.probe("published", "m")


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setattr(machine.sys, "argv", ["/somewhere/bin/draggan-fast", "bench", "--json", "/home/me/out.json"])
    found = machine.machine()
    assert found["command"] == ["draggan-fast", "bench", "--json", "out.json"]
    assert {"device", "cpu", "cpu_flags", "threads", "torch", "python", "commit", "date"} <= set(found)
    json.dumps(found)


def test_a_wheel_inside_somebody_elses_checkout_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site-packages" / "draggan_fast" / "machine.py"))
    assert machine.commit() == "unknown"


# --- rows and suites --------------------------------------------------------------------------------------------


def test_every_row_has_every_promised_key():
    found = rows.row("step", "step", engine="published", p50_ms=1.23456789)
    assert set(found) == set(rows.KEYS) >= PROMISED
    assert found["p50_ms"] == 1.23457
    assert found["mask"] is None
    with pytest.raises(ValueError, match="p51_ms"):
        rows.row("step", "step", p51_ms=1.0)


def test_step_suite(rosinality):
    found = list(step.rows(options_for(rosinality, points=(1, 5), masks=("none", "half"))))
    assert [(r["points"], r["mask"], r["engine"]) for r in found] == [
        (n, mask, engine) for mask in ("none", "half") for n in (1, 5) for engine in ("published", "reference")
    ]
    for r in found:
        assert set(r) == set(rows.KEYS)
        assert r["verified"] is True
        assert (r["repeats"], r["resolution"], r["precision"], r["threads"]) == (3, 64, "fp32", 1)
        assert r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"]
        assert r["share_of_floor"] == pytest.approx(r["gflop"] / 100 / (r["p50_ms"] / 1e3), rel=1e-2)
    baseline, ours = found[:2]
    assert baseline["ratio_to_published"] == 1.0
    assert ours["ratio_to_published"] == pytest.approx(baseline["p50_ms"] / ours["p50_ms"], rel=1e-2)


def test_without_a_named_suite_masks_go_with_one_point_only():
    request = options_for("x", resolutions=(64, 128), points=(1, 5, 16), masks=("none", "half"), every_case=False)

    def network(name, resolution):
        return SimpleNamespace(name=name, config=SimpleNamespace(resolution=resolution))

    for model in network("random-64", 64), network("named", 128):
        assert request.cases(model) == [(1, "none"), (5, "none"), (16, "none"), (1, "half")]
    assert request.cases(network("random-128", 128)) == [(1, "none"), (1, "half")]


def test_frame_suite(rosinality):
    found = list(frame.rows(options_for(rosinality)))
    assert [r["name"] for r in found] == ["frame", "frame", "encode JPEG", "encode WEBP"]
    assert all(r["p50_ms"] <= r["p95_ms"] <= r["p99_ms"] for r in found)
    assert found[1]["ratio_to_published"] > 0


def test_ops_suite(monkeypatch):
    monkeypatch.setattr(ops, "op_cases", partial(op_cases.op_cases, shape=(8, 16, 16)))
    monkeypatch.setattr(ops, "IMAGE", 256)
    monkeypatch.setattr(op_cases, "COLD_BYTES", 0)
    found = list(ops.rows(options_for()))
    assert {r["points"] for r in found if r["name"] == "point_tracking"} == {1, 16}
    assert {r["name"] for r in found} == {
        "motion_supervision", "point_tracking", "sample_feature", "mask_loss", "mask_loss, smooth change",
    }  # fmt: skip
    assert {r["engine"] for r in found} >= {"published", "reference"}
    for r in found:
        assert r["verified"] is True
        assert r["gbytes"] > 0
        assert r["gb_per_s"] == pytest.approx(r["gbytes"] / (r["p50_ms"] / 1e3), rel=1e-2)
    stored = 8 * 64 * 64 * 4 / 1e6  # one feature map at image size
    assert all(r["peak_mb"] >= stored for r in found if r["engine"] == "published")


def test_scaling_suite(rosinality):
    found = list(scaling.rows(options_for(rosinality)))
    assert [(r["name"], r["engine"]) for r in found] == [
        ("points", "published"), ("points", "published"), ("points", "reference"), ("points", "reference"),
        ("batch", "batched"), ("batch", "batched"),
    ]  # fmt: skip
    assert all(r["exponent"] is not None for r in found)
    assert scaling.fitted_exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert scaling.fitted_exponent([5], [3.0]) is None


def test_a_batch_step_is_the_sum_of_its_pictures(small):
    (step_of_two,) = scaling.batched(small, 2).values()
    (step_of_one,) = scaling.batched(small, 1).values()
    assert (step_of_two()[:1] - step_of_one()).abs().max() < 1e-6


def test_memory_and_startup_suites(monkeypatch):
    asked = []

    def fake(engine, model, precision, **rest):
        asked.append((engine, rest.get("mask"), rest.get("picture")))
        times = {"import_ms": 1.0, "load_ms": 2.0, "first_picture_ms": 2.5, "first_step_ms": 3.0}
        times |= {"to_first_step_ms": 5.5, "warm_step_ms": 4.0}
        return times | {"baseline_mb": 1.0, "loaded_mb": 2.0, "peak_mb": 3.0, "resolution": 64, "model": model}

    from draggan_fast.bench.suites import memory, startup

    monkeypatch.setattr(memory, "probe", fake)
    monkeypatch.setattr(startup, "probe", fake)
    found = list(memory.rows(options_for("a", masks=("none", "half"), quick=False)))
    assert asked == [
        (engine, mask, picture)
        for mask in ("none", "half")
        for engine, picture in (("published", False), ("reference", False), ("reference", True))
    ]
    assert [r["name"] for r in found[:3]] == ["step + picture", "step", "step + picture"]
    assert all((r["peak_mb"], r["baseline_mb"]) == (3.0, 1.0) for r in found)
    asked.clear()
    hurried = list(memory.rows(options_for("a", "b", masks=("none", "half"), quick=False, every_case=False)))
    assert ({r["model"] for r in hurried}, {mask for _, mask, _ in asked}) == ({"a", "b"}, {"none"})
    assert {r["model"] for r in memory.rows(options_for("a", "b"))} == {"b"}
    found = list(startup.rows(options_for("a", "b", "c", quick=False)))
    assert {r["model"] for r in found} == {"a", "c"}
    assert {r["repeats"] for r in found} == {startup.REPEATS}
    assert {r["model"] for r in startup.rows(options_for("a", "b", "c"))} == {"c"}
    assert [r["name"] for r in found[:6]] == [
        "import", "load", "first picture", "first step", "first picture and step", "warm step",
    ]  # fmt: skip
    assert [bool(r["ratio_to_published"]) for r in found[:6]] == [False] * 4 + [True] * 2
    assert [r["p50_ms"] for r in found[:6]] == [1.0, 2.0, 2.5, 3.0, 5.5, 4.0]


def test_pytest_benchmark_has_every_way_of_every_case():
    ids = [case.id for case in benchmark_ops.cases()]
    assert len(ids) == len(set(ids)) >= 2 * 8
    assert "motion_supervision-16 point(s)-reference" in ids
    assert "mask_loss-half the picture fixed-published" in ids


def test_pytest_benchmark_writes_its_record(tmp_path):
    root = Path(__file__).resolve().parent.parent
    out = tmp_path / "ops.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "bench/benchmark_ops.py", "-k", "sample_feature and reference",
         "-p", "no:cacheprovider", "--benchmark-json", str(out)],
        cwd=root, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = json.loads(out.read_text())["benchmarks"]
    assert [b["group"] for b in found] == ["sample_feature, 1 point(s)", "sample_feature, 16 point(s)"]
    assert all(b["extra_info"]["gbytes"] > 0 for b in found)


# --- no speed-up for what is wrong ------------------------------------------------------------------------------


@pytest.fixture
def broken_backend(monkeypatch):
    """A backend ``hasty`` whose motion supervision forgets the gradient of the last channel."""
    right = reference.motion_supervision

    def wrong(*arguments):
        loss, gradient = right(*arguments)
        gradient[:, -1] = 0
        return loss, gradient

    real = public_ops.forced_backend

    @contextlib.contextmanager
    def forced(name):
        reference.motion_supervision = wrong if name == "hasty" else right
        try:
            with real("reference"):
                yield
        finally:
            reference.motion_supervision = right

    monkeypatch.setattr(public_ops, "available_backends", lambda op, device_type="cpu": ("reference", "hasty"))
    monkeypatch.setattr(public_ops, "forced_backend", forced)
    monkeypatch.setattr(verify, "_verdicts", {})
    return "hasty"


def test_a_wrong_op_backend_gets_no_speed_up(broken_backend, monkeypatch):
    monkeypatch.setattr(ops, "op_cases", partial(op_cases.op_cases, shape=(8, 16, 16)))
    monkeypatch.setattr(ops, "IMAGE", 256)
    monkeypatch.setattr(op_cases, "COLD_BYTES", 0)
    found = {(r["name"], r["engine"]): r for r in ops.rows(options_for())}
    wrong = found["motion_supervision", broken_backend]
    assert wrong["verified"] is False
    assert wrong["ratio_to_published"] is None
    assert "grad_feature is off by" in wrong["note"]
    assert wrong["p50_ms"] > 0
    assert found["motion_supervision", "reference"]["ratio_to_published"] > 0
    assert found["point_tracking", broken_backend]["verified"] is True
    shown = [line for line in tables.table(list(found.values())).splitlines() if broken_backend in line]
    assert "WRONG" in shown[0]
    assert "×" not in shown[0]


@pytest.mark.parametrize(("dtype", "ok"), [("fp32", True), ("bf16", True), ("fp16", True)])
def test_the_reference_passes_in_every_precision(dtype, ok):
    for op in public_ops.OPS:
        assert verify.verify_op(op, "reference", CPU, dtype).ok is ok


class HastyDrag(engines.SessionDrag):
    """One whose latent runs ahead."""

    @property
    def w_plus(self):
        return super().w_plus + 2e-3


class FailingDrag(engines.SessionDrag):
    def step(self):
        raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(
    ("drag", "words"), [(HastyDrag, "latent is off by 0.002"), (FailingDrag, "RuntimeError: no kernel image")]
)
def test_a_wrong_engine_gets_no_speed_up(monkeypatch, drag, words):
    monkeypatch.setitem(engines.ENGINES, "hasty", engines.Engine("hasty", "", ("fp32",), drag))
    verdict = verify.engine_fault("hasty", "fp32", CPU) if drag is HastyDrag else None
    if drag is FailingDrag:
        verdict = verify.once(("engine", "hasty", "fp32", "failing"), lambda: verify.engine_fault("hasty", "fp32", CPU))
        verdict = verdict.reason
    assert words in verdict
    row = against.compared_row("step", "step", [1.0] * 3, [9.0] * 3, verify.Verdict(verdict), engine="hasty")
    assert row["ratio_to_published"] is None
    assert row["verified"] is False


def test_a_precision_without_a_tolerance_is_not_verified(monkeypatch):
    engine = engines.Engine("rough", "", ("fp8",), engines.SessionDrag)
    monkeypatch.setitem(engines.ENGINES, "rough", engine)
    assert "nothing says yet how far fp8 may stray" in verify.verify_engine("rough", "fp8", CPU).reason


def test_a_wrong_baseline_is_no_yardstick(monkeypatch):
    monkeypatch.setattr(verify, "_verdicts", {("engine", "published", "fp32", "cpu"): verify.Verdict("it is off")})
    monkeypatch.setitem(engines.ENGINES, "fine", engines.Engine("fine", "", ("fp32",), engines.SessionDrag))
    assert verify.verify_engine("reference", "fp32", CPU).reason == "it is off"
    assert "nothing to be faster than" in verify.verify_engine("fine", "fp32", CPU).reason


def test_the_two_engines_agree():
    assert verify.verify_engine("published", "fp32", CPU).ok
    assert verify.verify_engine("reference", "fp32", CPU).ok


# --- comparison -------------------------------------------------------------------------------------------------


def record(*found, cpu="this one"):
    return {"machine": {"cpu": cpu, "gpu": None, "torch": "2"}, "rows": list(found)}


def step_row(engine="reference", **values):
    return rows.row("step", "step", engine=engine, model="m", points=1, noise=0.01, ratio_noise=0.02, **values)


def test_a_slower_ratio_is_a_regression_and_a_slower_machine_is_none():
    before = record(step_row(p50_ms=10.0, ratio_to_published=10.0), step_row("published", p50_ms=100.0))
    after = record(step_row(p50_ms=20.0, ratio_to_published=10.1), step_row("published", p50_ms=202.0), cpu="another")
    assert compare.compare(before, after).regressions == []
    after = record(step_row(p50_ms=10.0, ratio_to_published=8.0), step_row("published", p50_ms=80.0), cpu="another")
    (change,) = compare.compare(before, after).regressions
    assert (change.quantity, change.worse) == ("ratio_to_published", 1.25)
    assert "REGRESSION: step step reference m 1: ratio_to_published 10 → 8, 1.25× worse" in compare.report(
        compare.compare(before, after), "old.json"
    )


def test_noise_is_no_regression_and_memory_is_compared_everywhere():
    before, after = step_row(ratio_to_published=10.0, peak_mb=100.0), step_row(ratio_to_published=9.6, peak_mb=120.0)
    changes = compare.compare(record(before), record(after, cpu="another")).regressions
    assert [c.quantity for c in changes] == ["peak_mb"]
    before["ratio_noise"] = 0.5
    after = step_row(ratio_to_published=8.0, peak_mb=100.0)
    assert compare.compare(record(before), record(after)).regressions == []


def test_what_is_no_longer_right_is_a_regression_and_what_is_missing_is_said():
    before = record(step_row(verified=True, ratio_to_published=2.0), step_row("fast", p50_ms=1.0))
    after = record(step_row(verified=False))
    found = compare.compare(before, after)
    assert [c.quantity for c in found.regressions] == ["verified"]
    assert found.missing == ["step step fast m 1"]
    assert "not measured this time: step step fast m 1" in compare.report(found, "old.json")


# --- the command ------------------------------------------------------------------------------------------------


def test_command_prints_tables_and_writes_the_record(rosinality, tmp_path, capsys):
    out = tmp_path / "new.json"
    arguments = ["bench", "frame", "step", "--quick", "--model", rosinality, "--mask", "none", "--device", "cpu",
                 "--threads", "1", "--json", str(out)]  # fmt: skip
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "step: One iteration of a drag" in captured.out
    assert "frame: What a front-end waits for" in captured.out
    assert "rows → " in captured.out
    assert "bench: step: " in captured.err
    written = json.loads(out.read_text())
    assert set(written) == {"machine", "rows"}
    assert {r["suite"] for r in written["rows"]} == {"step", "frame"}
    assert all(set(r) == set(rows.KEYS) for r in written["rows"])

    slow = json.loads(out.read_text())
    for r in slow["rows"]:
        if r["engine"] == "reference":
            r.update(ratio_to_published=1e6, ratio_noise=0.0)
    old = tmp_path / "old.json"
    old.write_text(json.dumps(slow))
    assert main([*arguments, "--compare", str(old)]) == 0
    assert "REGRESSION: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stepp"], ["suite 'stepp'", "step, frame"]),
        (["--engine", "warp"], ["engine 'warp'", "published, reference"]),
        (["--precision", "fp8"], ["precision 'fp8'"]),
        (["step", "--engine", "reference", "--precision", "bf16"], ["None of the engines", "bf16"]),
        (["--mask", "quarter"], ["mask 'quarter'"]),
        (["--mask", ","], ["--mask", "names nothing"]),
        (["--resolution", "100"], ["power of two", "100"]),
        (["--resolution", "2048"], ["power of two", "2048"]),
        (["--points", "0"], ["'0' is not a list"]),
        (["--points", "65"], ["1 to 64 points"]),
        (["--model", "toy-animals", "--resolution", "64"], ["--resolution", "--model"]),
        (["--model", "nobody"], ["nobody"]),
        (["--model", "random-100"], ["power of two"]),
        (["--device", "tpu"], ["tpu"]),
        (["--threads", "0"], ["--threads"]),
        (["--json", "nowhere/out.json"], ["folder", "nowhere"]),
        (["--json", "out.txt"], [".json"]),
        (["--compare", "missing.json"], ["missing.json"]),
    ],
)
def test_refusals_before_any_work(capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(bench_command, "run_suite", lambda *_: pytest.fail("work was begun"))
    refused(capsys, ["bench", *arguments], *words)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"machine": {}, "rows": [1]}', '{"machine": 1, "rows": []}'])
def test_a_foreign_record_is_refused(capsys, tmp_path, content):
    foreign = tmp_path / "old.json"
    foreign.write_text(content)
    refused(capsys, ["bench", "--compare", str(foreign)], "old.json", "bench --json")


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_what_was_measured_is_kept_however_it_ends(capsys, monkeypatch, tmp_path, ending, code):
    def interrupted(_):
        yield rows.row("step", "step", engine="published", p50_ms=1.0)
        raise ending

    monkeypatch.setattr(step, "rows", interrupted)
    out = tmp_path / "out.json"
    out.write_text("old")
    assert main(["bench", "step", "--model", "toy-animals", "--device", "cpu", "--json", str(out)]) == code
    assert [r["p50_ms"] for r in json.loads(out.read_text())["rows"]] == [1.0]
    assert list(tmp_path.iterdir()) == [out]
    captured = capsys.readouterr()
    assert "published" in captured.out
    assert len(captured.err.strip().splitlines()) == 1


def test_nothing_measured_leaves_the_old_record(monkeypatch, tmp_path, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(step, "rows", interrupted)
    out = tmp_path / "out.json"
    out.write_text("old")
    assert main(["bench", "step", "--model", "toy-animals", "--device", "cpu", "--json", str(out)]) == 130
    assert out.read_text() == "old"
    assert "interrupted" in capsys.readouterr().err


def test_every_suite_exists_and_tells_what_it_is():
    for name in SUITES:
        module = bench_command.import_module(f"draggan_fast.bench.suites.{name}")
        assert callable(module.rows)
        assert bench_command.headline(module.__doc__).endswith((".", ":"))
