"""The op micro-benchmarks for pytest-benchmark, on the cases of the suite ``ops``:

    pytest bench/benchmark_ops.py --benchmark-json ops.json        (make bench-ops)

``published`` is the materialised way. Inputs are cold, as in the suite; unlike there the variants do not take turns.
And the 3×3 convolutions of a float32 step on a CPU: the library's direct one beside Winograd's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draggan_fast.bench.op_cases import OpCase, op_cases
from draggan_fast.bench.verify import verify_op

from draggan_fast import ops
from draggan_fast.packed_conv import PackedConv

pytest.importorskip("pytest_benchmark", reason="the dev extra has it")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cases() -> list[Any]:
    """Each case with each of its ways, as pytest parameters."""
    return [
        pytest.param(case, way, id=f"{case.name}-{case.detail}-{way}")
        for case in op_cases(DEVICE)
        for way in case.ways()
    ]


@pytest.mark.parametrize(("case", "way"), cases())
def test_op(benchmark, case: OpCase, way: str) -> None:  # type: ignore[no-untyped-def]
    if way in case.ways()[1:]:
        verdict = verify_op(case.op, way, DEVICE)
        assert verdict.ok, verdict.reason
    run = case.runner(way)

    def finished() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name}, {case.detail}"
    benchmark.extra_info.update(gbytes=case.gbytes, device=str(DEVICE), threads=torch.get_num_threads())
    benchmark.pedantic(finished, rounds=3 if way == "published" else 10, warmup_rounds=1)


# (channels in and out, cells along an axis): of toy-animals, of config-f.
CONVOLUTIONS = [(256, 16), (128, 32), (80, 64), (32, 128), (512, 32), (512, 64), (128, 256)]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="of the CPU only")
@pytest.mark.parametrize("way", ["direct", "winograd"])
@pytest.mark.parametrize(("channels", "size"), CONVOLUTIONS)
def test_convolution(benchmark, channels: int, size: int, way: str) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
    x = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    with ops.forced_backend("reference" if way == "direct" else "cpp"):
        conv = PackedConv(weight.clone, (1, 1), (size, size))
        error = float((conv(x).double() - expected).norm() / expected.norm())
        assert error < 3e-6
        benchmark.group = f"convolution, {channels} channels, {size}²"
        benchmark.extra_info.update(relative_error=error, threads=torch.get_num_threads())
        benchmark.pedantic(conv, (x,), rounds=20, warmup_rounds=3)
