"""What several commands need: threads, provenance, and looking at an output path before the work starts."""

from __future__ import annotations

from pathlib import Path

import torch

from .argument_checks import check_output, check_threads
from .errors import DragError
from .loading import Model
from .media import Provenance


def set_threads(threads: int | None) -> None:
    """How many CPU threads torch uses; None = its own choice."""
    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)


def provenance(model: Model) -> Provenance:
    """What a picture of this model says about its origin."""
    return Provenance(model=model.name, model_hash=model.content_hash)


def check_writable(path: str, suffixes: tuple[str, ...] = (".json",)) -> Path:
    """The same, proven to be writable by making its folder hold a file for a moment."""
    file = check_output(path, suffixes)
    if file.is_dir():
        raise DragError(f"{path!r} is a folder; name a file to write.")
    probe = file.with_name(f".{file.name}.probe")
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DragError(f"Cannot write {path!r}: {error.strerror or error}.") from None
    return file


def check_folder(path: str) -> Path:
    """An output folder, made if need be and proven to be writable, before any work is done."""
    if not path:
        raise DragError("The output folder's name is empty.")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".draggan-fast-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise DragError(f"Cannot write to the folder {path!r}: {error.strerror or error}.") from None
    return folder
