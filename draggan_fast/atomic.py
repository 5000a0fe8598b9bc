"""Writing a file whole or not at all, so that a full disk or a crash never leaves half a file behind."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a new empty file beside `path`; it takes the place of `path` if the block ends well.

    The new file has the suffix of `path` (writers that go by suffix work) and is flushed to the disk before
    the exchange. If the block raises, the new file is removed and `path` stays as it was. A symbolic link is
    followed: what it points to is replaced, not the link.

    Raises: OSError when the folder cannot be written, the disk is full, and so on.
    """
    final = Path(os.path.realpath(path))
    temp = final.with_name(f".{final.stem[:64]}.{secrets.token_hex(6)}.tmp{final.suffix}")
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(final))
    if final.exists() and not final.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(final))
    # Not tempfile.mkstemp: its 0600 would deny the finished file to everyone whom the umask allows.
    os.close(os.open(temp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temp
        _flush(temp)
        os.replace(temp, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    # The exchange itself reaches the disk with the folder; not every system lets a folder be opened.
    with contextlib.suppress(OSError):
        _flush(final.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises OSError like `replacing`."""
    with replacing(path) as temp:
        temp.write_bytes(data)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
