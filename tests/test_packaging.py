"""What an installed package contains."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from a copy of the sources (building writes beside them)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("draggan_fast", "kernels", "bench", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_wheel_holds_what_the_package_needs(wheel):
    assert {
        "draggan_fast/py.typed",
        "draggan_fast/models.json",
        "draggan_fast/assets/toy-animals.safetensors",
        "draggan_fast/assets/MODEL_CARD.md",
        "draggan_fast/kernels/__init__.py",
        "draggan_fast/kernels/reference.py",
        "draggan_fast/bench/published.py",
        "draggan_fast/bench/suites/__init__.py",
    } <= wheel
    modules = {f"draggan_fast/{p.name}" for p in (ROOT / "draggan_fast").glob("*.py")}
    assert modules <= wheel


def test_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"draggan_fast"}


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_wheel_holds_the_compiled_library(wheel):
    assert any(name.startswith("draggan_fast/_C.") for name in wheel)


def test_version_is_one(wheel):
    from draggan_fast import __version__

    assert any(name.startswith(f"draggan_fast-{__version__}.dist-info/") for name in wheel)
