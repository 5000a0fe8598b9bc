"""Packed convolutions: the same numbers at every size, and no weight laid out anew at a warm step."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import draggan_fast as dg
from draggan_fast.frozen import FrozenSynthesis
from draggan_fast.packed_conv import PackedConv, can_pack

needs_onednn = pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="PyTorch without oneDNN")


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("channels", [(80, 128), (256, 256)])
def test_every_size_gives_what_a_convolution_gives(kernel: int, channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(channels[1], channels[0], kernel, kernel) / 30
    pad = (kernel // 2, kernel // 2)
    conv = PackedConv(weight.clone, pad, (16, 16))
    for batch, height, width in [(1, 16, 16), (1, 8, 8), (1, 9, 8), (5, 10, 10), (3, 11, 9), (1, 64, 64)]:
        x = channels_last(batch, channels[0], height, width)
        expected = F.conv2d(x, weight, padding=pad)
        torch.testing.assert_close(conv(x), expected, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(conv(x), expected, atol=2e-4, rtol=1e-4)
        wide = (kernel - 1, kernel - 1)
        torch.testing.assert_close(conv(x, padding=wide), F.conv2d(x, weight, padding=wide), atol=2e-4, rtol=1e-4)
        total = channels_last(*expected.shape)
        sum_ = total + expected
        conv.add_to(total, x)
        torch.testing.assert_close(total, sum_, atol=2e-4, rtol=1e-4)


@needs_onednn
def test_sizes_share_packings_and_many_sizes_do_not_pile_up() -> None:
    conv = PackedConv(torch.randn(128, 256, 2, 2).clone, (0, 0), (16, 16))
    for batch in range(1, 9):
        for size in range(4, 40):
            conv(channels_last(batch, 256, size, size))
    kept = list(conv._forms.values())
    assert len(kept) <= 256
    assert len({id(form) for form in kept}) <= 4, "oneDNN has a handful of layouts"


@needs_onednn
def test_weights_changed_in_place_afterwards_are_not_taken_up() -> None:
    weight = torch.randn(64, 64, 3, 3)
    before = weight.clone()
    conv = PackedConv(weight.clone, (1, 1), (16, 16), lambda: weight._version)
    weight.zero_()
    x = channels_last(1, 64, 9, 9)
    torch.testing.assert_close(conv(x), F.conv2d(x, before, padding=1), atol=1e-4, rtol=1e-4)


@needs_onednn
def test_other_weights_and_inference_tensors() -> None:
    """A network that is given other weights later keeps drawing with those it was frozen with."""
    config = dg.GeneratorConfig(
        resolution=16, z_dim=8, w_dim=8, channels=(32, 32, 16), mapping_widths=(8,), use_noise=False
    )
    with torch.inference_mode():
        made_for_inference = FrozenSynthesis(dg.Generator(config), 2, torch.float32)
        assert made_for_inference.forward(torch.zeros(1, config.num_ws, 8)).feature.shape == (1, 16, 16, 16)
    generator = dg.Generator(config)
    conv = FrozenSynthesis(generator, 2, torch.float32).layers[0].conv
    x = channels_last(1, 32, 6, 6)
    expected = F.conv2d(x, generator.synthesis.blocks[0].conv1.weight.detach().clone(), padding=1)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in generator.state_dict().items()}
    generator.load_state_dict(zeros, assign=True)
    torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_frozen_network_stays_what_it_was_whatever_its_weights_become():
    config = dg.GeneratorConfig(
        resolution=32, z_dim=16, w_dim=16, channels=(48, 48, 40, 36), mapping_widths=(16,), use_noise=False
    )
    generator = dg.Generator(config).freeze()
    frozen = FrozenSynthesis(generator, 2, torch.float32)
    w_plus = torch.randn(1, config.num_ws, 16)
    trace = frozen.forward(w_plus)
    picture, gradient = frozen.render(trace, w_plus), frozen.backward(trace, trace.feature)
    for parameter in generator.parameters():
        parameter.zero_()
    again = frozen.forward(w_plus)
    assert torch.equal(again.feature, trace.feature)
    assert torch.equal(frozen.render(again, w_plus), picture)
    assert torch.equal(frozen.backward(again, again.feature), gradient)


WARM_STEP = """
import sys, torch
import draggan_fast as dg
torch.set_num_threads(int(sys.argv[1]))
session = dg.DragSession(dg.load("toy-animals", precision="fp32"), seed=29)
session.set_points([(60, 70)], [(80, 60)])
for _ in range(3):
    session.step()
    session.render()
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    session.step()
    session.render()
"""


@needs_onednn
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_warm_step_lays_no_weight_out_anew(threads: str) -> None:
    # With AVX2, whose layouts differ most from size to size, whatever this CPU has beyond.
    told = subprocess.run(
        [sys.executable, "-c", WARM_STEP, threads],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(",") for line in told.stdout.splitlines() if line.startswith("onednn_verbose")]
    made = [line for line in lines if "exec" in line[3:4]]
    assert sum(line[5] == "convolution" for line in made) > 4, "oneDNN said nothing of its work"
    # The small ones are of the picture's three channels and the FIR on them.
    reordered = [line[-2] for line in made if line[5] == "reorder"]
    assert not [sizes for sizes in reordered if math.prod(int(size) for size in sizes.split("x")) > 1 << 16]
