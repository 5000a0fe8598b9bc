"""Every CUDA kernel compiles with nvcc for every generation of GPUs, without a warning and without spilling registers.

Needs the CUDA toolkit's compiler, neither a GPU nor a CUDA build of torch; skipped, and counted, where nvcc is missing.
"""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "cuda_compile.py"
spec = importlib.util.spec_from_file_location("cuda_compile", TOOL)
assert spec is not None
assert spec.loader is not None
cuda_compile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda_compile)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA kernels are not compiled")


def test_every_op_has_its_files():
    ops = {"motion_supervision", "point_tracking", "mask_loss", "sample_feature"}
    assert set(cuda_compile.OPS) == ops
    for op in ops:
        assert (cuda_compile.FOLDER / f"{op}.cu").exists()


def test_kernels_see_no_torch():
    for path in cuda_compile.FOLDER.glob("*.cuh"):
        included = re.findall(r'#include [<"](.+?)[>"]', path.read_text(encoding="utf-8"))
        assert set(included) <= {"common.cuh", "../bilinear.h", "cuda_bf16.h", "cuda_fp16.h", "cstdint"}, path.name


@needs_nvcc
@pytest.mark.parametrize("op", cuda_compile.OPS)
def test_compiles_without_warnings_or_spills(op):
    rows = cuda_compile.compile_op(op)
    source = (cuda_compile.FOLDER / f"{op}.cuh").read_text(encoding="utf-8")
    kernels = set(re.findall(r"\b(\w+_kernel)\(const", source))
    assert kernels
    expected = {(k, d, a) for k in kernels for d in cuda_compile.DTYPES.values() for a in cuda_compile.ARCHITECTURES}
    assert {(row.kernel, row.dtype, row.architecture) for row in rows} == expected
    for row in rows:
        assert row.stack == row.spill_stores == row.spill_loads == 0, row
        assert row.shared <= 48 * 1024, row  # what a block may have without asking


@needs_nvcc
def test_what_nvcc_says_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_compile, "FOLDER", tmp_path)
    (tmp_path / "broken.cuh").write_text("#include <cstdint>\nint unused() { int never; }\n", encoding="utf-8")
    monkeypatch.setattr(cuda_compile, "translation_unit", lambda op: f'#include "{op}.cuh"\n')
    with pytest.raises(RuntimeError, match="never"):
        cuda_compile.compile_op("broken", architectures=(90,))
