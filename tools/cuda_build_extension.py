"""The second half of ``tools/cuda_build.sh``: runs setup.py against an unpacked CUDA wheel of torch, checks the result.

A CUDA build of torch cannot be imported without NVIDIA's libraries (gigabytes of them), so the torch that runs here is
the CPU build of the same version; only the headers, the libraries to link and ``torch.version.cuda`` are the wheel's.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent


def fail(message: str) -> None:
    raise SystemExit(f"cuda_build_extension.py: {message}")


def toolkit() -> Path:
    """The folder of the CUDA toolkit. nvcc itself is asked: what lies on the PATH may be a link or a wrapper."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        fail("nvcc is not on the PATH.")
    command = [str(nvcc), "--dryrun", "-c", "-x", "cu", os.devnull]
    dry_run = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in (dry_run.stdout + dry_run.stderr).splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return Path(str(nvcc)).resolve().parent.parent


def pretend(wheel: Path, cuda_home: Path) -> None:
    """Lets torch's build helper see the wheel's headers, libraries and CUDA version in place of the running torch's."""
    version: dict = {}
    exec((wheel / "version.py").read_text(encoding="utf-8"), version)  # torch's own file, three assignments
    if version["__version__"].split("+")[0] != torch.__version__.split("+")[0]:
        fail(f"the wheel is torch {version['__version__']}, but torch {torch.__version__} runs here.")
    torch.version.cuda = version["cuda"]
    cpp_extension._TORCH_PATH = str(wheel)
    cpp_extension.TORCH_LIB_PATH = str(wheel / "lib")
    cpp_extension.CUDA_HOME = str(cuda_home)


def symbols(library: Path, kind: str) -> set[str]:
    """The dynamic symbols of a library, without versions: ``--defined-only`` or ``--undefined-only``."""
    text = subprocess.run(["nm", "-D", kind, str(library)], capture_output=True, text=True, check=True).stdout
    names = set()
    for line in text.splitlines():
        *_, letter, name = line.split()
        if letter not in "wv":  # weak ones may stay undefined
            names.add(name.split("@")[0])
    return names


def check(library: Path, wheel: Path, cuda_home: Path) -> None:
    """A shared library links even if symbols are missing, and it cannot be loaded here: so look them up."""
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    system = {Path(word) for line in needed.splitlines() for word in line.split() if word.startswith("/")}
    providers = {*system, *(wheel / "lib").glob("*.so*"), *(cuda_home / "lib64").glob("libcudart.so*")}
    defined = set().union(*(symbols(path, "--defined-only") for path in providers if path.is_file()))
    missing = {name for name in symbols(library, "--undefined-only") - defined if not name.startswith(("Py", "_Py"))}
    if missing:
        fail(f"{len(missing)} symbols are defined nowhere, {sorted(missing)[:5]} among them.")
    size = library.stat().st_size / 1e6
    print(f"{library.name}: {size:.1f} MB, every symbol found, for {os.environ['TORCH_CUDA_ARCH_LIST']}")


def main() -> int:
    scratch = Path(sys.argv[1]).resolve()
    wheel, cuda_home = scratch / "torch", toolkit()
    pretend(wheel, cuda_home)
    os.environ["DRAGGAN_FAST_CUDA"] = "1"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    output = scratch / "library"
    shutil.rmtree(output, ignore_errors=True)
    sys.argv = ["setup.py", "build_ext", "--build-temp", str(scratch / "objects"), "--build-lib", str(output)]
    # setup.py takes away the library that works here, as something built of older sources; it shall stay.
    working = {path: path.read_bytes() for path in (ROOT / "draggan_fast").glob("_C*.so")}
    try:
        runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
    finally:
        for path, content in working.items():
            path.write_bytes(content)
    built = list(output.rglob("_C*.so"))
    if len(built) != 1:
        fail("setup.py built no library; it says why above.")
    check(built[0], wheel, cuda_home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
