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

import numpy as np
from PIL import Image

from draggan_fast import load
from draggan_fast.cli import main as draggan_fast
from draggan_fast.command_common import provenance
from draggan_fast.media import save_image

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
STRIP = ("33 64,69 50,77", "5 31,14 18,24", "13 72,85 72,96", "38 45,69 57,62")  # seed, handle, target


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


def made_comparison(drag: str) -> Path:
    """Before and after of one drag, in a folder of its own below the current one."""
    folder = Path(drag.replace(" ", "_"))
    seed, handle, target = drag.split()
    arguments = ["drag", "--seed", seed, "--handle", handle, "--target", target, "--animation", "none"]
    assert draggan_fast([*arguments, "--out", str(folder)]) == 0, drag
    return folder / "comparison.png"


def save_strip(path: Path, pictures: list[Image.Image]) -> None:
    """Pictures of one size, two in a row; it says that it is machine-made, as the pictures do."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (2 * width, -(-len(pictures) // 2) * height), "white")
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index % 2 * width, index // 2 * height))
    save_image(path, np.asarray(strip), info=provenance(load("toy-animals", "cpu")))


def main() -> int:
    DOCS.mkdir(exist_ok=True)
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = with_output(text, "drag", captured("shell", code_before(text, "drag")))
        shutil.copy(Path("out") / "drag.webp", DOCS / "drag.webp")
        text = with_output(text, "python", captured("python", code_before(text, "python")))
        save_strip(DOCS / "drags.webp", [Image.open(made_comparison(drag)) for drag in STRIP])
    sheet = DOCS / "toy-animals.webp"
    assert draggan_fast(["generate", "--seeds", "0-39", "--columns", "8", "--out", str(sheet)]) == 0
    README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
