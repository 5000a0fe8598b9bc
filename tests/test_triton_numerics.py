"""The Triton kernels, called through their launchers, against the reference in float64: values and gradients.

Where a GPU is at hand they run on it, compiled. Elsewhere Triton's interpreter runs them (conftest.py asks for it):
numpy operations, one program after the other, so the cases are small. It differs from a GPU in one way that shows
here: it cuts float32 off when it stores bfloat16, where a GPU rounds. float16 is rounded in both.
"""

import math

import numpy as np
import pytest
import torch
from draggan_fast.kernels import configs, reference

triton = pytest.importorskip("triton", reason="the Triton kernels need the package triton")
tl = pytest.importorskip("triton.language")

from draggan_fast.kernels import _shared  # noqa: E402 (imports Triton)
from draggan_fast.kernels import mask_loss as mask_loss_kernels  # noqa: E402
from draggan_fast.kernels import motion_supervision as supervision_kernels  # noqa: E402
from draggan_fast.kernels.mask_loss import mask_loss  # noqa: E402
from draggan_fast.kernels.motion_supervision import motion_supervision  # noqa: E402
from draggan_fast.kernels.point_tracking import point_tracking  # noqa: E402
from draggan_fast.kernels.sample_feature import sample_feature  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STORED = {  # dtype → the most that storing a float32 in it may change it, relatively
    torch.float32: 0.0,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8 if DEVICE == "cuda" else 2**-7,
}
CASES = [  # batch, channels, feature h×w, image H×W, points, radius, dtype, layout
    pytest.param(1, 3, (3, 4), (12, 16), 1, 2, torch.float32, "channels_last", id="multiple"),
    pytest.param(2, 5, (3, 4), (10, 17), 2, 2, torch.float32, "contiguous", id="not-a-multiple"),
    pytest.param(1, 40, (4, 3), (9, 9), 1, 1, torch.bfloat16, "channels_last", id="two-channel-blocks"),
    pytest.param(1, 1, (9, 8), (5, 6), 2, 2, torch.float16, "sliced", id="more-cells-than-pixels"),
    pytest.param(1, 2, (1, 1), (6, 6), 1, 2, torch.float32, "channels_last", id="one-cell"),
    pytest.param(1, 3, (2, 10), (4, 22), 1, 9, torch.float32, "sliced", id="radius-beyond-the-image"),
    pytest.param(2, 2, (2, 2), (5, 5), 0, 1, torch.float32, "channels_last", id="no-points"),
    pytest.param(1, 2, (2, 2), (4, 3), 35, 1, torch.float32, "contiguous", id="more-points-than-bits"),
]


def random_feature(shape, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    if layout == "sliced":
        return torch.randn(*shape[:3], 2 * shape[3], generator=generator).to(DEVICE, dtype)[..., ::2]
    values = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    return values.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else values


def random_points(batch, count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    x = torch.randint(0, width, (batch, count), generator=generator)
    y = torch.randint(0, height, (batch, count), generator=generator)
    return torch.stack([x, y], dim=-1).float().to(DEVICE)


def assert_close(actual, expected, dtype=torch.float32, scale=0.0):
    """Within a few float32 roundings of the largest value, and one rounding to the dtype it is stored in.

    scale: the size of what was subtracted on the way, where the result can be much smaller.
    """
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    if expected.numel():
        rounding = 8 * torch.finfo(torch.float32).eps * max(expected.abs().max().item(), scale)
        assert ((actual.double() - expected).abs() <= rounding + STORED[dtype] * expected.abs()).all()


@pytest.mark.parametrize(("batch", "channels", "cells", "size", "count", "radius", "dtype", "layout"), CASES)
def test_every_op(batch, channels, cells, size, count, radius, dtype, layout):
    feature = random_feature((batch, channels, *cells), dtype, layout, 1)
    feature0 = random_feature((batch, channels, *cells), dtype, "channels_last", 2)
    handles, targets = random_points(batch, count, size, 3), random_points(batch, count, size, 4)
    active = torch.ones(batch, count, dtype=torch.bool, device=DEVICE)
    active[:, 2::3] = False
    movable = torch.rand(batch, *size, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    movable[:, :, size[1] // 2 :] = 1
    exact = feature.double()

    values = sample_feature(feature, targets + 0.25, size)
    assert_close(values, reference.sample_feature(exact, targets + 0.25, size))

    moved, distance = point_tracking(feature, values, handles, active, radius, size)
    expected, expected_distance = reference.point_tracking(exact, values.double(), handles, active, radius, size)
    assert torch.equal(moved, expected)
    assert_close(distance, expected_distance, scale=feature.abs().max().item())

    loss, grad = motion_supervision(feature, handles, targets, active, radius, size)
    expected, expected_grad = reference.motion_supervision(exact, handles, targets, active, radius, size)
    assert_close(loss, expected)
    assert_close(grad, expected_grad, dtype)
    assert grad.stride() == torch.empty_like(feature).stride()

    loss, grad = mask_loss(feature, feature0, movable, size)
    expected, expected_grad = reference.mask_loss(exact, feature0.double(), movable, size)
    assert_close(loss, expected)
    assert_close(grad, expected_grad, dtype)


def test_half_a_patch_outside_and_a_shift_over_the_border():
    """Corners: the shifted sample leaves the image, where U is zero."""
    feature = random_feature((1, 3, 4, 4), torch.float32, "channels_last", 1)
    handles = torch.tensor([[[0, 0], [11, 0], [0, 11], [11, 11]]], device=DEVICE).float()
    targets = torch.tensor([[[-9, -4], [20, -8], [-3, 19], [30, 29]]], device=DEVICE).float()
    active = torch.ones(1, 4, dtype=torch.bool, device=DEVICE)
    loss, grad = motion_supervision(feature, handles, targets, active, 2, (12, 12))
    expected, expected_grad = reference.motion_supervision(feature.double(), handles, targets, active, 2, (12, 12))
    assert_close(loss, expected)
    assert_close(grad, expected_grad)


@pytest.mark.parametrize("cell", [(0, 0), (3, 1), (4, 4)])
def test_supervision_on_a_crop_is_that_of_the_whole(cell):
    """A crop of 4 of 8 cells, 16 pixels a cell: the circle, drawn on a stretched grid, depends on where it lies."""
    x, y = cell
    whole = random_feature((1, 3, 8, 8), torch.float32, "channels_last", 1)
    crop = whole[:, :, y : y + 4, x : x + 4].contiguous(memory_format=torch.channels_last)
    origin = torch.tensor([[16 * x, 16 * y]], device=DEVICE)
    handles = torch.tensor([[[32.0, 30.0]]], device=DEVICE)
    targets, active = handles + 9, torch.ones(1, 1, dtype=torch.bool, device=DEVICE)
    loss, grad = motion_supervision(crop, handles, targets, active, 5, (64, 64), origin, (128, 128))
    shift = origin[:, None].float()
    expected, expected_grad = reference.motion_supervision(
        whole.double(), handles + shift, targets + shift, active, 5, (128, 128)
    )
    assert_close(loss, expected)
    assert_close(grad, expected_grad[:, :, y : y + 4, x : x + 4])


def test_the_same_input_gives_the_same_bits():
    feature = random_feature((1, 4, 3, 3), torch.float32, "channels_last", 1)
    handles, targets = random_points(1, 3, (9, 9), 3), random_points(1, 3, (9, 9), 4)
    active = torch.ones(1, 3, dtype=torch.bool, device=DEVICE)
    movable = torch.zeros(1, 9, 9, device=DEVICE)
    first, second = (
        [
            *motion_supervision(feature, handles, targets, active, 1, (9, 9)),
            *mask_loss(feature, feature.flip(1), movable, (9, 9)),
        ]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_masks_of_any_type(dtype):
    feature, feature0 = (random_feature((1, 2, 2, 2), torch.float32, "contiguous", seed) for seed in (1, 2))
    movable = (torch.arange(24, device=DEVICE).reshape(1, 4, 6) % 3 == 0).to(dtype)
    loss, grad = mask_loss(feature, feature0, movable, (4, 6))
    expected, expected_grad = reference.mask_loss(feature.double(), feature0.double(), movable, (4, 6))
    assert_close(loss, expected)
    assert_close(grad, expected_grad)


def test_a_radius_of_millions():
    """The window ends where the image does, so no launch and no product of sizes grows with the radius."""
    feature = random_feature((1, 2, 2, 2), torch.float32, "contiguous", 1)
    handles, targets = random_points(1, 1, (5, 6), 3), random_points(1, 1, (5, 6), 4) + 9
    active, radius = torch.ones(1, 1, dtype=torch.bool, device=DEVICE), 1 << 24
    values = reference.sample_feature(feature, targets - 9, (5, 6))
    moved, _ = point_tracking(feature, values, handles, active, radius, (5, 6))
    assert torch.equal(moved, targets - 9)
    loss, grad = motion_supervision(feature, handles, targets, active, radius, (5, 6))
    expected, expected_grad = reference.motion_supervision(feature.double(), handles, targets, active, 20, (5, 6))
    assert_close(loss, expected)
    assert_close(grad, expected_grad)


@triton.jit
def _round(values, out, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(out + index, _shared.rounded_pixel(tl.load(values + index)))


def test_halves_are_rounded_to_even():
    values = [-2.5, -1.5, -0.5, -0.4999, 0.0, 0.49999997, 0.5, 1.5, 2.5, 3.5, 1023.5, -7.7, 511.49997, 8.25, 1e6, 4e6]
    values = torch.tensor(values, device=DEVICE)
    out = torch.empty(16, dtype=torch.int32, device=DEVICE)
    _round[(1,)](values, out, BLOCK=16)
    assert torch.equal(out, values.round().int())


def test_no_coordinate_leads_far_away():
    values = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 1e9], device=DEVICE)
    out = torch.empty(8, dtype=torch.int32, device=DEVICE)
    with np.errstate(invalid="ignore"):  # comparing NaN, in the interpreter
        _round[(1,)](values, out, BLOCK=8)
    assert (out.abs() == 1 << 22).all()


@triton.jit
def _patch(handle, out, r1, width, height, SIDE: tl.constexpr):
    x = tl.load(handle).to(tl.int32) - SIDE // 2 + tl.arange(0, SIDE)
    y = tl.load(handle + 1).to(tl.int32) - SIDE // 2 + tl.program_id(0) + tl.zeros([SIDE], tl.int32)
    square = supervision_kernels.stretched_square(x, width, tl.load(handle))
    square += supervision_kernels.stretched_square(y, height, tl.load(handle + 1))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    member = inside & (square < r1.to(tl.float64) * r1.to(tl.float64))
    tl.store(out + tl.program_id(0) * SIDE + tl.arange(0, SIDE), member.to(tl.int8))


@pytest.mark.parametrize(
    ("size", "handle", "r1"),
    [
        ((256, 256), (153, 204), 2),  # (153/255, 204/255) is (3/5, 4/5): pixels at exactly 1, inside and on the rim
        ((256, 256), (153, 204), 5),
        ((256, 256), (255, 255), 5),  # on the border a 3-4-5 triangle ends exactly on the circle
        ((256, 256), (0, 0), 5),
        ((1024, 1024), (1023, 512), 6),
        ((66, 131), (52, 39), 6),
        ((130, 2), (1, 65), 6),
        ((1024, 1024), (700.25, 13.5), 6),
    ],
)
def test_the_stretched_circle_is_the_reference_s_to_the_last_pixel(size, handle, r1):
    side = 16
    point = torch.tensor(handle, device=DEVICE, dtype=torch.float32)
    out = torch.empty(side, side, dtype=torch.int8, device=DEVICE)
    height, width = size
    _patch[(side,)](point, out, r1, width, height, SIDE=side, enable_fp_fusion=False)
    offset = torch.arange(side, device=DEVICE) - side // 2
    x = (point[0].int() + offset)[None, :].expand(side, side)
    y = (point[1].int() + offset)[:, None].expand(side, side)
    expected = reference.patch_mask(x[None, None], y[None, None], point[None, None], r1, size)
    assert torch.equal(out.bool(), expected[0, 0])


@triton.jit
def _bounds(out, cells, pixels):
    tl.store(out + tl.program_id(0), mask_loss_kernels.first_pixel(tl.program_id(0), cells, pixels))


@pytest.mark.parametrize(("cells", "pixels"), [(4, 16), (5, 13), (13, 5), (1, 7), (7, 1), (3, 3), (8, 9)])
def test_every_pixel_lies_in_one_quad(cells, pixels):
    """The quads' bounds, from 0 to all, are those of the clamped source coordinate in exact arithmetic."""
    out = torch.empty(cells + 1, dtype=torch.int32, device=DEVICE)
    _bounds[(cells + 1,)](out, cells, pixels)
    cell_of = [min(max(((2 * p + 1) * cells - pixels) // (2 * pixels), 0), cells - 1) for p in range(pixels)]
    assert out.tolist() == [sum(cell < bound for cell in cell_of) for bound in range(cells + 1)]


def test_every_launch_has_a_row_and_says_what_it_rests_on():
    device = torch.device("cpu")
    for row in configs.LAUNCHES:
        assert configs.launch(row.kernel, 3, device).block_c == min(row.block_c, 4)
        assert row.measured
    with pytest.raises(LookupError, match="no launch for nothing"):
        configs.launch("nothing", 3, device)
