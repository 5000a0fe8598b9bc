"""``draggan-fast serve`` as a process of its own: starts, tells where it is, refuses, ends on Ctrl-C."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from draggan_fast import cli, serve_command
from tests.live_client import Client, get


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


def wait_until_ready(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            if get(port, "/healthz")[0] == 200:
                return
        except ConnectionError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
            answers.append(get(port, f"/api/sessions/{sessions[0]}/timeline.webp")[0])

        exporting = threading.Thread(target=export)
        exporting.start()
        time.sleep(0.1)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        codes = [client.closed() for client in clients]
        told = time.monotonic() - start
        assert process.wait(30) == 0
        seconds = time.monotonic() - start
        exporting.join(30)
    assert set(codes) <= {1001, 1012}
    assert answers in ([503], [200])  # refused, or it was quicker than the signal: but answered
    print(f"told after {told:.2f} s, ended after {seconds:.2f} s")
    assert seconds < 10  # a second on a machine of its own; this one may be busy
    assert process.stdout.read() == "draggan-fast: stopped\n"


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
        (["--max-sessions", "0", "--port", "0"], "max_sessions"),
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
        assert cli.main(["serve", "--port", str(other.getsockname()[1])]) == 2
    assert "Cannot listen" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["uvicorn", "starlette", "websockets", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(name):
    code = f"import sys; sys.modules[{name!r}] = None; from draggan_fast import cli; sys.exit(cli.main(['serve']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "draggan-fast[serve]" in result.stderr
    assert name in result.stderr
    assert result.stderr.count("\n") == 1


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
