"""Makes what the README shows: runs its drag command and its Python example, makes its pictures, writes the outputs in.

    python tools/readme.py

The README's own code blocks are the source, so that what stands there is what was run. Outputs go between the markers
``<!-- output:NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from draggan_fast.cli import main as draggan_fast

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def code_before(text: str, name: str) -> str:
    """The last code block before the marker of that output."""
    return re.findall(r"```\w+\n(.*?)```", text[: text.index(f"<!-- output:{name} -->")], re.DOTALL)[-1]


def with_output(text: str, name: str, output: str) -> str:
    pattern = re.compile(rf"(<!-- output:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda m: f"{m[1]}```text\n{output.rstrip()}\n```\n{m[2]}", text)
    assert count == 1, name
    return replaced


def captured(run: str, code: str) -> str:
    """What a shell command of ours, or a piece of Python, prints to its standard output."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        if run == "shell":
            program, *arguments = shlex.split(code)
            assert program == "draggan-fast"
            assert draggan_fast(arguments) == 0, code
        else:
            exec(compile(code, "README.md", "exec"), {})
    return stream.getvalue()


def main() -> int:
    DOCS.mkdir(exist_ok=True)
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = with_output(text, "drag", captured("shell", code_before(text, "drag")))
        shutil.copy(Path("out") / "drag.webp", DOCS / "drag.webp")
        text = with_output(text, "python", captured("python", code_before(text, "python")))
    sheet = DOCS / "toy-animals.webp"
    assert draggan_fast(["generate", "--seeds", "0-39", "--columns", "8", "--out", str(sheet)]) == 0
    README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
