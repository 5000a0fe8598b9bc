"""The ×2 layer by Winograd's way: the specification against direct convolutions, the compiled one against both."""

import pytest
import torch
import torch.nn.functional as F
from draggan_fast.kernels import winograd_up as spec

from draggan_fast import ops, synthesis_ops
from draggan_fast.packed_up import PHASE, PackedUp, up_pays

LEVELS = ops.compiled_parts().get("levels", [])
NEEDS_LIBRARY = pytest.mark.skipif(not LEVELS, reason="draggan_fast._C is not compiled here")
# (batch, channels, output channels, height, width): whole tiles, parts of tiles, lanes left over, many tiles.
SHAPES = [
    (1, 16, 32, 9, 9),
    (2, 7, 5, 8, 11),
    (1, 33, 18, 1, 2),
    (1, 24, 20, 47, 50),
    (3, 8, 8, 16, 4),
]
ROUNDING = 1e-5  # ten times the usual error of outputs around 1


def direct(x, weight):
    """The four phases by the definition."""
    parts = [
        (weight[:, :, list(rows)][:, :, :, list(columns)], (pad_rows, pad_columns))
        for rows, pad_rows in PHASE
        for columns, pad_columns in PHASE
    ]
    return [F.conv2d(x, part, padding=padding) for part, padding in parts]


def case(batch, channels, out_channels, height, width):
    """x, weight, phases and their transpose of other phases; float64."""
    x = torch.randn(batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_channels, channels, 3, 3, dtype=torch.float64) / (2 * channels**0.5)
    phases = direct(x, weight)
    grads = [torch.randn_like(phase) for phase in phases]
    (back,) = torch.autograd.grad(phases, x, grads)
    return x.detach(), weight, [phase.detach() for phase in phases], grads, back


def turned(weight):
    return weight.flip(2, 3).transpose(0, 1)


def laid_out(tensors, dtype=torch.float32):
    return tuple(t.to(dtype).contiguous(memory_format=torch.channels_last) for t in tensors)


def test_the_phases_are_the_transposed_convolution():
    x, weight, phases, _, _ = case(2, 3, 4, 5, 6)
    whole = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    for phase, (i, j) in zip(phases, [(0, 0), (0, 1), (1, 0), (1, 1)]):
        torch.testing.assert_close(phase, whole[:, :, i::2, j::2])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_specification_is_a_transposed_convolution(shape):
    x, weight, phases, grads, back = case(*shape)
    found = spec.winograd_up(x, spec.transform_weight(weight), len(weight))
    for one, expected in zip(found, phases, strict=True):
        torch.testing.assert_close(one, expected, atol=1e-12, rtol=0, check_stride=False)
        assert one.is_contiguous(memory_format=torch.channels_last)
    found_back = spec.winograd_up_transpose(tuple(grads), spec.transform_weight(turned(weight)), x.shape[1])
    torch.testing.assert_close(found_back, back, atol=1e-12, rtol=0, check_stride=False)


@NEEDS_LIBRARY
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_one_computes_what_is_specified(shape, level, vector_level):
    vector_level(level)
    x, weight, phases, grads, back = case(*shape)
    panels = spec.transform_weight(weight.float())
    panels_back = spec.transform_weight(turned(weight).float())
    for backend in ("cpp", "reference"):
        with ops.forced_backend(backend):
            found = synthesis_ops.winograd_up(*laid_out([x]), panels, len(weight))
            found_back = synthesis_ops.winograd_up_transpose(laid_out(grads), panels_back, x.shape[1])
        for one, expected in zip((*found, found_back), (*phases, back), strict=True):
            assert one.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(one.double(), expected, atol=ROUNDING, rtol=0, check_stride=False)


@NEEDS_LIBRARY
def test_it_is_as_exact_as_direct_convolutions():
    x, weight, phases, _, _ = case(1, 256, 64, 16, 16)

    def error(found):
        return float(torch.stack([(a.double() - b).norm() / b.norm() for a, b in zip(found, phases)]).max())

    ours = error(synthesis_ops.winograd_up(*laid_out([x]), spec.transform_weight(weight.float()), len(weight)))
    assert ours < 1.5 * error(direct(x.float(), weight.float()))


@NEEDS_LIBRARY
@pytest.mark.parametrize("size", [8, 16, 50])  # few tiles, several, many
def test_no_result_depends_on_the_thread_count(size):
    x, weight, _, grads, _ = case(1, 64, 48, size, size)
    (x,), grads = laid_out([x]), laid_out(grads)
    panels, panels_back = (spec.transform_weight(w.float()) for w in (weight, turned(weight)))
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            phases = synthesis_ops.winograd_up(x, panels, 48)
            found.append((*phases, synthesis_ops.winograd_up_transpose(grads, panels_back, 64)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@NEEDS_LIBRARY
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, p: (x.double(), p, 20), "float32"),
        (lambda x, p: (x.bfloat16(), p, 20), "float32"),
        (lambda x, p: (x.contiguous(), p, 20), "channels-last"),
        (lambda x, p: (x, p[:24], 20), r"\[25, 2, 8, 16\]"),
        (lambda x, p: (x, p.double(), 20), "float32"),
        (lambda x, p: (x, p, 0), "out_channels"),
    ],
)
def test_what_it_cannot_compute_is_refused_in_a_sentence(change, sentence):
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.draggan_fast_native.winograd_up(*change(x, torch.randn(25, 2, 8, 16)))


@NEEDS_LIBRARY
def test_phases_that_do_not_belong_together_are_refused():
    phases = laid_out([torch.randn(1, 8, h, w) for h, w in ((5, 5), (5, 4), (4, 5), (4, 4))])
    panels = torch.randn(25, 1, 8, 16)
    with pytest.raises(RuntimeError, match=r"even_odd must be .* of the shape \[1, 8, 5, 4\]"):
        torch.ops.draggan_fast_native.winograd_up_transpose(phases[0], phases[0], *phases[2:], panels, 16)
    with pytest.raises(RuntimeError, match=r"\[25, 2, 8, 16\]"):
        torch.ops.draggan_fast_native.winograd_up_transpose(*phases, panels, 17)


# --- when it is taken -----------------------------------------------------------------------------------------------


def test_small_maps_and_few_channels_are_convolved_directly():
    assert up_pays((1, 8, 8), (256, 256))
    assert up_pays((3, 4, 4), (64, 64))
    assert up_pays((1, 4, 4), (256, 256))  # four tiles, and few weights
    assert not up_pays((1, 4, 4), (512, 512))
    assert not up_pays((1, 3, 3), (256, 256))
    assert not up_pays((1, 64, 64), (32, 80))


@NEEDS_LIBRARY
@pytest.mark.parametrize("size", [16, 3])  # of most maps
def test_both_ways_give_the_same(size):
    x, weight, phases, grads, back = case(1, 72, 64, 16, 16)
    (x,), weight, grads = laid_out([x]), weight.float(), laid_out(grads)
    there, back_again = (PackedUp(weight, torch.float32, size, transposed) for transposed in (False, True))
    assert (there._panels is None) == (size == 3)
    for backend in ("cpp", "reference"):
        with ops.forced_backend(backend):
            found = (*there(x), back_again.transpose(grads))
        for one, expected in zip(found, (*phases, back), strict=True):
            torch.testing.assert_close(one.double(), expected, atol=ROUNDING, rtol=0, check_stride=False)


@NEEDS_LIBRARY
@pytest.mark.parametrize("size", [16, 3])
def test_it_outlives_a_change_of_its_weight_in_place(size):
    x, weight, phases, _, _ = case(1, 72, 64, 16, 16)
    (x,), weight = laid_out([x]), weight.float()
    up = PackedUp(weight, torch.float32, size, transposed=False)
    weight.zero_()
    for backend in ("cpp", "reference"):  # the second would take direct convolutions
        with ops.forced_backend(backend):
            found = up(x)
        for one, expected in zip(found, phases, strict=True):
            torch.testing.assert_close(one.double(), expected, atol=ROUNDING, rtol=0, check_stride=False)


def test_on_the_meta_device_it_gives_sizes_and_makes_nothing_else():
    weight = torch.empty(64, 72, 3, 3, device="meta")
    there, back = (PackedUp(weight, torch.float32, 16, transposed) for transposed in (False, True))
    phases = there(torch.empty(2, 72, 16, 16, device="meta"))
    assert [tuple(phase.shape) for phase in phases] == [(2, 64, h, w) for h in (17, 16) for w in (17, 16)]
    assert all(phase.is_contiguous(memory_format=torch.channels_last) for phase in phases)
    assert back.transpose(phases).shape == (2, 72, 16, 16)
