"""The compiled ops on a real GPU, each backend of CUDA against the reference. Run by tools/gpu_run.sh.

Without a GPU every test here is skipped, and counted; tests/test_cuda_numerics.py runs the same kernels on the CPU.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from draggan_fast.kernels import reference

from draggan_fast import ops
from tests.cuda_cases import CASES, LAYOUTS, USUAL, Case, assert_matches_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA ops are not run"),
]
NAMES = ("motion", "mask", "tracking", "sampling")
KIBIBYTE = 1024


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    absent = [op for op in ops.OPS if request.param not in ops.available_backends(op, "cuda")]
    if absent:
        pytest.skip(f"the backend {request.param} does not serve {', '.join(absent)} here")
    with ops.forced_backend(request.param):
        yield request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(backend, name, layout):
    assert_matches_reference(Case(CASES[name], layout).to("cuda"), ops)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features(backend, dtype):
    assert_matches_reference(Case(USUAL, dtype=dtype).to("cuda"), ops, dtype)


@pytest.fixture
def poisoned_memory():
    """Every newly allocated tensor is NaN, so that an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", NAMES)
def test_every_element_is_written(backend, poisoned_memory, name):
    case = Case(USUAL).to("cuda")
    results = getattr(case, name)(ops)
    for tensor in results if isinstance(results, tuple) else (results,):
        assert not tensor.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_every_time(backend, name):
    case = Case(USUAL, points=40).to("cuda")
    first = getattr(case, name)(ops)
    for _ in range(20):
        again = getattr(case, name)(ops)
        pairs = zip(first, again) if isinstance(first, tuple) else [(first, again)]
        assert all(torch.equal(a, b) for a, b in pairs)


def full_size(points=4):
    """[1, 256, 128, 128] at 1024², channels-last: the size that the ops are made for."""
    return Case(((128, 128), (1024, 1024), 256, 6), batch=1, points=points).to("cuda")


def test_full_size(backend):
    case = full_size()
    assert_matches_reference(case, ops)
    case.radius = 24
    assert torch.equal(case.tracking(ops)[0], case.tracking(reference, True)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_follows_its_inputs(backend, name):
    """Captured once, replayed with other points, features and flags in the same buffers: what eager calls give."""
    case, other = Case(USUAL).to("cuda"), Case(USUAL).to("cuda")
    other.handles = other.handles.flip(1).contiguous()
    other.active = ~other.active
    other.feature = other.feature.flip(0).contiguous(memory_format=torch.channels_last)
    call = getattr(case, name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and loads what a capture may not
        call(ops)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(ops)
    for source in (other, Case(USUAL).to("cuda")):
        for field in Case.TENSORS:
            getattr(case, field).copy_(getattr(source, field))
        graph.replay()
        eager = call(ops)
        pairs = zip(captured, eager) if isinstance(eager, tuple) else [(captured, eager)]
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_no_call_waits_for_the_gpu(backend, name):
    call = getattr(Case(USUAL).to("cuda"), name)
    call(ops)  # loads the kernels
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        call(ops)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream(backend):
    """The feature is written on a side stream, after a long wait there: an op on another stream would read zeros."""
    case = full_size()
    expected = case.motion(ops)
    written = case.feature.clone(memory_format=torch.channels_last)
    case.feature = torch.zeros_like(written)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        case.feature.copy_(written)
        found = case.motion(ops)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_motion_supervision_allocates_little_beside_the_gradient(backend):
    case = full_size(points=1)
    case.motion(ops)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    case.motion(ops)
    extra = torch.cuda.max_memory_allocated() - before - case.feature.numel() * case.feature.element_size()
    assert extra <= 512 * KIBIBYTE


def test_points_that_are_nowhere(backend):
    nan, inf = float("nan"), float("inf")
    handles = torch.tensor([[[nan, 3.0], [inf, 3.0], [1e30, -1e30], [3.0, 2e9]]], device="cuda")
    feature = torch.randn(1, 5, 8, 8, device="cuda")
    active = torch.ones(1, 4, dtype=torch.bool, device="cuda")
    assert not ops.sample_feature(feature, handles, (32, 32)).any()
    ops.point_tracking(feature, torch.zeros(1, 4, 5, device="cuda"), handles, active, 3, (32, 32))
    loss, grad = ops.motion_supervision(feature, handles, torch.full_like(handles, 9.0), active, 3, (32, 32))
    torch.cuda.synchronize()
    assert loss.tolist() == [0.0]
    assert not grad.any()
