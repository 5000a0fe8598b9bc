"""Winograd's convolution: the specification against a direct one, the compiled one against the specification."""

import pytest
import torch
import torch.nn.functional as F
from draggan_fast.kernels import winograd as spec

from draggan_fast import ops, synthesis_ops
from draggan_fast.packed_conv import PackedConv, winograd_pays

LEVELS = ops.compiled_parts().get("levels", [])
NEEDS_LIBRARY = pytest.mark.skipif(not LEVELS, reason="draggan_fast._C is not compiled here")
# (batch, channels, output channels, height, width): whole tiles, parts of tiles, lanes left over, many tiles.
SHAPES = [
    (1, 16, 32, 16, 16),
    (2, 7, 5, 9, 11),
    (1, 33, 18, 4, 3),
    (3, 1, 1, 1, 2),
    (1, 24, 20, 92, 95),
    (3, 8, 8, 53, 60),
]
ROUNDING = 1e-5  # ten times the usual error of outputs around 1
PADDINGS = [(1, 1), (0, 0), (2, 2), (1, 2)]


CASES = [
    (shape, pads) for shape in SHAPES for pads in PADDINGS if shape[3] + 2 * pads[0] >= 3 <= shape[4] + 2 * pads[1]
]


def case(batch, channels, out_channels, height, width, padding, dtype=torch.float64):
    """x, weight and what a direct convolution of float64 makes of them."""
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    weight = torch.randn(out_channels, channels, 3, 3, dtype=torch.float64) / (3 * channels**0.5)
    x, weight = x.to(dtype), weight.to(dtype)
    expected = F.conv2d(x.double(), weight.double(), padding=padding)
    return x.contiguous(memory_format=torch.channels_last), weight, expected


@pytest.mark.parametrize(("shape", "padding"), CASES)
def test_the_specification_is_a_convolution(shape, padding):
    x, weight, expected = case(*shape, padding)
    found = spec.winograd_conv(x, spec.transform_weight(weight), len(weight), padding)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12, check_stride=False)
    assert found.is_contiguous(memory_format=torch.channels_last)


@NEEDS_LIBRARY
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("shape", "padding"), CASES)
def test_the_compiled_one_computes_what_is_specified(shape, padding, level, vector_level):
    vector_level(level)
    x, weight, expected = case(*shape, padding, dtype=torch.float32)
    panels = spec.transform_weight(weight)
    with ops.forced_backend("cpp"):
        found = synthesis_ops.winograd_conv(x, panels, len(weight), padding)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, atol=ROUNDING, rtol=0, check_stride=False)
    with ops.forced_backend("reference"):
        slow = synthesis_ops.winograd_conv(x, panels, len(weight), padding)
    torch.testing.assert_close(found, slow, atol=ROUNDING, rtol=0)


@NEEDS_LIBRARY
def test_it_is_about_as_exact_as_a_direct_convolution():
    x, weight, expected = case(1, 256, 64, 32, 32, (1, 1), dtype=torch.float32)

    def error(found):
        return float((found.double() - expected).norm() / expected.norm())

    direct = error(F.conv2d(x, weight, padding=1))
    ours = error(synthesis_ops.winograd_conv(x, spec.transform_weight(weight), len(weight), (1, 1)))
    assert ours < 2e-6  # 1.1e-6; with the usual points twice as much
    assert ours < 2.5 * direct


@NEEDS_LIBRARY
@pytest.mark.parametrize("size", [16, 64, 100])  # few tiles, several, many
def test_no_result_depends_on_the_thread_count(size):
    x, weight, _ = case(1, 64, 48, size, size, (1, 1), dtype=torch.float32)
    panels = spec.transform_weight(weight)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(synthesis_ops.winograd_conv(x, panels, len(weight), (1, 1)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@NEEDS_LIBRARY
def test_inside_inference_mode():
    x, weight, expected = case(1, 48, 48, 64, 64, (1, 1), dtype=torch.float32)
    with torch.inference_mode():
        found = synthesis_ops.winograd_conv(x.clone(), spec.transform_weight(weight), len(weight), (1, 1))
    torch.testing.assert_close(found.double(), expected, atol=ROUNDING, rtol=0, check_stride=False)


@NEEDS_LIBRARY
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, p: (x.double(), p, 20, [1, 1]), "float32"),
        (lambda x, p: (x.contiguous(), p, 20, [1, 1]), "channels-last"),
        (lambda x, p: (x, p[:35], 20, [1, 1]), r"\[36, 2, 8, 16\]"),
        (lambda x, p: (x, p[..., 1:2].expand(36, 2, 8, 16), 20, [1, 1]), "contiguous"),
        (lambda x, p: (x, p.double(), 20, [1, 1]), "float32"),
        (lambda x, p: (x, p, 0, [1, 1]), "out_channels"),
        (lambda x, p: (x, p, 33, [1, 1]), r"\[36, 3, 8, 16\]"),
        (lambda x, p: (x, p, 20, [3, 1]), "padding"),
        (lambda x, p: (x, p, 20, [1]), "padding"),
        (lambda x, p: (x[:, :, :2], p, 20, [0, 1]), "channels-last|smaller"),
    ],
)
def test_what_it_cannot_compute_is_refused_in_a_sentence(change, sentence):
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    panels = torch.randn(36, 2, 8, 16)
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.draggan_fast_native.winograd_conv(*change(x, panels))


# --- when it is taken -----------------------------------------------------------------------------------------------


def test_small_maps_are_convolved_directly():
    assert winograd_pays((1, 16, 16), (1, 1))
    assert winograd_pays((1, 14, 14), (0, 0))
    assert winograd_pays((9, 4, 4), (1, 1))
    assert not winograd_pays((1, 8, 8), (1, 1))  # four tiles
    assert not winograd_pays((9, 2, 2), (1, 1))  # a quarter of each tile


@NEEDS_LIBRARY
def test_who_computes_a_packed_convolution(monkeypatch):
    asked = []
    real = synthesis_ops.winograd_conv
    monkeypatch.setattr(synthesis_ops, "winograd_conv", lambda *given: asked.append(given[0].shape) or real(*given))
    weight = torch.randn(64, 48, 3, 3)

    def asks(conv, x):
        asked.clear()
        torch.testing.assert_close(
            conv(x), F.conv2d(x, weight[: conv_channels(conv)], padding=1), atol=1e-4, rtol=1e-4, check_stride=False
        )
        return bool(asked)

    def conv_channels(conv):
        return 24 if conv is narrow else 64

    wide, narrow = PackedConv(weight.clone, (1, 1), (32, 32)), PackedConv(weight[:24].clone, (1, 1), (32, 32))
    large, small = (torch.randn(1, 48, s, s).contiguous(memory_format=torch.channels_last) for s in (32, 8))
    assert asks(wide, large)
    assert not asks(wide, small)
    assert not asks(narrow, large)  # too few channels
    with ops.forced_backend("reference"):
        assert not asks(wide, large)
        assert not asks(PackedConv(weight.clone, (1, 1), (32, 32)), large)
    of_small_maps = PackedConv(weight.clone, (1, 1), (8, 8))
    assert not asks(of_small_maps, large)  # its weights were never transformed
    total = torch.zeros(1, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    wide.add_to(total, large)
    torch.testing.assert_close(total, wide(large))


@NEEDS_LIBRARY
def test_a_transformed_weight_outlives_a_change_in_place():
    weight = torch.randn(48, 48, 3, 3)
    before = weight.clone()
    conv = PackedConv(weight.clone, (1, 1), (16, 16), lambda: weight._version)
    weight.zero_()
    for size in (16, 8):
        x = torch.randn(1, 48, size, size).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(conv(x), F.conv2d(x, before, padding=1), atol=1e-4, rtol=1e-4, check_stride=False)
