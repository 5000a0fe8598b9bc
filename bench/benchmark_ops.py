"""The op micro-benchmarks for pytest-benchmark, on the cases of the suite ``ops``:

    pytest bench/benchmark_ops.py --benchmark-json ops.json        (make bench-ops)

``published`` is the materialised way. Inputs are cold, as in the suite; unlike there the variants do not take turns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draggan_fast.bench.op_cases import OpCase, op_cases
from draggan_fast.bench.verify import verify_op

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
