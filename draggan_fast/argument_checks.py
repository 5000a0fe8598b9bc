"""Arguments that are wrong on sight: told before torch is imported, which takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import DragError
from .models import resolve


def check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= 1024:
        raise DragError(f"--threads must be from 1 to 1024, not {threads}.")


def check_output(path: str, suffixes: tuple[str, ...]) -> Path:
    """An output file's path, refused early if its kind is wrong or its folder is not there."""
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        raise DragError(f"The output {path!r} must end in {' or '.join(suffixes)}.")
    if not file.parent.is_dir():
        raise DragError(f"The folder of {path!r} does not exist.")
    return file


OUTPUTS = {"convert": ("destination", (".safetensors",))} | dict.fromkeys(
    ("generate", "replay"), ("out", (".png", ".webp"))
)


def check(arguments: argparse.Namespace) -> None:
    """Threads, model and output file of the commands that have them; what else is wrong they say themselves. Raises
    DragError."""
    check_threads(getattr(arguments, "threads", None))
    if arguments.command in OUTPUTS:
        name, suffixes = OUTPUTS[arguments.command]
        if getattr(arguments, name) is not None:
            check_output(getattr(arguments, name), suffixes)
    if arguments.command in ("drag", "generate", "replay") and arguments.model is not None:
        resolve(arguments.model)
