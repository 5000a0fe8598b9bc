"""The drag ops against the materialised oracle, in float64: values, gradients, borders, batches, layouts, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draggan_fast import DragError, ops
from tests import materialised

CASES = [  # feature h×w, image H×W: usual, not a multiple, not square, feature larger than the image, tiny
    ((16, 16), (64, 64)),
    ((16, 16), (50, 70)),
    ((8, 12), (64, 40)),
    ((32, 32), (20, 24)),
    ((4, 4), (4, 4)),
    ((1, 1), (9, 9)),
]


def points(draw, n, image_size):
    height, width = image_size
    xs = draw(st.lists(st.integers(0, width - 1) | st.sampled_from([0, width - 1]), min_size=n, max_size=n))
    ys = draw(st.lists(st.integers(0, height - 1) | st.sampled_from([0, height - 1]), min_size=n, max_size=n))
    return torch.tensor([xs, ys], dtype=torch.float32).reshape(2, n).T


@st.composite
def drags(draw):
    (h, w), image_size = draw(st.sampled_from(CASES))
    batch, channels = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3, 32]))
    n = draw(st.sampled_from([0, 1, 2, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    feature = torch.randn(batch, channels, h, w, generator=generator, dtype=torch.float64)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced"]))
    if layout == "channels_last":
        feature = feature.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        feature = torch.randn(batch, channels, h, 2 * w, generator=generator, dtype=torch.float64)[..., ::2]
    stacked = [torch.stack([points(draw, n, image_size) for _ in range(batch)]) for _ in range(2)]
    active = torch.tensor(
        draw(st.lists(st.booleans(), min_size=batch * n, max_size=batch * n)), dtype=torch.bool
    ).reshape(batch, n)
    return feature, *stacked, active, draw(st.integers(1, 6)), image_size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drags())
def test_motion_supervision(case):
    feature, handles, targets, active, r1, size = case
    loss, grad = ops.motion_supervision(feature, handles, targets, active, r1, size)
    expected_loss, expected_grad = materialised.motion_supervision(feature, handles, targets, active, r1, size)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    assert torch.allclose(grad, expected_grad, rtol=1e-6, atol=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drags())
def test_point_tracking(case):
    feature, handles, elsewhere, active, r2, size = case
    reference = ops.sample_feature(feature, elsewhere, size)
    found, distance = ops.point_tracking(feature, reference, handles, active, r2, size)
    expected, expected_distance = materialised.point_tracking(feature, reference, handles, active, r2, size)
    assert torch.equal(found, expected)
    assert torch.allclose(distance.double(), expected_distance, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(drags(), st.sampled_from(["half", "random", "all", "none"]))
def test_mask_loss(case, kind):
    feature, *_, size = case
    generator = torch.Generator().manual_seed(1)
    feature0 = torch.randn(feature.shape, generator=generator, dtype=torch.float64)
    movable = (torch.rand(feature.shape[0], *size, generator=generator) > 0.5).double()
    if kind == "half":
        movable[:, :, size[1] // 2 :] = 1
    elif kind in ("all", "none"):
        movable.fill_(kind == "all")
    loss, grad = ops.mask_loss(feature, feature0, movable, size)
    expected_loss, expected_grad = materialised.mask_loss(feature, feature0, movable, size)
    assert torch.allclose(loss.double(), expected_loss, rtol=1e-5, atol=1e-7)
    assert torch.allclose(grad, expected_grad, rtol=1e-6, atol=1e-9)


def one_case(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(2, 8, 16, 16, generator=generator, dtype=dtype)
    handles = torch.tensor([[[10.0, 12.0], [0.0, 63.0]], [[33.0, 31.0], [63.0, 0.0]]])
    targets = torch.tensor([[[20.0, 12.0], [5.0, 50.0]], [[30.0, 40.0], [60.0, 9.0]]])
    return feature, handles, targets, torch.ones(2, 2, dtype=torch.bool)


def test_ties_go_to_the_first_in_row_major_order():
    feature = torch.ones(1, 3, 8, 8)
    handles = torch.tensor([[[10.0, 12.0]]])
    reference = torch.ones(1, 1, 3)
    found, distance = ops.point_tracking(feature, reference, handles, torch.ones(1, 1, dtype=torch.bool), 3, (32, 32))
    assert found.tolist() == [[[7.0, 9.0]]]
    assert distance.tolist() == [[0.0]]


def test_near_and_inactive_points_contribute_nothing():
    feature, handles, _, active = one_case()
    near = handles + torch.tensor([1.0, 0.0])
    loss, grad = ops.motion_supervision(feature, handles, near, active, 3, (64, 64))
    assert loss.tolist() == [0, 0]
    assert not grad.any()
    far = handles + 5
    loss, grad = ops.motion_supervision(feature, handles, far, ~active, 3, (64, 64))
    assert loss.tolist() == [0, 0]
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features(dtype):
    """Arithmetic is float32: the only error is the feature's own rounding, which the oracle gets too."""
    feature, handles, targets, active = one_case()
    feature = feature.to(dtype)
    loss, grad = ops.motion_supervision(feature, handles, targets, active, 4, (64, 64))
    expected, expected_grad = materialised.motion_supervision(feature.double(), handles, targets, active, 4, (64, 64))
    assert grad.dtype == dtype
    assert torch.allclose(loss.double(), expected, rtol=1e-5)
    assert torch.allclose(grad.double(), expected_grad, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_loss_is_differentiable():
    feature, handles, targets, active = one_case(torch.float64)
    feature.requires_grad_()
    loss, grad = ops.motion_supervision(feature, handles, targets, active, 3, (64, 64))
    scale = torch.tensor([2.0, -3.0])
    (loss * scale).sum().backward()
    assert torch.allclose(feature.grad, grad * scale[:, None, None, None].double())


def test_opcheck():
    feature, handles, targets, active = one_case()
    feature.requires_grad_()
    size = [64, 64]
    reference = ops.sample_feature(feature.detach(), handles, (64, 64))
    movable = torch.zeros(2, 64, 64)
    for operator, arguments in [
        (torch.ops.draggan_fast.motion_supervision, (feature, handles, targets, active, 3, size)),
        (torch.ops.draggan_fast.point_tracking, (feature.detach(), reference, handles, active, 3, size)),
        (torch.ops.draggan_fast.mask_loss, (feature, feature.detach() + 1, movable, size)),
        (torch.ops.draggan_fast.sample_feature, (feature.detach(), handles, size)),
    ]:
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": torch.zeros(3, 4, 4)}, "feature must have the shape"),
        ({"feature": torch.zeros(2, 8, 16, 16, dtype=torch.long)}, "float tensor"),
        ({"feature": torch.zeros(2, 0, 16, 16)}, "feature must have from 1"),
        ({"handle_points": torch.zeros(1, 2, 2)}, "handle_points must have the shape"),
        ({"handle_points": torch.zeros(2, 2, 2).long()}, "handle_points must be a float"),
        ({"handle_points": torch.zeros(2, 2, 2, device="meta")}, "handle_points is on meta"),
        ({"target_points": torch.zeros(2, 3, 2)}, "target_points must have the shape"),
        ({"active": torch.zeros(2, 2)}, "active must be a bool"),
        ({"r1": 0}, "r1 must be"),
        ({"r1": 2.5}, "r1 must be"),
        ({"r1": 1 << 40}, "r1 must be"),
        ({"image_size": (0, 4)}, "image_size"),
        ({"image_size": (4, 1 << 15)}, "image_size"),
    ],
)
def test_bad_arguments_name_themselves(change, message):
    feature, handles, targets, active = one_case()
    arguments = {
        "feature": feature, "handle_points": handles, "target_points": targets,
        "active": active, "r1": 3, "image_size": (64, 64),
    }  # fmt: skip
    with pytest.raises(DragError, match=message):
        ops.motion_supervision(**{**arguments, **change})


def test_bad_arguments_of_the_other_ops():
    feature, handles, _, active = one_case()
    with pytest.raises(DragError, match="reference_feature must have"):
        ops.point_tracking(feature, torch.zeros(2, 2, 7), handles, active, 3, (64, 64))
    with pytest.raises(DragError, match="r2 must be"):
        ops.point_tracking(feature, torch.zeros(2, 2, 8), handles, active, -1, (64, 64))
    with pytest.raises(DragError, match="feature0 must have"):
        ops.mask_loss(feature, feature[:1], torch.zeros(2, 64, 64), (64, 64))
    with pytest.raises(DragError, match="feature0 must have the feature's dtype"):
        ops.mask_loss(feature, feature.half(), torch.zeros(2, 64, 64), (64, 64))
    with pytest.raises(DragError, match="movable_mask is on meta"):
        ops.mask_loss(feature, feature, torch.zeros(2, 64, 64, device="meta"), (64, 64))
    with pytest.raises(DragError, match="reference_feature is on meta"):
        ops.point_tracking(feature, torch.zeros(2, 2, 8, device="meta"), handles, active, 3, (64, 64))
    with pytest.raises(DragError, match="movable_mask must have"):
        ops.mask_loss(feature, feature, torch.zeros(64, 64), (64, 64))
    with pytest.raises(DragError, match="points must have"):
        ops.sample_feature(feature, handles[0], (64, 64))
