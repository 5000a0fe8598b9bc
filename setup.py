"""Packages and the optional compiled library; everything else is in pyproject.toml.

``kernels/`` and ``bench/`` stand at the top of the repository and are installed as ``draggan_fast.kernels`` and
``draggan_fast.bench``. The compiled library ``draggan_fast._C`` (csrc/) is built when torch can be imported while
building and a C++ compiler works; without it the install succeeds all the same, the reference kernels serve, and
``draggan-fast doctor`` says so. Its CUDA part is built when torch is a CUDA build and its toolkit is found;
``DRAGGAN_FAST_CUDA=0`` leaves it out, ``DRAGGAN_FAST_CUDA=1`` demands it, ``TORCH_CUDA_ARCH_LIST`` chooses the devices.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

PACKAGES = ["draggan_fast", "draggan_fast.kernels", "draggan_fast.bench", "draggan_fast.bench.suites"]
PACKAGE_DATA = {"draggan_fast": ["py.typed", "*.json", "assets/*", "web/*"]}
ROOT = Path(__file__).resolve().parent


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


def with_cuda() -> bool:
    """Whether to build the CUDA part. torch decides, not a compiler that happens to lie on the path."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    wish = os.environ.get("DRAGGAN_FAST_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"DRAGGAN_FAST_CUDA must be 0 or 1, not {wish!r}.")
    missing = "torch is not a CUDA build" if torch.version.cuda is None else "no CUDA toolkit was found"
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    if wish == "1" and not possible:
        raise SystemExit(f"DRAGGAN_FAST_CUDA=1 asks for the CUDA kernels, but {missing}.")
    return possible and wish != "0"


def extension_arguments() -> dict[str, Any]:
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError:
        print("draggan_fast: torch is not importable here, installing without the compiled library", file=sys.stderr)
        return {}
    if sys.platform == "win32":
        print("draggan_fast: the C++ kernels need GCC or Clang, installing without them", file=sys.stderr)
        return {}

    class OptionalBuild(BuildExtension):
        """A failed compilation is reported and survived: the package works without its library.

        What cannot be built with CUDA is tried without, unless DRAGGAN_FAST_CUDA=1 demands it.
        """

        def build_extensions(self) -> None:
            for stale in (ROOT / "draggan_fast").glob("_C*.so"):
                stale.unlink()  # after a failure nobody shall run yesterday's
            try:
                super().build_extensions()
            except Exception as error:
                if os.environ.get("DRAGGAN_FAST_CUDA") == "1":
                    raise
                if self.extensions == [without_cuda]:
                    self.extensions = []
                    print(f"draggan_fast: installing without the compiled library ({error})", file=sys.stderr)
                    return
                print(f"draggan_fast: building without CUDA ({error})", file=sys.stderr)
                self.extensions = [without_cuda]
                self.build_extensions()

    # OpenMP is compiled in (at::parallel_for needs it) but not linked: its library is the one that torch has loaded.
    cxx = ["-O3", "-g0", "-fvisibility=hidden", *(["-fopenmp"] if sys.platform == "linux" else [])]
    common: dict[str, Any] = {"depends": sources("**/*.h", "**/*.cuh", "**/*.cu")}
    cpu = sources("module.cpp", "cpu/*.cpp")
    extension = without_cuda = CppExtension("draggan_fast._C", cpu, extra_compile_args=cxx, **common)
    if with_cuda():
        arguments = {"cxx": [*cxx, "-DDRAGGAN_WITH_CUDA"], "nvcc": ["-O3", "-DDRAGGAN_WITH_CUDA"]}
        extension = CUDAExtension(
            "draggan_fast._C", [*cpu, *sources("cuda/*.cu")], extra_compile_args=arguments, **common
        )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild}}


setup(
    packages=PACKAGES,
    package_dir={
        "draggan_fast": "draggan_fast",
        "draggan_fast.kernels": "kernels",
        "draggan_fast.bench": "bench",
        "draggan_fast.bench.suites": "bench/suites",
    },
    package_data=PACKAGE_DATA,
    **extension_arguments(),
)
