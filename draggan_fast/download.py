"""Downloading one large file over HTTP: resumed after a cut, bounded in size, redirected only safely."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Any

from .atomic import write_bytes
from .errors import ModelError
from .version import __version__

Progress = Callable[[int, "int | None"], object]  # bytes that have arrived, bytes in all (None = not told)

ATTEMPTS = 6
BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each further one
_CHUNK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(url: str, part: Path, *, progress: Progress | None, max_bytes: int, timeout: float) -> None:
    """Download `url` into the file `part`, going on where an earlier call stopped.

    Beside `part` lies `part` + ".json" with what the server said of the file, so that only the same file is
    continued: its URL, its length, and its ETag or date for If-Range. A server without Range restarts it.

    Args:
        progress: called with the bytes that have arrived and the bytes in all (None when not told).
        max_bytes: a file larger than this is refused.
        timeout: seconds without an answer or a byte after which the connection counts as cut.
    Raises: ModelError when the file cannot be had: refused, gone, cut ATTEMPTS times, too large, or without
        room for it. What has arrived stays, except when it is too large.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(f"Cannot download {url}: only http and https addresses are supported.")
    opener = urllib.request.build_opener(_Redirects)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(BACKOFF_SECONDS * 2 ** (attempt - 1), 30.0))
        try:
            if _transfer(opener, url, part, progress, max_bytes, timeout):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            reason = " ".join(f"the server answered {error.code} {error.reason}".split())
            if error.code not in _TRANSIENT:
                raise ModelError(f"Cannot download {url}: {reason}; the file may have moved.") from error
        except urllib.error.URLError as error:
            reason = str(error.reason)
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ModelError(
                    f"Cannot download {url}: its certificate is not valid ({reason}); "
                    "check the clock and the network of this machine."
                ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
    raise ModelError(
        f"Cannot download {url}: {reason} ({ATTEMPTS} attempts); what has arrived is kept, try again later."
    )


def _transfer(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    progress: Progress | None,
    max_bytes: int,
    timeout: float,
) -> bool:
    """One request. Returns whether the file is now whole; False when the connection ended early."""
    known = _read_state(part, url)
    have = part.stat().st_size if known and part.exists() else 0
    if have and known.get("total") == have:
        return True
    headers = {"User-Agent": f"draggan-fast/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            headers["If-Range"] = known["validator"]
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing beyond what is here: whole if the length agrees, else not the file that was begun.
        error.close()
        told = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if told and int(told[1]) == have and known.get("total") in (None, have):
            return True
        _discard(part)
        return False

    with response:
        if response.status == 206:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            total = int(told[2]) if told and told[2] != "*" else None
            now = _validator(response.headers)
            if (
                not told
                or int(told[1]) != have
                or known.get("total") not in (None, total)
                or (now and known.get("validator", now) not in (None, now))
            ):
                _discard(part)
                return False
        elif response.status == 200:
            have = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        else:
            raise ModelError(f"Cannot download {url}: the server answered {response.status} without the file.")
        _check_room(url, part, have, total, max_bytes)
        state = {"url": url, "total": total, "validator": _validator(response.headers)}
        with _local_errors(part):
            write_bytes(_state_file(part), json.dumps(state).encode())
            file = open(part, "ab" if have else "wb", buffering=0)  # noqa: SIM115 - closed just below
        with file:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > max_bytes:
                    _discard(part)
                    raise ModelError(f"Cannot download {url}: it is larger than {max_bytes} bytes.")
                _write_all(file, chunk, part)
                if progress:
                    progress(have, total)
    return total is None or have == total


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects over http and https, but never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(address).scheme for address in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise ModelError(f"Cannot download {req.full_url}: the server redirects from {old} to {new}: not safe.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_room(url: str, part: Path, have: int, total: int | None, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise ModelError(f"Cannot download {url}: its {total} bytes are more than the {max_bytes} allowed.")
    with _local_errors(part):
        free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise ModelError(
            f"Cannot download {url}: {total - have} more bytes are needed but {part.parent} has {free} left; "
            "make room, or choose another folder with DRAGGAN_FAST_CACHE."
        )


@contextlib.contextmanager
def _local_errors(part: Path) -> Iterator[None]:
    """Tell the disk's errors from the network's: both are OSErrors, only the network's are worth a retry."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"Cannot write {part}: {error.strerror or error}; make room, or choose another folder with "
            "DRAGGAN_FAST_CACHE."
        ) from error


def _write_all(file: IO[bytes], data: bytes, part: Path) -> None:
    view = memoryview(data)
    with _local_errors(part):
        while view:
            view = view[file.write(view) :]


def _validator(headers: Message) -> str | None:
    """What tells versions of the file apart: a strong ETag (If-Range takes no weak one), else a date."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path, url: str) -> dict[str, Any]:
    try:
        state = json.loads(_state_file(part).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("url") == url else {}


def _discard(part: Path) -> None:
    for path in (part, _state_file(part)):
        with contextlib.suppress(OSError):
            path.unlink()


def finish(part: Path, final: Path) -> None:
    """Move a whole `part` to its place and drop what was noted beside it. Raises OSError."""
    part.replace(final)
    _discard(part)
