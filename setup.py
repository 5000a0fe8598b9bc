"""Packages and the optional C++ library; everything else is in pyproject.toml.

``kernels/`` and ``bench/`` stand at the top of the repository and are installed as ``draggan_fast.kernels`` and
``draggan_fast.bench``. The compiled library
``draggan_fast._C`` is built when torch can be imported while building and a C++ compiler works; without it the
install succeeds all the same, the reference kernels serve, and ``draggan-fast doctor`` says so.
"""

from __future__ import annotations

import sys

from setuptools import setup

PACKAGES = ["draggan_fast", "draggan_fast.kernels", "draggan_fast.bench", "draggan_fast.bench.suites"]
PACKAGE_DATA = {"draggan_fast": ["py.typed", "*.json", "assets/*"]}


def extension_arguments() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print("draggan_fast: torch is not importable here, installing without the compiled library", file=sys.stderr)
        return {}

    class OptionalBuild(BuildExtension):
        """A failed compilation is reported and survived: the package works without its library."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                self.extensions = []
                print(f"draggan_fast: installing without the compiled library ({error})", file=sys.stderr)

    extension = CppExtension(
        "draggan_fast._C",
        ["csrc/module.cpp"],
        extra_compile_args=["-O3", "-fvisibility=hidden"] if sys.platform != "win32" else ["/O2"],
        optional=True,
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
