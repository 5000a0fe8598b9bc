"""``make check``: ruff, mypy, layer test, clang-format. Prints what each says; exits non-zero if any finds something.

clang-format is used when it is on the PATH or in this environment, and reported as absent otherwise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("setup.py", "draggan_fast", "kernels", "tests", "bench", "tools")


def run(name: str, command: list[str]) -> bool:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(f"{name}: {'ok' if result.returncode == 0 else 'FAILED'}")
    if result.returncode != 0:
        print(result.stdout + result.stderr)
    return result.returncode == 0


def main() -> int:
    results = [
        run("ruff check", [sys.executable, "-m", "ruff", "check", *PYTHON]),
        run("ruff format", [sys.executable, "-m", "ruff", "format", "--check", *PYTHON]),
        run("mypy", [sys.executable, "-m", "mypy"]),
        run("layers", [sys.executable, "-m", "pytest", "-q", "tests/test_layers.py"]),
    ]
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*"))
    formatter = shutil.which("clang-format") or shutil.which("clang-format", path=str(Path(sys.executable).parent))
    if formatter is None:
        print("clang-format: not installed, C++ formatting not checked")
    elif sources:
        results.append(run("clang-format", [formatter, "--dry-run", "--Werror", *sources]))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
