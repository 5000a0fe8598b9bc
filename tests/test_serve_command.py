"""``draggan-fast serve`` as a process of its own: starts, tells where it is, refuses, ends on Ctrl-C."""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

import draggan_fast as dg
from draggan_fast import cli, serve_command
from draggan_fast.live_security import LOOPBACK_HOSTS
from tests.live_client import Client, get, wait_until_ready


@pytest.fixture
def served(golden):
    """A running ``draggan-fast serve`` with the small golden network: (process, port)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "draggan_fast", "serve", "--port", "0", "--threads", "1",
         "--model", str(golden / "rosinality" / "rosinality.pt")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + process.stdout.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_ctrl_c_in_the_middle_of_drags_and_an_export(served):
    process, port = served
    wait_until_ready(port)
    assert json.loads(get(port, "/api/models")[2])["models"][0]["resolution"] == 64
    with contextlib.ExitStack() as stack:
        clients, sessions = [stack.enter_context(Client(port)) for _ in range(3)], []
        for seed, client in enumerate(clients):
            sessions.append(client.create(seed=seed)["session"])
            client.ask("settings", lr=1e-6, max_steps=100000)
            client.ask("points", handles=[[10, 10]], targets=[[60, 60]])
            client.ask("start")
            client.frame(lambda frame, least=60 if seed == 0 else 3: frame.step > least)
        answers = []

        def export():
            try:
                answers.append(get(port, f"/api/sessions/{sessions[0]}/timeline.webp")[0])
            except (ConnectionError, http.client.HTTPException):
                answers.append("cut off")

        exporting = threading.Thread(target=export)
        exporting.start()
        deadline = time.monotonic() + 30
        while not answers and b"\ndraggan_animations 0.0" in get(port, "/metrics")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        codes = [client.closed() for client in clients]
        told = time.monotonic() - start
        assert process.wait(30) == 0
        seconds = time.monotonic() - start
        exporting.join(30)
    assert 1001 in codes
    assert set(codes) <= {1001, 1012, None}  # None: on a busy machine, what it was just sending met a closed socket
    *logged, last = process.stdout.read().splitlines()
    assert last == "draggan-fast: stopped"
    impatient = [line for line in logged if re.fullmatch(r"\S+\s+Cancel \d+ running task\(s\), .*exceeded", line)]
    assert logged == impatient  # uvicorn's own word on a machine that is too busy to answer in time; and no traceback
    # Refused, or it was quicker than the signal: but answered, unless uvicorn has cut it off.
    assert answers in ([503], [200], *([["cut off"]] if impatient else ()))
    print(f"told after {told:.2f} s, ended after {seconds:.2f} s")
    assert seconds < 10  # a second on a machine of its own; this one may be busy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--host", "192.0.2.1", "--port", "0"], "--token"),
        (["--host", "::", "--port", "0"], "--token"),
        (["--port", "70000"], "--port must be"),
        (["--threads", "0"], "--threads must be"),
        (["--model", "no-such-model", "--port", "0"], "no-such-model"),
        (["--host", "192.0.2.1", "--token", "s", "--port", "0"], "Cannot listen"),
        (["--host", "no.such.host.invalid", "--token", "s", "--port", "0"], "Cannot listen"),
        (["--max-sessions", "0", "--port", "0"], "--max-sessions"),
        (["--token", "", "--port", "0"], "The token of --token is empty"),
        (["--token", "a b", "--port", "0"], "That of --token is not"),
        (["--token", "a", "--token-file", "b", "--port", "0"], "--token and --token-file both"),
        (["--token-file", "no/such/file", "--port", "0"], "no/such/file"),
        (["--token-file", ".", "--port", "0"], "Cannot read the token"),
    ],
)
def test_what_is_refused(arguments, words, capsys):
    assert cli.main(["serve", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_a_taken_port_is_told(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other_port = other.getsockname()[1]
        assert cli.main(["serve", "--port", str(other_port)]) == 2
        assert "Cannot listen" in (message := capsys.readouterr().err)
    assert f"--port {other_port + 1 if other_port < 65535 else 65534}, or --port 0" in message


def tokens(monkeypatch, variable=None, **given):
    if variable is None:
        monkeypatch.delenv("DRAGGAN_FAST_TOKEN", raising=False)
    else:
        monkeypatch.setenv("DRAGGAN_FAST_TOKEN", variable)
    return serve_command.token_of(argparse.Namespace(**{"token": None, "token_file": None, **given}))


def test_a_token_comes_from_one_place(monkeypatch, tmp_path):
    file = tmp_path / "token"
    for text in ("s3cret", "s3cret\n", "s3cret\r\n"):
        file.write_bytes(text.encode())
        assert tokens(monkeypatch, token_file=str(file)) == "s3cret"
    assert tokens(monkeypatch) is None
    assert tokens(monkeypatch, token="given") == "given"
    assert tokens(monkeypatch, "from the environment".replace(" ", "-")) == "from-the-environment"
    for variable, given, words in (
        ("a", {"token": "b"}, "--token and DRAGGAN_FAST_TOKEN both"),
        ("a", {"token_file": str(file)}, "--token-file and DRAGGAN_FAST_TOKEN both"),
        ("", {}, "The token of DRAGGAN_FAST_TOKEN is empty"),
    ):
        with pytest.raises(dg.DragError, match=words):
            tokens(monkeypatch, variable, **given)
    for content, words in (
        (b"", "is empty"),
        (b"a\nb\n", "printable"),
        (b"\xff\xfe", "not text"),
        (b"a" * 600, "1 to 512"),
    ):
        file.write_bytes(content)
        with pytest.raises(dg.DragError, match=words):
            tokens(monkeypatch, token_file=str(file))


def test_a_token_that_others_cannot_see_is_not_shown_to_them(monkeypatch):
    """In the command line of the browser that --open starts; and nowhere in what is printed."""
    monkeypatch.setenv("DRAGGAN_FAST_TOKEN", "s3cret")
    shown = []
    monkeypatch.setattr(serve_command, "run", lambda app, listener, host, secret, open_page: shown.append(secret))
    monkeypatch.setattr("draggan_fast.server.create_app", lambda *_, **options: shown.append(options["token"]))
    assert cli.main(["serve", "--host", "127.0.0.1", "--port", "0", "--open"]) is None
    monkeypatch.delenv("DRAGGAN_FAST_TOKEN")
    cli.main(["serve", "--port", "0", "--token", "a/b"])
    assert shown == ["s3cret", "", "a/b", "#token=a/b"]


def test_with_a_token_any_host_name_is_answered_and_without_one_only_this_machines(monkeypatch):
    """As docs/embedding.md says for a proxy that passes its own name on, with serve on loopback."""
    monkeypatch.delenv("DRAGGAN_FAST_TOKEN", raising=False)
    hosts = []
    monkeypatch.setattr(serve_command, "run", lambda *_: None)
    monkeypatch.setattr("draggan_fast.server.create_app", lambda *_, **options: hosts.append(options["allowed_hosts"]))
    cli.main(["serve", "--port", "0", "--token", "a"])
    cli.main(["serve", "--port", "0", "--host", "127.0.0.2"])
    assert hosts == [("*",), (*LOOPBACK_HOSTS, "127.0.0.2")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "70000"], ["serve", "--host", "0.0.0.0"], ["serve", "--threads", "0"],
        ["serve", "--model", "no-such-model"], ["serve", "--max-sessions", "0"], ["serve", "--token", ""],
        ["serve", "--token-file", "no/such/file"], ["serve", "--port", "TAKEN"],
        ["generate", "--out", "no/such/folder/x.png"], ["generate", "--out", "x.txt"],
        ["generate", "--out", "x.png", "--model", "no-such-model"], ["generate", "--out", "x.png", "--threads", "0"],
        ["drag", "--out", "x", "--model", "no/such/file.pkl"], ["drag", "--out", "x", "--threads", "-1"],
        ["convert", "x.pkl", "x.pkl"], ["replay", "x.safetensors", "--model", "no-such-model"],
        ["replay", "x.safetensors", "--out", "x.txt"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_wrong_on_sight_is_told_before_torch_is_imported(arguments, monkeypatch, capsys):
    """An import of torch takes seconds. Here it is there already; whoever imports what needs it is caught."""
    monkeypatch.delenv("DRAGGAN_FAST_TOKEN", raising=False)
    for module in ("command_common", "commands", "loading", "server"):
        monkeypatch.setitem(sys.modules, f"draggan_fast.{module}", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert cli.main([str(taken.getsockname()[1]) if a == "TAKEN" else a for a in arguments]) == 2
    message = capsys.readouterr().err
    assert "unexpected" not in message, message
    assert message.count("\n") == 1


def test_the_checks_need_no_torch():
    """What the test above takes for granted."""
    code = (
        "import sys; from draggan_fast import cli; "
        "sys.exit(0 if cli.main(['serve', '--host', '0.0.0.0', '--port', '1']) == 2 "
        "and cli.main(['generate', '--out', 'x.txt']) == 2 and 'torch' not in sys.modules else 1)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DRAGGAN_FAST_TOKEN"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


@pytest.mark.parametrize("name", ["uvicorn", "starlette", "websockets", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(name):
    code = f"import sys; sys.modules[{name!r}] = None; from draggan_fast import cli; sys.exit(cli.main(['serve']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "draggan-fast[serve]" in result.stderr
    assert name in result.stderr
    assert result.stderr.count("\n") == 1


def test_create_app_without_the_extra_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "draggan_fast.server", raising=False)
    monkeypatch.delitem(vars(dg), "create_app", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(dg.DragError, match=r"starlette.*draggan-fast\[serve\]"):
        _ = dg.create_app


def test_the_package_does_without_the_extra():
    code = (
        "import sys, draggan_fast; from draggan_fast import session; "
        "assert not {'starlette', 'uvicorn', 'websockets', 'prometheus_client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_cpu_is_left_to_the_event_loop_and_the_browser(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for threads, served_with in ((8, 7), (2, 1), (1, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert serve_command.default_threads() == served_with
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert serve_command.default_threads() is None
