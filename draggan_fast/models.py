"""Models by name: the one that comes with the package, and public ones that are downloaded once.

A downloaded checkpoint is read as data (nothing in it is run), converted to safetensors and removed. The
checksum of each download is noted in the cache's `checksums.json` the first time and held from then on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from .atomic import write_bytes
from .download import Progress, fetch, finish
from .errors import DragError, ModelError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

DEFAULT_MODEL = "toy-animals"
MAX_BYTES = 2 << 30

_HERE = Path(__file__).parent
_SUFFIXES = frozenset({".pkl", ".pt", ".pth", ".safetensors"})
_LOCK_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a named model before it is loaded.

    Attributes:
        name: what users call it.
        file: the name of its checkpoint as published.
        px: (H, W) of its pictures.
        format: "safetensors", "nvidia-pytorch" or "nvidia-tensorflow".
        note: what it draws, and what is unusual about it.
        licence: one line on the terms of its weights, to be shown before a download starts.
        url: where it is downloaded from; None for the embedded model and for those that a person must fetch.
        manual: how a person gets the file, where no program can.
        size, sha256: of the file as published; None when not recorded yet.
    """

    name: str
    file: str
    px: tuple[int, int]
    format: str
    note: str
    licence: str
    url: str | None
    manual: str | None
    size: int | None
    sha256: str | None

    @property
    def kind(self) -> str:
        """How it is had: "embedded", "download" or "manual"."""
        return "download" if self.url else "manual" if self.manual else "embedded"

    def path(self, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
        """The file that `draggan_fast` loads for this name, or None when it is not on this machine yet."""
        path = _ready_path(self, cache_dir)
        return path if path.is_file() else None


def list_models() -> list[ModelInfo]:
    """All named models, the embedded one first."""
    return list(_registry().values())


def default_cache_dir() -> Path:
    """Where converted models lie: DRAGGAN_FAST_CACHE, else the user's cache folder of this system."""
    if chosen := os.environ.get("DRAGGAN_FAST_CACHE"):
        return Path(chosen).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the XDG specification: a relative one is to be ignored
        return Path(xdg) / "draggan-fast"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "draggan-fast"
    try:
        return Path.home() / ".cache" / "draggan-fast"
    except RuntimeError as error:
        raise ModelError("There is no home folder; name one for models in DRAGGAN_FAST_CACHE.") from error


def resolve(name_or_path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file of a named model, or the path itself when it is a file's. Nothing is downloaded.

    A name goes before a file that happens to be called the same; write ./name for the file.
    Raises: ModelError when there is neither, with close names, or when the model is not downloaded yet.
    """
    try:
        text = os.fsdecode(name_or_path)
    except TypeError:
        raise ModelError(f"A model is given by a name or a path, not by {name_or_path!r}.") from None
    if not text:
        raise ModelError("The model's name is empty; list model names with draggan-fast models.")
    if info := _registry().get(text):
        path = _ready_path(info, cache_dir)
        if path.is_file():
            return path
        if info.kind == "embedded":
            raise ModelError(f"The embedded model {text} is missing at {path}; reinstall draggan-fast.")
        raise ModelError(f"The model {text} is not on this machine yet; run draggan-fast models pull {text}.")
    try:
        path = Path(text).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, an unknown ~user
        raise ModelError(f"{text[:80]!r} cannot be a file's path ({type(error).__name__}).") from None
    if is_file:
        return path
    if is_folder:
        raise ModelError(f"{text} is a folder; name the checkpoint file in it.")
    if path.name != text or path.suffix.lower() in _SUFFIXES:
        raise ModelError(f"There is no file {text}; check the path, or see draggan-fast models for names.")
    raise _unknown(text)


def pull(
    name: str,
    *,
    progress: Progress | None = None,
    accept: Callable[[ModelInfo], bool] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Download a named model, verify it, convert it, and return the converted file; at once when it is there.

    Calls for the same model at the same time wait for each other. A model that only a person can fetch is
    converted from the cache folder, where the person puts it.

    Args:
        progress: called with the bytes that have arrived and the bytes in all (None when not told).
        accept: called with the model before anything is downloaded, to show `licence` and ask; False stops.
            By default the licence line is printed to the standard error stream.
        cache_dir: where models lie; `default_cache_dir()` by default.
        timeout: seconds without a byte after which a connection counts as cut.
    Raises: ModelError when the name is unknown, the licence is declined, the download fails, its checksum is
        not the recorded one, it is no readable checkpoint, or the cache is not writable. What has arrived of
        an unfinished download stays for the next call; a converted file is there whole or not at all.
    """
    info = _registry().get(name)
    if info is None:
        raise _unknown(name)
    target = _ready_path(info, cache_dir)
    if info.kind == "embedded" or target.is_file():
        return resolve(name, cache_dir)
    cache = target.parent
    source = cache / info.file
    if info.url is None and not source.is_file():
        raise ModelError(
            f"The model {name} must be fetched by hand: {info.manual}, save it as {source}, and pull again."
        )
    if not (accept or _print_licence)(info):
        raise ModelError(f"The licence of {name} was not accepted, so nothing was downloaded.")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{name}.lock"):
            if target.is_file():  # another pull was first
                return target
            if info.url and not source.is_file():
                part = source.with_name(source.name + ".part")
                fetch(info.url, part, progress=progress, max_bytes=MAX_BYTES, timeout=timeout)
                finish(part, source)
            checksum = _verify(info, source, cache)
            _convert(info, source, target)
            _record(name, checksum, cache)
            if info.url:
                source.unlink()
    except OSError as error:
        raise ModelError(
            f"Cannot keep the model {name} in {cache}: {error.strerror or error}; make room there, or name a "
            "folder that can be written in DRAGGAN_FAST_CACHE."
        ) from error
    return target


# ---- the list ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _registry() -> dict[str, ModelInfo]:
    data = json.loads((_HERE / "models.json").read_text(encoding="utf-8"))
    entries = (
        {**entry, "px": tuple(entry["px"]), "licence": data["licences"][entry["licence"]]} for entry in data["models"]
    )
    return {entry["name"]: ModelInfo(**entry) for entry in entries}


def _ready_path(info: ModelInfo, cache_dir: str | os.PathLike[str] | None) -> Path:
    if info.kind == "embedded":
        return _HERE / "assets" / info.file
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
    return cache / f"{info.name}.safetensors"


def _unknown(name: str) -> ModelError:
    close = difflib.get_close_matches(name.lower(), _registry(), n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return ModelError(f"There is no model or file {name!r}{hint}; list model names with draggan-fast models.")


def _print_licence(info: ModelInfo) -> bool:
    print(f"{info.name}: {info.licence}", file=sys.stderr)
    return True


# ---- from download to model --------------------------------------------------------------------------


def _verify(info: ModelInfo, source: Path, cache: Path) -> dict[str, Any]:
    """Compare a downloaded file with the list and with what was recorded; returns what is to be recorded."""
    with source.open("rb") as file:
        found = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": source.stat().st_size}
    recorded = _read_checksums(cache).get(info.name, {})
    for key, listed in (("size", info.size), ("sha256", info.sha256)):
        expected = listed or recorded.get(key)
        if expected and expected != found[key]:
            fate = "it was removed" if info.url else "it is not used"
            if info.url:
                source.unlink()
            raise ModelError(
                f"The file of {info.name} has the {key} {found[key]}, but {expected} is recorded, so {fate}; "
                f"pull it again, and if its owner replaced it, first delete its entry in {_sums(cache)}."
            )
    return found


def _convert(info: ModelInfo, source: Path, target: Path) -> None:
    from .checkpoint import load_checkpoint, save_checkpoint

    try:
        loaded = load_checkpoint(source)
    except DragError as error:
        # A file that is no checkpoint (a notice page, say) must not be what every later pull starts from.
        if info.url:
            source.unlink()
        raise ModelError(f"What was downloaded for {info.name} cannot be used: {error}") from error
    about = {"name": info.name, "licence": info.licence, "source": info.url or info.file}
    try:
        save_checkpoint(target, dataclasses.replace(loaded, metadata={**loaded.metadata, **about}))
    except DragError as error:  # the disk, most likely: the download stays for the next try
        raise ModelError(str(error)) from error


def _sums(cache: Path) -> Path:
    return cache / "checksums.json"


def _read_checksums(cache: Path) -> dict[str, dict[str, Any]]:
    path = _sums(cache)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        data = None
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ModelError(f"The recorded checksums in {path} are damaged; delete the file to record them anew.")
    return data


def _record(name: str, checksum: dict[str, Any], cache: Path) -> None:
    with _locked(cache / "checksums.lock"):
        data = {**_read_checksums(cache), name: checksum}
        write_bytes(_sums(cache), (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


# ---- locking -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` as a lock among programs and threads; it is let go even if the program dies.

    The empty file stays: were it removed, a third program could lock a new one while a second waits on it.
    """
    with path.open("ab") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise ModelError(f"Another program has held {path} for an hour; stop it, then pull again.")
            time.sleep(0.1)
        yield  # closing the file lets go of the lock


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # PermissionError is how Windows says it
        return False
    return True
