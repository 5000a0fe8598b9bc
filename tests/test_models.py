"""Named models: what a name means, and downloads from a local server that cuts, lies, ignores and redirects."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from draggan_fast import download, models
from draggan_fast.atomic import write_bytes
from draggan_fast.checkpoint import load_checkpoint
from draggan_fast.errors import DragError, ModelError
from draggan_fast.models import DEFAULT_MODEL, ModelInfo, list_models, pull, resolve

PAYLOAD = (Path(__file__).parent / "golden" / "rosinality" / "rosinality.pt").read_bytes()
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves PAYLOAD under any path, as its attributes say; keeps what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.payload = PAYLOAD
        self.ranges = True  # honours Range
        self.etag: str | None = '"v1"'
        self.cuts: list[int] = []  # for each request in turn: bytes after which the connection is cut
        self.statuses: list[int] = []  # for each request in turn: answered with this instead
        self.say_length = True
        self.extra_length = 0  # promised beyond what is sent
        self.redirect: str | None = None  # where /old leads
        self.pause = threading.Event()
        self.pause.set()
        self.requests: list[dict[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the game."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
        server.pause.wait(10)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if self.path == "/old" and server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        body, start = server.payload, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.ranges and same:
            start = int(asked[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body) + server.extra_length}")
        else:
            self.send_response(200)
        if server.say_length:
            self.send_header("Content-Length", str(len(body) - start + server.extra_length))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a model called "test" that the local server offers on the list; conversion is a copy unless `real`."""
    convert = models._convert

    def put(*, real: bool = False, **changes: object) -> None:
        copy = lambda info, source, target: write_bytes(target, source.read_bytes())  # noqa: E731
        monkeypatch.setattr(models, "_convert", convert if real else copy)
        info = ModelInfo(
            name="test",
            file="test.pt",
            px=(64, 64),
            format="rosinality",
            note="",
            licence="Be kind.",
            url=f"{server.url}/test.pt",
            manual=None,
            size=None,
            sha256=None,
        )
        known = {"test": dataclasses.replace(info, **changes), DEFAULT_MODEL: models.list_models()[0]}  # type: ignore[arg-type]
        monkeypatch.setattr(models, "_registry", lambda: known)

    put()
    return put


def leftovers(cache: Path) -> list[str]:
    """What a pull leaves beside the converted model."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock" and p.name != "test.safetensors")


# ---- the list and resolve ----------------------------------------------------------------------------


def test_list_is_complete_and_honest() -> None:
    listed = list_models()
    assert listed[0].name == DEFAULT_MODEL
    assert listed[0].kind == "embedded"
    assert len({info.name for info in listed}) == len(listed) == 24
    for info in listed:
        assert info.licence.endswith(".")
        assert info.note
        assert info.px[0] in (32, 128, 256, 512, 1024)
        assert info.kind == "embedded" or str(info.px[0]) in info.name
        assert info.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", info.sha256)
        assert info.url is None or (info.url.startswith("https://") and info.url.endswith("/" + info.file))
    assert {info.name for info in listed if info.kind == "manual"} == {"human-512", "lhq-256"}


def test_resolve_names_paths_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGGAN_FAST_CACHE", str(tmp_path))
    (tmp_path / "net.pkl").write_bytes(b"")
    assert resolve(tmp_path / "net.pkl") == tmp_path / "net.pkl"
    with pytest.raises(ModelError, match="draggan-fast models pull ffhq-512"):
        resolve("ffhq-512")
    (tmp_path / "ffhq-512.safetensors").write_bytes(b"")
    assert resolve("ffhq-512") == tmp_path / "ffhq-512.safetensors"
    assert next(i for i in list_models() if i.name == "ffhq-512").path() == tmp_path / "ffhq-512.safetensors"
    with pytest.raises(ModelError, match=r"did you mean .*ffhq-512.*draggan-fast models"):
        resolve("FFHQ-51")
    with pytest.raises(ModelError, match="no file"):
        resolve(str(tmp_path / "none.pkl"))
    with pytest.raises(ModelError, match="no file"):
        resolve("none.pt")
    with pytest.raises(ModelError, match="folder"):
        resolve(tmp_path)


def test_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_HERE", tmp_path)
    known = {DEFAULT_MODEL: list_models()[0]}
    monkeypatch.setattr(models, "_registry", lambda: known)
    for find in (resolve, pull):
        with pytest.raises(ModelError, match=r"missing.*reinstall"):
            find(DEFAULT_MODEL)
    (tmp_path / "assets").mkdir()
    file = tmp_path / "assets" / f"{DEFAULT_MODEL}.safetensors"
    file.write_bytes(b"")
    assert resolve(DEFAULT_MODEL) == pull(DEFAULT_MODEL) == list_models()[0].path() == file


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRAGGAN_FAST_CACHE", str(tmp_path / "a"))
    assert models.default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("DRAGGAN_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.default_cache_dir() == tmp_path / "draggan-fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert models.default_cache_dir().is_absolute()


# ---- downloads that end well -------------------------------------------------------------------------


def test_pull_downloads_converts_and_records(
    server: Server, offer: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(real=True)
    seen: list[tuple[int, int | None]] = []
    path = pull("test", progress=lambda done, total: seen.append((done, total)), cache_dir=tmp_path / "new")
    assert path == tmp_path / "new" / "test.safetensors" == resolve("test", tmp_path / "new")
    loaded = load_checkpoint(path)
    assert loaded.config.resolution == 64
    assert loaded.metadata["name"] == "test"
    assert loaded.metadata["licence"] == "Be kind."
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD))
    assert seen == sorted(seen)
    assert capsys.readouterr().err == "test: Be kind.\n"
    assert leftovers(path.parent) == ["checksums.json"]
    recorded = json.loads((path.parent / "checksums.json").read_text())
    assert recorded == {"test": {"sha256": SHA256, "size": len(PAYLOAD)}}
    assert pull("test", cache_dir=path.parent) == path
    assert len(server.requests) == 1


def test_accept_is_asked_before_anything_is_downloaded(server: Server, offer: Callable, tmp_path: Path) -> None:
    asked: list[str] = []

    def no(info: ModelInfo) -> bool:
        asked.append(info.licence)
        return False

    with pytest.raises(ModelError, match="not accepted"):
        pull("test", accept=no, cache_dir=tmp_path)
    assert asked == ["Be kind."]
    assert not server.requests
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', None])
def test_cut_connections_are_resumed(server: Server, offer: Callable, tmp_path: Path, etag: str | None) -> None:
    server.etag, server.cuts = etag, [1_000_000, 700_000]
    assert pull("test", cache_dir=tmp_path).is_file()
    assert [r.get("range") for r in server.requests] == [None, "bytes=1000000-", "bytes=1700000-"]
    strong = etag if etag == '"v1"' else None
    assert [r.get("if-range") for r in server.requests] == [None, strong, strong]


def test_a_later_call_goes_on(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.cuts = [400_000] + [0] * (download.ATTEMPTS - 1)
    with pytest.raises(ModelError, match="try again later"):
        pull("test", cache_dir=tmp_path)
    assert (tmp_path / "test.pt.part").stat().st_size == 400_000
    assert pull("test", cache_dir=tmp_path).is_file()
    assert server.requests[-1]["range"] == "bytes=400000-"
    assert leftovers(tmp_path) == ["checksums.json"]


def test_a_server_without_range_restarts(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1_000_000]
    assert pull("test", cache_dir=tmp_path).is_file()
    assert server.requests[1]["range"] == "bytes=1000000-"


def test_a_file_that_changed_meanwhile_restarts(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.payload, server.etag = b"older" * 100_000, '"v0"'
    server.cuts = [300_000] + [0] * (download.ATTEMPTS - 1)
    with pytest.raises(ModelError):
        pull("test", cache_dir=tmp_path)
    server.payload, server.etag = PAYLOAD, '"v1"'
    assert pull("test", cache_dir=tmp_path).is_file()


def test_a_finished_part_is_not_fetched_again(server: Server, offer: Callable, tmp_path: Path) -> None:
    (tmp_path / "test.pt.part").write_bytes(PAYLOAD)
    for total in (len(PAYLOAD), None):  # without a known length the server says so, by 416
        state = {"url": f"{server.url}/test.pt", "total": total, "validator": None}
        (tmp_path / "test.pt.part.json").write_text(json.dumps(state))
        part = tmp_path / "test.pt.part"
        download.fetch(f"{server.url}/test.pt", part, progress=None, max_bytes=1 << 30, timeout=5)
        assert part.read_bytes() == PAYLOAD
    assert len(server.requests) == 1


def test_a_server_that_tells_no_length(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.say_length = False
    totals: set[int | None] = set()
    assert pull("test", progress=lambda _, total: totals.add(total), cache_dir=tmp_path).is_file()
    assert totals == {None}


def test_busy_servers_are_asked_again(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    assert pull("test", cache_dir=tmp_path).is_file()
    assert len(server.requests) == 4


def test_redirects_are_followed(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.redirect, server.cuts = f"{server.url}/new", [500_000]
    offer(url=f"{server.url}/old")
    assert pull("test", cache_dir=tmp_path).is_file()
    assert [r["path"] for r in server.requests] == ["/old", "/new"] * 2
    assert server.requests[3]["range"] == "bytes=500000-"


def test_concurrent_pulls_download_once(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.pause.clear()
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull("test", cache_dir=tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    server.pause.set()
    for thread in threads:
        thread.join(20)
    assert paths == [tmp_path / "test.safetensors"] * 4
    assert len(server.requests) == 1


def test_manual_models_are_converted_from_the_cache(offer: Callable, tmp_path: Path) -> None:
    offer(url=None, manual="ask the owner")
    with pytest.raises(ModelError, match=re.escape(f"ask the owner, save it as {tmp_path / 'test.pt'}")):
        pull("test", cache_dir=tmp_path)
    (tmp_path / "test.pt").write_bytes(PAYLOAD)
    assert pull("test", cache_dir=tmp_path).is_file()
    assert (tmp_path / "test.pt").is_file()  # theirs, not ours to remove


# ---- downloads that fail -----------------------------------------------------------------------------


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(DragError, match="did you mean horses-256"):
        pull("horse-256", cache_dir=tmp_path)


def test_missing_files_are_not_asked_for_twice(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(ModelError, match="404"):
        pull("test", cache_dir=tmp_path)
    assert len(server.requests) == 1
    assert leftovers(tmp_path) == []


def test_a_wrong_length_is_never_taken_for_whole(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.extra_length = 100
    with pytest.raises(ModelError, match=f"{download.ATTEMPTS} attempts"):
        pull("test", cache_dir=tmp_path)
    assert not (tmp_path / "test.safetensors").exists()


def test_a_changed_file_is_refused_at_the_second_download(server: Server, offer: Callable, tmp_path: Path) -> None:
    pull("test", cache_dir=tmp_path).unlink()
    server.payload = PAYLOAD[:-1] + b"\x01"
    with pytest.raises(ModelError, match=rf"(?s)sha256 .*{SHA256} is recorded.*checksums\.json"):
        pull("test", cache_dir=tmp_path)
    assert leftovers(tmp_path) == ["checksums.json"]
    server.payload = PAYLOAD
    assert pull("test", cache_dir=tmp_path).is_file()


def test_the_checksum_on_the_list_counts(server: Server, offer: Callable, tmp_path: Path) -> None:
    offer(sha256="0" * 64)
    with pytest.raises(ModelError, match=r"0{64} is recorded"):
        pull("test", cache_dir=tmp_path)
    assert leftovers(tmp_path) == []
    offer(sha256=SHA256, size=len(PAYLOAD))
    assert pull("test", cache_dir=tmp_path).is_file()


def test_what_is_no_checkpoint_is_removed_and_not_recorded(server: Server, offer: Callable, tmp_path: Path) -> None:
    offer(real=True)
    server.payload = b"<html>please log in</html>"
    with pytest.raises(ModelError, match="cannot be used"):
        pull("test", cache_dir=tmp_path)
    assert leftovers(tmp_path) == []
    server.payload = PAYLOAD
    assert pull("test", cache_dir=tmp_path).is_file()


def test_damaged_checksums_are_told(server: Server, offer: Callable, tmp_path: Path) -> None:
    (tmp_path / "checksums.json").write_text("[")
    with pytest.raises(ModelError, match=r"checksums\.json are damaged"):
        pull("test", cache_dir=tmp_path)


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/x", "file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_unsafe_redirects_are_refused(target: str) -> None:
    request = download.urllib.request.Request("https://127.0.0.1/x")
    with pytest.raises(ModelError, match="redirects from https"):
        download._Redirects().redirect_request(request, None, 302, "", {}, target)  # type: ignore[arg-type]


def test_redirects_out_of_http_are_refused(server: Server, offer: Callable, tmp_path: Path) -> None:
    server.redirect = "file:///etc/hostname"
    offer(url=f"{server.url}/old")
    with pytest.raises(ModelError, match="not allowed"):
        pull("test", cache_dir=tmp_path)
    with pytest.raises(ModelError, match="only http and https"):
        download.fetch("file:///etc/hostname", tmp_path / "p", progress=None, max_bytes=9, timeout=1)


@pytest.mark.parametrize("say_length", [True, False])
def test_files_beyond_the_cap_are_refused(
    server: Server, offer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say_length: bool
) -> None:
    server.say_length = say_length
    monkeypatch.setattr(models, "MAX_BYTES", 1_000_000)
    with pytest.raises(ModelError, match="1000000"):
        pull("test", cache_dir=tmp_path)
    assert leftovers(tmp_path) == []


def test_an_unwritable_cache_is_told(server: Server, offer: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="DRAGGAN_FAST_CACHE"):
        pull("test", cache_dir=tmp_path / "file" / "cache")
    assert not server.requests


def test_too_little_room_is_told_before_the_download(
    server: Server, offer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match="has 1000 left"):
        pull("test", cache_dir=tmp_path)
    assert not (tmp_path / "test.pt.part").exists()


def test_a_disk_that_fills_up(server: Server, offer: Callable, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(ModelError, match=r"Cannot write .*\.part"):
            pull("test", cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.requests) == 1  # no retry helps
    assert (tmp_path / "test.pt.part").stat().st_size == 1_000_000
    offer(real=True)
    # While converting: the download stays, no half model does, and the next call needs no network.
    (tmp_path / "test.pt").write_bytes(PAYLOAD)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(ModelError, match="Cannot save"):
            pull("test", cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leftovers(tmp_path) == ["test.pt", "test.pt.part", "test.pt.part.json"]
    assert pull("test", cache_dir=tmp_path).is_file()
    assert len(server.requests) == 1
