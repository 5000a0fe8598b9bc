"""Every Triton kernel compiles ahead of time for every architecture we name, without a GPU, and spills nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from draggan_fast.kernels import configs

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = {75, 80, 86, 89, 90}
DTYPES = {"float32", "bfloat16", "float16"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The table of tools/triton_resources.py, made by a process of its own: this one may run the interpreter."""
    pytest.importorskip("triton", reason="the Triton kernels need the package triton")
    table = tmp_path_factory.mktemp("triton") / "resources.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "tools/triton_resources.py", "--json", str(table)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert table.exists(), result.stdout + result.stderr
    return json.loads(table.read_text(encoding="utf-8"))["rows"]


def test_every_kernel_compiles_for_every_architecture(rows):
    compiled = {(row["kernel"], row["sm"], row["dtype"]) for row in rows}
    kernels = {row.kernel for row in configs.LAUNCHES}
    assert compiled == {(k, sm, dtype) for k in kernels for sm in ARCHITECTURES for dtype in DTYPES}


def test_nothing_is_spilled(rows):
    assert {(row["kernel"], row["sm"]): row["stack_bytes"] for row in rows if row["stack_bytes"]} == {}


def test_shared_memory_fits_the_smallest_architecture(rows):
    assert max(row["shared_bytes"] for row in rows) <= 48 * 1024  # what a block may have without asking for more
