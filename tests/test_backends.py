"""Every backend that can run here, at every level of vector instructions, against the oracles in float64.

The rule for rounding: an error of at most twice that of plain PyTorch (the reference in the same dtype), and of
``ULPS`` roundings of the largest value where that happens to be smaller.
"""

import contextlib
import math

import pytest
import torch
from draggan_fast.kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from draggan_fast import DragError, ops
from tests import materialised

ULPS = 4
LEVELS = ops.compiled_parts().get("levels", [])
BACKENDS = [
    *[name for name in ops.available_backends("mask_loss") if name != "cpp"],
    *[f"cpp-{level}" for level in LEVELS],
]
# Triton's interpreter takes seconds where others take none: it gets small cases, and tests/test_triton*.py of its own.
FAST = [name for name in BACKENDS if name != "triton"]
CROP_CELLS = [(0, 0), (8, 6), (20, 20), (3, 20)]
NATIVE = torch.ops.draggan_fast_native
CASES = [  # channels, feature h×w, image H×W
    (1, (16, 16), (64, 64)),
    (3, (8, 12), (64, 40)),
    (63, (16, 16), (50, 70)),
    (256, (4, 6), (33, 47)),
    (65, (9, 33), (20, 24)),  # more cells than pixels; more rows than a band of mask_loss, on two sides
    (3, (32, 8), (20, 24)),
    (5, (1, 1), (9, 9)),
    (32, (4, 4), (4, 4)),
    (3, (7, 1), (20, 9)),
    (2, (20, 20), (1, 40)),
]


@contextlib.contextmanager
def backend(name):
    """ops served by one of BACKENDS."""
    name, _, level = name.partition("-")
    if not level:
        with ops.forced_backend(name):
            yield
        return
    from draggan_fast import _C

    before = _C.build_info()["level"]
    _C.set_level(level)
    try:
        with ops.forced_backend(name):
            yield
    finally:
        _C.set_level(before)


def random(shape, seed, dtype=torch.float32, layout="channels_last"):
    """A feature map of that dtype and memory layout."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "sliced":
        wide = torch.randn(*shape[:3], 2 * shape[3], generator=generator).to(dtype)
        return wide[..., ::2]
    values = torch.randn(shape, generator=generator).to(dtype)
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    return values.transpose(2, 3).contiguous().transpose(2, 3) if layout == "transposed" else values


@st.composite
def drags(draw, counts=(0, 1, 2, 5)):
    channels, (h, w), (height, width) = draw(st.sampled_from(CASES))
    batch, n = draw(st.sampled_from([1, 3])), draw(st.sampled_from(counts))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"]))
    feature = random((batch, channels, h, w), draw(st.integers(0, 1000)), dtype, layout)

    def points():
        x = st.sampled_from([0, width - 1]) | st.integers(0, width - 1)
        y = st.sampled_from([0, height - 1]) | st.integers(0, height - 1)
        pairs = draw(st.lists(st.tuples(x, y), min_size=batch * n, max_size=batch * n))
        return torch.tensor(pairs, dtype=torch.float32).reshape(batch, n, 2)

    handles, targets = points(), points()
    active = torch.tensor(draw(st.lists(st.booleans(), min_size=batch * n, max_size=batch * n)), dtype=torch.bool)
    return feature, handles, targets, active.reshape(batch, n), draw(st.integers(1, 6)), (height, width)


def assert_close(actual, plain, expected, slack=0.0):
    """actual is as near to expected (float64) as the rule above asks; plain is PyTorch's result in actual's dtype."""
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return
    assert torch.isfinite(actual).all()
    of_plain = ((plain.double() - expected).abs() - slack).clamp(min=0).max()
    bound = 2 * of_plain + ULPS * torch.finfo(actual.dtype).eps * expected.abs().max() + slack
    assert ((actual.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=drags())
def test_motion_supervision(name, case):
    feature, handles, targets, active, r1, size = case
    with backend(name):
        loss, grad = ops.motion_supervision(*case)
    plain_loss, plain_grad = reference.motion_supervision(*case)
    expected_loss, expected_grad, slack = materialised.loss_and_grad(
        materialised.motion_supervision, feature.double(), handles, targets, active, r1, size
    )
    assert loss.dtype == torch.float32
    assert grad.dtype == feature.dtype
    assert grad.stride() == torch.empty_like(feature).stride()
    assert_close(loss, plain_loss, expected_loss)
    assert_close(grad, plain_grad, expected_grad, slack)


def assert_found(found, distance, case, references, r2):
    """Each handle stands on the nearest pixel of its window, or on one that is as near but for float32's rounding."""
    feature, handles, _, active, _, size = case
    expected, expected_distance = reference.point_tracking(feature.double(), references, handles, active, r2, size)
    rounding = 1e-5 * math.sqrt(feature.shape[1])
    assert ((distance.double() - expected_distance).abs() <= rounding).all()
    there = reference.sample_feature(feature.double(), found, size) - references.double()
    assert (((there.norm(dim=-1) - expected_distance).abs() <= rounding) | ~active).all()
    assert ((found - handles).abs() <= r2).all()
    assert ((found == expected).all(-1) | (expected_distance > 0)).all()


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=drags())
def test_point_tracking(name, case):
    feature, handles, elsewhere, active, r2, size = case
    references = reference.sample_feature(feature, elsewhere, size)
    with backend(name):
        found, distance = ops.point_tracking(feature, references, handles, active, r2, size)
    assert_found(found, distance, case, references, r2)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=drags(), kind=st.sampled_from(["half", "binary", "any", "all", "none", "pixel"]))
def test_mask_loss(name, case, kind):
    feature, *_, size = case
    generator = torch.Generator().manual_seed(1)
    feature0 = torch.randn(feature.shape, generator=generator).to(feature.dtype)
    movable = torch.rand(feature.shape[0], *size, generator=generator)
    if kind == "half":
        movable = torch.zeros_like(movable)
        movable[..., size[1] // 2 :] = 1
    elif kind == "pixel":
        movable = (movable != movable.amax(dim=(1, 2), keepdim=True)).float()
    elif kind != "any":
        movable = {"binary": (movable > 0.5).float(), "all": movable.clone().fill_(1), "none": movable * 0}[kind]
    with backend(name):
        loss, grad = ops.mask_loss(feature, feature0, movable, size)
    plain_loss, plain_grad = reference.mask_loss(feature, feature0, movable, size)
    expected_loss, expected_grad, slack = materialised.loss_and_grad(
        materialised.mask_loss, feature.double(), feature0.double(), movable.double(), size
    )
    assert grad.dtype == feature.dtype
    assert grad.stride() == torch.empty_like(feature).stride()
    assert_close(loss, plain_loss, expected_loss)
    assert_close(grad, plain_grad, expected_grad, slack)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=drags())
def test_sample_feature(name, case):
    feature, points, _, _, _, size = case
    outside = torch.tensor([-1.0, 0.0]).expand(points.shape[0], 1, 2)
    points = torch.cat([points + 0.25, points, outside], dim=1)
    with backend(name):
        values = ops.sample_feature(feature, points, size)
    assert values.dtype == torch.float32
    expected = reference.sample_feature(feature.double(), points, size)
    assert_close(values, reference.sample_feature(feature, points, size), expected)
    assert not values[:, -1].any()


def one_case(dtype=torch.float32, channels=40):
    """Two pictures, points in corners and on borders, patches that overlap."""
    feature = random((2, channels, 16, 16), 3, dtype)
    handles = torch.tensor([[[10, 12], [0, 63], [12, 12]], [[33, 31], [63, 0], [34, 33]]]).float()
    targets = torch.tensor([[[20, 12], [5, 50], [3, 3]], [[30, 40], [60, 9], [33, 1]]]).float()
    return feature, handles, targets, torch.ones(2, 3, dtype=torch.bool), 6, (64, 64)


def small_case():
    feature = random((1, 3, 4, 4), 3)
    handles, targets = torch.tensor([[[3, 2], [0, 7]]]).float(), torch.tensor([[[6, 2], [3, 5]]]).float()
    return feature, handles, targets, torch.ones(1, 2, dtype=torch.bool), 2, (8, 8)


def all_ops(case):
    """The results of every op on a case, as one flat list."""
    feature, handles, targets, active, radius, size = case
    movable = torch.zeros(feature.shape[0], *size)
    movable[:, : size[0] // 3] = 0.25
    movable[:, :, 7 * size[1] // 9 :] = 1
    references = ops.sample_feature(feature, targets, size)
    return [
        *ops.motion_supervision(feature, handles, targets, active, radius, size),
        *ops.point_tracking(feature, references, handles, active, radius, size),
        *ops.mask_loss(feature, feature.flip(1), movable, size),
        references,
    ]


@pytest.mark.parametrize("name", FAST)
def test_many_points(name):
    feature, *_, size = one_case()
    generator = torch.Generator().manual_seed(5)
    handles, targets = (torch.randint(0, 64, (2, 64, 2), generator=generator).float() for _ in range(2))
    case = (feature, handles, targets, torch.ones(2, 64, dtype=torch.bool), 6, size)
    with backend(name):
        loss, grad = ops.motion_supervision(*case)
    expected_loss, expected_grad, slack = materialised.loss_and_grad(
        materialised.motion_supervision, feature.double(), *case[1:]
    )
    plain_loss, plain_grad = reference.motion_supervision(*case)
    assert_close(loss, plain_loss, expected_loss)
    assert_close(grad, plain_grad, expected_grad, slack)


@pytest.mark.parametrize("name", BACKENDS)
def test_overlapping_patches_on_borders(name):
    case = one_case() if name != "triton" else small_case()
    feature, _, targets, _, radius, size = case
    with backend(name):
        results = all_ops(case)
    expected_loss, expected_grad, slack = materialised.loss_and_grad(
        materialised.motion_supervision, feature.double(), *case[1:]
    )
    plain_loss, plain_grad = reference.motion_supervision(*case)
    assert_close(results[0], plain_loss, expected_loss)
    assert_close(results[1], plain_grad, expected_grad, slack)
    assert_found(results[2], results[3], case, reference.sample_feature(feature, targets, size), radius)


@pytest.mark.parametrize("name", FAST)
def test_points_that_take_no_part(name):
    feature, handles, targets, active, r1, size = one_case()
    nan = torch.full_like(handles, math.nan)
    for start, end, flags in [
        (handles, handles + torch.tensor([1.0, 0.0]), active),  # |d| = 1
        (handles, handles, active),
        (handles, targets, ~active),
        (nan, targets, active),
        (handles, nan, active),
        (nan, nan, ~active),
        (handles + 1e6, handles, active),  # the patch lies outside the image
    ]:
        with backend(name):
            loss, grad = ops.motion_supervision(feature, start, end, flags, r1, size)
        assert loss.tolist() == [0, 0]
        assert not grad.any()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e9, -20.0, 2.0**31, 64 + 40])
def test_absurd_points_harm_nobody(name, value):
    feature, handles, targets, active, r1, size = one_case()
    references = reference.sample_feature(feature, handles, size)
    absurd = handles.clone()
    absurd[:, 0, 0] = value
    expected, expected_grad = reference.motion_supervision(feature, absurd, targets, active, r1, size)
    with backend(name):
        loss, grad = ops.motion_supervision(feature, absurd, targets, active, r1, size)
        found, distance = ops.point_tracking(feature, references, absurd, active, 5, size)
        values = ops.sample_feature(feature, absurd, size)
        alone, _ = ops.point_tracking(feature, references, handles, active, 5, size)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(grad, expected_grad, atol=1e-6)
    assert torch.equal(found[:, 0], absurd[:, 0]) or math.isnan(value)
    assert torch.isinf(distance[:, 0]).all()
    assert torch.equal(found[:, 1:], alone[:, 1:])
    assert not values[:, 0].any()


@pytest.mark.parametrize("name", BACKENDS)
def test_ties_go_to_the_first_in_row_major_order(name):
    one = torch.ones(1, 1, dtype=torch.bool)
    with backend(name):
        for value in (1.0, 0.1):  # at distance 0, and at another where sums are rounded
            flat = torch.full((1, 3, 8, 8), 0.1)
            found, _ = ops.point_tracking(
                flat, torch.full((1, 1, 3), value), torch.tensor([[[10.0, 12.0]]]), one, 3, (32, 32)
            )
            assert found.tolist() == [[[7.0, 9.0]]]
        # In the outermost half cell U is constant: its pixels tie with the corner.
        feature = random((1, 5, 8, 8), 7)
        corner = feature[:, None, :, 0, 0].float()
        found, distance = ops.point_tracking(feature, corner, torch.tensor([[[1.0, 1.0]]]), one, 3, (64, 64))
        assert found.tolist() == [[[0.0, 0.0]]]
        assert distance.tolist() == [[0.0]]


@pytest.mark.parametrize("name", BACKENDS)
def test_sign_of_zero_is_zero(name):
    """With dyadic values and sizes nothing is rounded, many differences are exactly zero, and gradients are exact."""
    generator = torch.Generator().manual_seed(11)
    cells, pixels = (8, 32) if name != "triton" else (4, 8)
    feature, feature0 = (torch.randint(-2, 3, (2, 6, cells, cells), generator=generator).float() for _ in range(2))
    movable, size = torch.randint(0, 5, (2, pixels, pixels), generator=generator) / 4, (pixels, pixels)
    with backend(name):
        loss, grad = ops.mask_loss(feature, feature0, movable, size)
        same, same_grad = ops.mask_loss(feature, feature.clone(), movable, size)
    expected, expected_grad = reference.mask_loss(feature.double(), feature0.double(), movable, size)
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert torch.allclose(grad.double(), expected_grad, rtol=1e-6, atol=1e-12)
    assert same.tolist() == [0, 0]
    assert not same_grad.any()


@pytest.mark.parametrize("name", FAST)
def test_a_broken_feature_is_not_hidden(name):
    """NaN in what an op reads gives a NaN loss, not a plausible one."""
    feature, handles, targets, active, r1, size = one_case()
    broken = feature.clone()
    broken[0, 3] = math.nan
    with backend(name):
        loss, _ = ops.motion_supervision(broken, handles, targets, active, r1, size)
        assert loss.isnan().tolist() == [True, False]
        loss, _ = ops.mask_loss(broken, feature, torch.zeros(2, *size), size)
        assert loss.isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_is_written(name, dtype):
    """Uninitialised memory is NaN here; none of it is left in a result."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        with backend(name):
            results = all_ops(one_case(dtype))
    finally:
        torch.use_deterministic_algorithms(before)
    assert not any(result.isnan().any() for result in results)


@pytest.mark.parametrize("name", [name for name in FAST if name != "reference"])  # PyTorch's own sums depend on them
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_any_number_of_threads(name, dtype):
    feature = random((2, 100, 40, 24), 5, dtype)
    case = (feature, *one_case()[1:])
    results = []
    try:
        for threads in (1, 2, 4, 2):
            torch.set_num_threads(threads)
            with backend(name):
                results.append(all_ops(case))
    finally:
        torch.set_num_threads(1)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again))


@pytest.mark.parametrize("name", [name for name in FAST if name != "reference"])
def test_no_memory_above_the_gradient(name):
    feature, handles, targets, active, r1, _ = one_case(channels=64)
    feature = random((2, 64, 32, 32), 1)
    size = (256, 256)
    movable = torch.zeros(2, *size)
    for op, arguments in [
        (ops.motion_supervision, (feature, handles, targets, active, r1, size)),
        (ops.mask_loss, (feature, feature + 1, movable, size)),
    ]:
        with backend(name), torch.profiler.profile(profile_memory=True) as profile:
            _, grad = op(*arguments)
        allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
        assert grad.nbytes <= allocated <= grad.nbytes + 4096


@pytest.mark.parametrize("name", [name for name in ops.available_backends("mask_loss") if name != "triton"])
def test_opcheck(name):
    """Schema and fake hold for every backend (tests/test_ops.py also checks autograd and tracing)."""
    feature, handles, targets, active, radius, size = one_case(channels=5)
    references = reference.sample_feature(feature, targets, size)
    with_grad = feature.clone().requires_grad_()
    with backend(name):
        for operator, arguments in [
            (torch.ops.draggan_fast.motion_supervision, (with_grad, handles, targets, active, radius, list(size))),
            (torch.ops.draggan_fast.point_tracking, (feature, references, handles, active, radius, list(size))),
            (torch.ops.draggan_fast.mask_loss, (with_grad, feature + 1, torch.zeros(2, *size), list(size))),
            (torch.ops.draggan_fast.sample_feature, (feature, handles, list(size))),
        ]:
            torch.library.opcheck(operator.default, arguments, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.skipif(not LEVELS, reason="the compiled library is absent")
@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("motion_supervision", {0: torch.zeros(8, 16, 16)}, "feature must have the shape"),
        ("motion_supervision", {0: torch.zeros(2, 40, 16, 16, dtype=torch.float64)}, "feature must be float32"),
        ("motion_supervision", {0: torch.zeros(2, 0, 16, 16)}, "feature must not be empty"),
        ("motion_supervision", {1: torch.zeros(1, 3, 2)}, "handle_points must have"),
        ("motion_supervision", {2: torch.zeros(2, 4, 2)}, "target_points must have"),
        ("motion_supervision", {3: torch.ones(2, 3)}, "active must be a bool"),
        ("motion_supervision", {4: 0}, "r1 must be"),
        ("motion_supervision", {4: 2**40}, "r1 must be"),
        ("motion_supervision", {5: [64]}, "image_size must be"),
        ("motion_supervision", {5: [64, 40000]}, "image_size must be"),
        ("point_tracking", {1: torch.zeros(2, 3, 7)}, "reference_feature must have"),
        ("point_tracking", {4: -1}, "r2 must be"),
        ("mask_loss", {1: torch.zeros(2, 40, 16, 15)}, "feature0 must have the feature's shape"),
        ("mask_loss", {1: torch.zeros(2, 40, 16, 16).half()}, "feature0 must have the feature's dtype"),
        ("mask_loss", {2: torch.zeros(2, 64, 63)}, "movable_mask must have"),
        ("sample_feature", {1: torch.zeros(2, 3, 2).long()}, "points must be a float"),
    ],
)
def test_direct_calls_name_a_bad_argument(op, change, message):
    feature, handles, targets, active, radius, size = one_case()
    arguments = {
        "motion_supervision": [feature, handles, targets, active, radius, size],
        "point_tracking": [feature, reference.sample_feature(feature, handles, size), handles, active, radius, size],
        "mask_loss": [feature, feature, torch.zeros(2, *size), size],
        "sample_feature": [feature, handles, size],
    }[op]
    with pytest.raises(RuntimeError, match=message):
        getattr(NATIVE, op)(*[change.get(index, value) for index, value in enumerate(arguments)])


def test_the_compiled_backend_serves_by_default():
    assert ops.available_backends("mask_loss")[0] == "reference"
    for op, chosen in ops.backends().items():
        assert chosen.name == ("cpp" if LEVELS else "reference"), op
        assert chosen.reason


def test_float64_is_the_references():
    feature, *rest = one_case()
    loss, grad = ops.motion_supervision(feature.double(), *rest)
    expected, expected_grad = reference.motion_supervision(feature.double(), *rest)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)
    if LEVELS:
        with ops.forced_backend("cpp"), pytest.raises(DragError, match="float64 features need the backend 'reference'"):
            ops.motion_supervision(feature.double(), *rest)


def test_a_forced_backend_that_is_absent_is_an_error(monkeypatch):
    feature, *rest = one_case()
    with (
        pytest.raises(DragError, match="There is no backend 'fast'; the backends are reference"),
        ops.forced_backend("fast"),
    ):
        pass
    monkeypatch.setattr(ops, "compiled_parts", lambda: {"error": "no such file"})
    assert ops.backends()["mask_loss"].name == "reference"
    assert "no such file" in ops.backends()["mask_loss"].reason
    for name in ("cpp", "cuda"):
        with pytest.raises(DragError, match=f"There is no backend '{name}' here"), ops.forced_backend(name):
            pass
        monkeypatch.setenv(ops.ENVIRONMENT, name)
        with pytest.raises(DragError, match=f"'{name}' was asked for but cannot serve"):
            ops.motion_supervision(feature, *rest)
    monkeypatch.setenv(ops.ENVIRONMENT, "nonsense")
    with pytest.raises(DragError, match="There is no backend 'nonsense'"):
        ops.motion_supervision(feature, *rest)


def test_the_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv(ops.ENVIRONMENT, "reference")
    assert {chosen.name for chosen in ops.backends().values()} == {"reference"}
    assert ops.ENVIRONMENT in ops.backends()["mask_loss"].reason
    if LEVELS:
        with ops.forced_backend("cpp"):  # the nearer wish wins
            assert {chosen.name for chosen in ops.backends().values()} == {"cpp"}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CROP_CELLS)
def test_supervision_on_a_crop_is_that_of_the_whole(name, dtype, cell):
    with backend(name):
        check_crops(ops.motion_supervision, dtype, cell)


def check_crops(motion_supervision, dtype, cell):
    """Crops of 12 of 32 cells, 8 pixels a cell; two have borders of the image. The circle depends on the place."""
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(2, 20, 32, 32, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    x, y = cell
    crops = whole[:, :, y : y + 12, x : x + 12].contiguous(memory_format=torch.channels_last)
    origin = torch.tensor([[8 * x, 8 * y]]).expand(2, 2)
    inward = torch.tensor([[[44.0, 50.0], [48.0, 47.0]], [[40.0, 41.0], [55.0, 44.0]]])
    if cell == (0, 0):
        inward[0, 0] = torch.tensor([2.0, 0.0])
    if cell == (20, 20):
        inward[1, 1] = torch.tensor([95.0, 93.0])
    targets, active = inward + torch.tensor([13.0, -7.0]), torch.tensor([[True, True], [True, False]])
    shift = origin[:, None].float()
    loss, grad = motion_supervision(crops, inward, targets, active, 6, (96, 96), origin, (256, 256))
    expected, expected_grad = reference.motion_supervision(
        whole, inward + shift, targets + shift, active, 6, (256, 256)
    )
    assert torch.allclose(loss, expected, rtol=1e-6)
    inside = expected_grad[:, :, y : y + 12, x : x + 12]
    assert torch.allclose(grad, inside, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-9)
    assert expected_grad.count_nonzero() == inside.count_nonzero() > 0


@pytest.mark.parametrize(
    ("origin", "whole", "words"),
    [
        (torch.zeros(1, 2), (256, 256), "crop_origin must be an int64"),
        (torch.zeros(2, 2, dtype=torch.int64), (256, 256), "crop_origin must be an int64 tensor of the shape"),
        (torch.tensor([[-1, 0]]), (256, 256), "inside the whole image"),
        (torch.tensor([[2**40, 0]]), (256, 256), "inside the whole image"),
        (torch.zeros(1, 2, dtype=torch.int64), (64, 256), "whole_size must be at least image_size"),
        (torch.zeros(1, 2, dtype=torch.int64), (256,), "whole_size must be two whole numbers"),
        (torch.zeros(1, 2, dtype=torch.int64), None, "go together"),
        (None, (256, 256), "go together"),
    ],
)
def test_bad_crops_are_told(origin, whole, words):
    points = torch.full((1, 1, 2), 40.0)
    arguments = (torch.zeros(1, 3, 12, 12), points, points + 9, torch.ones(1, 1, dtype=torch.bool), 6, (96, 96))
    with pytest.raises(DragError, match=words):
        ops.motion_supervision(*arguments, origin, whole)


def test_tracking_that_overflows_everywhere_stays():
    feature = torch.full((1, 3, 8, 8), 1e20)
    handles = torch.zeros(1, 1, 2)
    for name in FAST:  # the interpreter refuses overflows
        with backend(name):
            found, distance = ops.point_tracking(
                feature, -feature[:, None, :, 0, 0], handles, torch.ones(1, 1, dtype=torch.bool), 2, (32, 32)
            )
        assert found.min() >= 0
        assert (distance > 1e19).all()  # cpp sums in double and does not overflow
