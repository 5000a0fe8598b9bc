"""``draggan-fast profile``: the counts are right, the parts cover the step, the page and the trace are well made."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from draggan_fast.bench import counting, parts, profile_page, profile_svg, profiling, trace
from draggan_fast.bench.machine import machine
from draggan_fast.bench.suites import floor
from draggan_fast.bench.suites.floor import Ceilings, Reading

import draggan_fast as dg
from draggan_fast.cli import main
from draggan_fast.generator import StyledConv
from draggan_fast.packed_conv import PackedConv


def reading(unit, best):
    return Reading(unit, best, 1.0, {"p20_ms": 1.0, "p50_ms": 1.0, "p80_ms": 1.0, "noise": 0.0})


@pytest.fixture(scope="module")
def ceilings():
    """Round numbers: 100 GFLOP/s, 10 GB/s from memory, 20 and 40 from the caches."""
    found = {f"{kind}_{p}": reading("GFLOP/s", 100.0) for kind in ("matmul", "conv") for p in ("fp32", "bf16")}
    for level, speed in (("", 10.0), ("llc_", 20.0), ("cached_", 40.0)):
        found |= {level + kind: reading("GB/s", speed) for kind in ("copy", "read", "fill")}
    return Ceilings("cpu", 1, 1 << 28, found | {"launch": reading("µs", 1.0)})


@pytest.fixture(scope="module")
def found(small, ceilings):
    return profiling.profile(small, points=2, mask="half", steps=4, ceilings=ceilings)


# ---- counting --------------------------------------------------------------------------------------------------------


def test_matrix_operations_of_one_layer_by_hand():
    config = dg.GeneratorConfig(8, z_dim=16, w_dim=16, channels=(12, 10), mapping_widths=(16,))
    layer = StyledConv(config, 1, c_in=12, c_out=10, up=True)
    with counting.Operations() as counter, torch.no_grad():
        layer.weight_energy = layer.weight.square().sum(dim=(2, 3))
        counter.by_part.clear()
        layer(torch.randn(1, 12, 4, 4), torch.randn(1, 16))
    style, demodulation = 2 * 12 * 16, 2 * 10 * 12
    transposed = 2 * 12 * 10 * 9 * 4 * 4
    fir = 2 * 10 * 16 * 8 * 8
    assert counter.by_part[""].matrix == style + demodulation + transposed + fir


def test_backward_to_the_input_is_counted_as_much_as_forward():
    x, weight = torch.randn(1, 6, 5, 5, requires_grad=True), torch.randn(4, 6, 3, 3)
    with counting.Operations() as counter:
        y = torch.nn.functional.conv2d(x, weight, padding=1)
        counter.part = "backward"
        torch.autograd.grad(y.sum(), x)
    assert counter.by_part[""].matrix == counter.by_part["backward"].matrix == 2 * 4 * 6 * 9 * 25


@pytest.mark.skipif(not dg.ops.compiled_parts().get("cpu"), reason="draggan_fast._C is not compiled here")
def test_a_winograd_convolution_is_counted_by_its_products():
    conv = PackedConv(torch.randn(40, 32, 3, 3).clone, (1, 1), (18, 16))
    with counting.Operations() as counter:
        conv(torch.randn(2, 32, 18, 16).contiguous(memory_format=torch.channels_last))
    assert counter.by_part[""].matrix == 2 * 36 * (2 * 5 * 4) * 32 * 40


def test_config_f_has_the_30_6_g_multiply_adds_of_the_design():
    config = dg.GeneratorConfig(128, 512, 512, (512,) * 5 + (256,), (512,))
    with torch.device("meta"):
        generator = dg.Generator(config).freeze()
    with counting.Operations() as counter, torch.no_grad():
        generator.features(torch.empty(1, config.num_ws, 512, device="meta"), 5)
    assert counter.by_part[""].matrix / 2 == pytest.approx(30.6e9, rel=0.005)


def test_operations_inside_an_op_are_seen():
    feature, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 8, 8)
    with dg.ops.forced_backend("reference"), counting.Operations() as counter:
        dg.ops.mask_loss(feature, torch.zeros_like(feature), mask, (8, 8))
    # Two interpolations there and two back, all 8 rows at once.
    there, back = 3 * 8 * 4 * 4 + 3 * 8 * 8 * 4, 3 * 8 * 8 * 4 + 3 * 4 * 8 * 4
    assert counter.by_part[""].matrix == 2 * (there + back)


def test_traffic_of_one_layer_by_hand(small):
    block = small.generator.synthesis.blocks[2]
    x, y = torch.empty(1, 16, 8, 8), torch.empty(1, 16, 16, 16)
    weights = sum(t.numel() for t in (*block.conv0.parameters(), *block.conv0.buffers())) * 4
    forward, backward = counting.layer_bytes(block.conv0, x, y)
    assert forward == (16 * 64 + 16 * 256) * 4 + weights
    assert backward == 2 * (16 * 64 + 16 * 256) * 4 + weights


def test_window_of_a_point_in_feature_cells():
    feature = torch.empty(1, 3, 16, 16)
    assert counting.window_bytes(2, 1, feature, (16, 16)) == 6 * 6 * 3 * 4
    assert counting.window_bytes(6, 1, feature, (64, 64)) == 5 * 5 * 3 * 4
    assert counting.window_bytes(50, 8, feature, (16, 16)) == 16 * 16 * 3 * 4  # never more than the map


def test_roofline_is_the_slower_of_the_two_limits(ceilings):
    assert ceilings.least_seconds(100e9, 1) == pytest.approx(1.0)
    assert ceilings.least_seconds(1, 10e9) == pytest.approx(1.0)
    assert ceilings.least_seconds(1, 1 << 20) == pytest.approx((1 << 20) / 40e9)
    assert ceilings.least_seconds(1, 32 << 20) == pytest.approx((32 << 20) / 20e9)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_the_parts_cover_the_step(small, found):
    names = [part.name for part in found.of(profiling.PER_STEP)]
    assert names == parts.step_parts(small, masked=True)
    assert all(part.ms > 0 for part in found.parts), [part for part in found.parts if not part.ms]
    assert found.step_ms == pytest.approx(sum(part.ms for part in found.parts if part.often == "step"))
    by_name = {part.name: part for part in found.parts}
    assert by_name["rest"].ms < 0.5 * found.step_ms
    for block in range(small.drag_config().feature_block + 1):
        assert by_name[parts.forward_part(block)].gflop > 0
        assert by_name[parts.backward_part(block)].gbytes > by_name[parts.forward_part(block)].gbytes * 0.9


def test_a_timeline_loses_no_time():
    timeline = parts.Timeline(torch.device("cpu"))
    seen = []
    timeline.watchers.append(seen.append)
    timeline.switch("outside a step nothing happens")
    with timeline.step():
        with timeline.part("a"):
            timeline.switch("b")
        with timeline.part("a"):
            pass
    assert seen == ["rest", "a", "b", "rest", "a", "rest", None]
    assert set(timeline.steps[0]) == {"rest", "a", "b"}
    (first,) = timeline.steps
    assert sum(first.values()) > 0


def test_dissecting_changes_no_number_and_leaves_nothing_behind(small):
    sessions = [dg.DragSession(small, seed=3) for _ in range(2)]
    for session in sessions:
        session.set_points([(20, 20)], [(40, 30)])
    before = (dg.session.ops.motion_supervision, dg.session.ops.mask_loss)
    timeline = parts.Timeline(torch.device("cpu"))
    for _ in range(2):
        sessions[0].step()
        with parts.dissected(sessions[1], timeline), timeline.step():
            sessions[1].step()
    assert torch.equal(sessions[0].w_plus, sessions[1].w_plus)
    assert (dg.session.ops.motion_supervision, dg.session.ops.mask_loss) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.generator.modules())
    assert "_track" not in vars(sessions[1])


def test_an_engine_nobody_can_cut_is_refused(small, ceilings):
    with pytest.raises(dg.DragError, match="cut the step of reference, fast, not of 'published'"):
        profiling.profile(small, 1, "none", 1, ceilings, engine="published")


# ---- page, trace, record ---------------------------------------------------------------------------------------------


class Collected(HTMLParser):
    """Every text, attribute and tag; fails on tags that do not match."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self, page):
        super().__init__()
        self.texts, self.attributes, self.tags, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_is_whole_and_asks_for_nothing(found):
    page = profile_page.page(found, machine())
    collected = Collected(page)
    for part in found.parts:
        assert part.name in collected.texts, part.name
    assert "script" not in collected.tags
    assert not {"link", "img", "iframe", "object", "image", "use"} & set(collected.tags)
    assert not {name for name, _ in collected.attributes} & {"src", "href", "xlink:href", "onclick", "onload"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)


def test_a_hostile_name_stays_text(found):
    name = '</title><script>alert(1)</script><img src=x onerror="x">&amp;'
    page = profile_page.page(dataclasses.replace(found, model=name), {"cpu": name, "list": [name], "gpu": {name: name}})
    collected = Collected(page)
    assert not {"script", "img"} & set(collected.tags)
    assert any(name in text for text in collected.texts)


def test_labels_overlap_neither_each_other_nor_dots():
    frame = profile_svg.Box(0, 0, 900, 500)
    dots = [(400 + 14 * (i % 5), 200 + 11 * (i // 5), f"{4 << (i % 6)}² backward") for i in range(20)]
    boxes = profile_svg.place_labels(dots, frame)
    marks = [profile_svg.Box(x - 5, y - 5, x + 5, y + 5) for x, y, _ in dots]
    for index, box in enumerate(boxes):
        assert box.within(frame)
        assert not any(box.overlap(other) for other in (*boxes[:index], *boxes[index + 1 :], *marks))


def test_the_trace_has_the_parts_inside_the_steps(small):
    recorded = json.loads(json.dumps(trace.record(profiling.Subject(small, 1, "none"))))
    events = recorded["traceEvents"]
    ranges = [e for e in events if e.get("cat") == "draggan_fast"]
    names = {e["name"] for e in ranges}
    assert set(parts.step_parts(small, masked=False)) | {"mapping", "render", "encode"} == names
    for step in (e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("drag step")):
        inside = [e for e in ranges if step["ts"] <= e["ts"] < step["ts"] + step["dur"]]
        assert {e["name"] for e in inside} == set(parts.step_parts(small, masked=False))
        assert sum(e["dur"] for e in inside) <= step["dur"] * 1.01
    assert any(e.get("args", {}).get("name") == trace.TRACK for e in events if e.get("ph") == "M")


def test_a_picture_too_small_to_drag_in_is_refused(capsys, monkeypatch, ceilings):
    monkeypatch.setattr(floor, "ceilings", lambda device: ceilings)
    assert main(["profile", "--resolution", "8", "--device", "cpu"]) == 2
    assert "8×8 pixels: too few" in capsys.readouterr().err


def test_command(tmp_path, capsys, monkeypatch, ceilings):
    monkeypatch.setattr(floor, "ceilings", lambda device: ceilings)
    files = {kind: tmp_path / f"{kind}.{suffix}" for kind, suffix in (("json", "json"), ("html", "html"))}
    command = ["profile", "--resolution", "32", "--steps", "2", "--mask", "half", "--device", "cpu"]
    assert main([*command, "--json", str(files["json"]), "--html", str(files["html"])]) == 0
    said = capsys.readouterr().out
    assert "The parts sum to" in said
    assert "ratio" in said
    record = json.loads(files["json"].read_text())
    assert record["machine"]["device"] == "cpu"
    by_name = {row["name"]: row for row in record["rows"]}
    assert {"4² forward", "32² backward", "mask", "mapping", "encode", "rest", "step"} <= set(by_name)
    assert by_name["32² forward"]["suite"] == "profile"
    assert by_name["32² forward"]["gflop"] > 0
    assert files["html"].read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "0"], "--steps must be from 1 to 1000"),
        (["--engine", "published"], "not of 'published'"),
        (["--resolution", "100"], "power of two from 8 to 1024"),
        (["--resolution", "64", "--model", "toy-animals"], "either --model or --resolution"),
        (["--points", "65"], "1 to 64 points"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--json", "x.txt"], "must end in .json"),
        (["--html", "no-such-folder/x.html"], "does not exist"),
        (["--trace", "x.json", "--json", "x.json"], "different files"),
        (["--mask", "left"], "--mask"),
        (["--threads", "0"], "--threads must be from 1"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(floor, "ceilings", lambda *_: pytest.fail("work was done"))
    assert main(["profile", "--device", "cpu", *options]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---- the machine's floor ---------------------------------------------------------------------------------------------


def test_floor_rows(monkeypatch):
    monkeypatch.setattr(floor, "LARGE_BYTES", (1 << 20, 1 << 20))
    monkeypatch.setattr(floor, "CACHE_LEVELS", {"cached_": 1 << 16, "llc_": 1 << 18})
    monkeypatch.setattr(floor, "CPU_SIZES", (64, 1, 16, 16))
    found = floor.rows(SimpleNamespace(device="cpu", threads=1))
    by_name = {row["name"]: row for row in found}
    assert {
        "matmul_fp32",
        "matmul_bf16",
        "conv_fp32",
        "conv_bf16",
        "copy",
        "read",
        "fill",
        "cached_copy",
        "launch",
    } <= set(by_name)
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in found)
    assert by_name["matmul_fp32"]["gflops_per_s"] >= 2 * 64**3 / by_name["matmul_fp32"]["p50_ms"] / 1e6
    assert by_name["copy"]["gb_per_s"] > 0
    assert by_name["launch"]["threads"] == 1
