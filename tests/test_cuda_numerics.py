"""The CUDA kernels' numbers without a GPU: run by tests/cuda_emulator against the reference in float64.

The same sources that nvcc compiles (tests/test_cuda_compile.py) are executed thread by thread here. A GPU machine runs
tests/test_cuda_ops.py on top.
"""

from __future__ import annotations

import subprocess

import pytest
import torch
from draggan_fast.kernels import reference

from tests import cuda_emulator
from tests.cuda_cases import CASES, LAYOUTS, USUAL, Case, assert_as_good_as_torch, assert_matches_reference
from tests.cuda_emulator import ORDERS
from tests.test_backends import CROP_CELLS, check_crops


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    if cuda_emulator.compiler() is None:
        pytest.skip("no C++ compiler: the CUDA kernels' numbers are not tested")
    return cuda_emulator.build(tmp_path_factory.mktemp("cuda_emulator"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", CROP_CELLS)
def test_supervision_on_a_crop_is_that_of_the_whole(emulator, dtype, cell):
    check_crops(emulator.motion_supervision, dtype, cell)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_every_op_matches_the_reference(emulator, name, layout):
    assert_matches_reference(Case(CASES[name], layout), emulator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["usual", "as large as the feature"])
def test_low_precision_features(emulator, name, dtype):
    """Gradients of 35 and 63 channels are stored one by one; the next test stores vectors."""
    assert_matches_reference(Case(CASES[name], dtype=dtype), emulator, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vectorised_stores_give_the_same_bits(emulator, dtype):
    """64 channels, channels-last, take the vector path; the same feature in contiguous layout cannot."""
    generator = torch.Generator().manual_seed(5)
    feature = torch.randn(1, 64, 8, 8, generator=generator).to(dtype)
    handles, targets = torch.tensor([[[11.0, 14.0], [16.0, 14.0]]]), torch.tensor([[[20.0, 9.0], [0.0, 14.0]]])
    arguments = (handles, targets, torch.ones(1, 2, dtype=torch.bool), 4, (32, 32))
    one_by_one = emulator.motion_supervision(feature, *arguments)
    vectors = emulator.motion_supervision(feature.contiguous(memory_format=torch.channels_last), *arguments)
    assert torch.equal(one_by_one[0], vectors[0])
    assert torch.equal(one_by_one[1], vectors[1])
    assert vectors[1].count_nonzero() > 64


@pytest.mark.parametrize("op", ["motion", "mask", "tracking"])
def test_the_order_of_threads_and_blocks_changes_no_bit(emulator, op):
    """A missing barrier, a race or a sum in the order of arrival would."""
    case = Case(USUAL, points=40)  # 40 points on 64 × 64 pixels: the patches overlap
    results = []
    try:
        for order in ORDERS:
            emulator.order = order
            results.append(getattr(case, op)(emulator))
    finally:
        emulator.order = "forward"
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_many_points_and_many_channels(emulator):
    """More points than a block has threads in its first warp, more channels than the tracker holds at a time."""
    generator = torch.Generator().manual_seed(2)
    feature = torch.randn(1, 600, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    handles = torch.randint(0, 16, (1, 70, 2), generator=generator).float()
    targets, active = handles.flip(1), torch.ones(1, 70, dtype=torch.bool)
    wanted = reference.sample_feature(feature, targets, (16, 16))
    found = emulator.point_tracking(feature, wanted, handles, active, 2, (16, 16))
    exact = reference.point_tracking(feature.double(), wanted.double(), handles, active, 2, (16, 16))
    assert torch.equal(found[0], exact[0])
    narrow = feature[:, :33]
    found = emulator.motion_supervision(narrow, handles, targets, active, 2, (16, 16))
    exact = reference.motion_supervision(narrow.double(), handles, targets, active, 2, (16, 16))
    plain = reference.motion_supervision(narrow, handles, targets, active, 2, (16, 16))
    for f, p, e in zip(found, plain, exact):
        assert_as_good_as_torch(f, p, e)


def test_ties_go_to_the_first_in_row_major_order(emulator):
    feature = torch.full((1, 3, 8, 8), 0.3)
    for wanted in (feature[:, None, :, 0, 0], torch.randn(1, 1, 3)):
        found, _ = emulator.point_tracking(
            feature, wanted, torch.tensor([[[10.0, 12.0]]]), torch.ones(1, 1, dtype=torch.bool), 3, (32, 32)
        )
        assert found.tolist() == [[[7.0, 9.0]]]


def test_points_that_take_no_part(emulator):
    """No points, inactive ones, |d| ≤ 1: zeros everywhere, and tracking leaves them where they are."""
    case = Case(USUAL)
    near, all_active = case.handles + torch.tensor([1.0, 0.0]), torch.ones_like(case.active)
    none = torch.zeros(2, 0, 2)
    for handles, targets, active in [
        (case.handles, near, all_active),
        (case.handles, case.targets, ~all_active),
        (none, none, torch.zeros(2, 0, dtype=torch.bool)),
    ]:
        loss, grad = emulator.motion_supervision(case.feature, handles, targets, active, 3, case.size)
        assert loss.tolist() == [0, 0]
        assert torch.equal(grad, torch.zeros_like(grad))
    wanted = torch.zeros(2, 6, case.feature.shape[1])
    moved, distance = emulator.point_tracking(case.feature, wanted, case.handles, ~all_active, 3, case.size)
    assert torch.equal(moved, case.handles)
    assert torch.equal(distance, torch.zeros_like(distance))


def test_points_that_are_nowhere(emulator):
    """Not finite, or absurdly far: nothing is read out of bounds (the guards are NaN), and nothing is found."""
    nan, inf = float("nan"), float("inf")
    handles = torch.tensor([[[nan, 3.0], [inf, 3.0], [1e30, -1e30], [3.0, 2e9], [-1e6, 4.0]]])
    feature, active = torch.randn(1, 5, 8, 8), torch.ones(1, 5, dtype=torch.bool)
    assert not emulator.sample_feature(feature, handles, (32, 32)).any()
    moved, distance = emulator.point_tracking(feature, torch.zeros(1, 5, 5), handles, active, 3, (32, 32))
    assert torch.equal(moved.nan_to_num(nan=7.0), handles.nan_to_num(nan=7.0))
    assert distance.tolist() == [[inf] * 5]
    loss, grad = emulator.motion_supervision(feature, handles, torch.full_like(handles, 9.0), active, 3, (32, 32))
    assert loss.tolist() == [0.0]
    assert not grad.any()


@pytest.mark.parametrize("kind", ["all movable", "all fixed", "shares"])
def test_masks(emulator, kind):
    case = Case(USUAL)
    case.movable = {
        "all movable": torch.ones_like(case.movable),
        "all fixed": torch.zeros_like(case.movable),
        "shares": torch.rand(case.movable.shape, generator=torch.Generator().manual_seed(1)),
    }[kind]
    for found, plain, truth in zip(case.mask(emulator), case.mask(reference), case.mask(reference, True)):
        assert_as_good_as_torch(found, plain, truth)


def test_an_unchanged_feature_gives_exact_zeros(emulator):
    case = Case(USUAL)
    case.feature0 = case.feature
    loss, grad = case.mask(emulator)
    assert loss.tolist() == [0, 0]
    assert torch.equal(grad, torch.zeros_like(grad))


def test_a_feature_that_is_not_a_number_is_not_hidden(emulator):
    case = Case(USUAL, points=1)
    case.active[:] = True
    case.targets = case.handles + 9
    case.feature[:, :, 0, 0] = float("nan")  # the handle is in that corner
    assert case.motion(emulator)[0].isnan().all()
    assert case.mask(emulator)[0].isnan().all()
    assert case.tracking(emulator)[1].isnan().all()


FAULTY = """
__global__ void kernel(const int& mode) {
  if (mode == 0 && threadIdx.x < 32) __syncthreads();
  if (mode == 1) { if (threadIdx.x % 2) __syncwarp(); else __syncthreads(); }
}
int main(int count, char**) {
  try {
    emulator::Launch{emulator::Order::kForward}(kernel, 1, 64, count - 1);
  } catch (const std::runtime_error&) {
    return 3;
  }
  return 0;
}
"""


def test_the_emulator_sees_barriers_that_only_some_threads_reach(tmp_path):
    if cuda_emulator.compiler() is None:
        pytest.skip("no C++ compiler: the emulator is not tested")
    (tmp_path / "faulty.cpp").write_text(FAULTY, encoding="utf-8")
    program = tmp_path / "faulty"
    command = [cuda_emulator.compiler(), "-std=c++17", f"-I{cuda_emulator.HERE}", "-include", "emulator.h"]
    subprocess.run([*command, "-o", str(program), str(tmp_path / "faulty.cpp")], check=True)
    assert [subprocess.run([program, *extra], check=False).returncode for extra in ([], ["1"], ["1", "2"])] == [3, 3, 0]
