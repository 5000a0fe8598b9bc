"""The programs in docs/ run as they stand there."""

import json
import re
from pathlib import Path

import pytest
import uvicorn

import draggan_fast as dg
from draggan_fast.live_socket import welcome
from tests.live_client import Client, get, running

DOCS = Path(__file__).resolve().parent.parent / "docs"
EMBEDDING = DOCS / "embedding.md"


def programs(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:uvicorn")
def test_the_program_that_embeds_the_server(monkeypatch):
    (code,) = programs(EMBEDDING)
    served = []

    def serve_and_drag(app, **options):
        """In place of uvicorn.run: at a free port, and not for ever."""
        config = uvicorn.Config(app, **options)  # takes all of them
        with running(app, ws_max_size=config.ws_max_size) as port:
            assert b"/drag/" in get(port, "/")[2]
            assert get(port, "/drag/")[0] == 200
            assert get(port, "/drag/api/models", Origin="https://evil.example")[0] == 403
            with Client(port, path="/drag/ws") as client:
                session = client.create(seed=33)["session"]
                client.ask("points", handles=[[64, 69]], targets=[[50, 77]])
                client.ask("step", count=2)
                assert client.status("paused")["step"] == 2
                status, _, saved = get(port, f"/drag/api/sessions/{session}/session.safetensors")
                assert status == 200
                assert client.upload(2, saved)["answer"]["type"] == "ok"
                served.append(
                    (options["port"], client.welcome["limits"]["piece_bytes"] < options["ws_max_size"] < 1 << 20)
                )

    monkeypatch.setattr(uvicorn, "run", serve_and_drag)
    exec(compile(code, "app.py", "exec"), {"__name__": "__main__"})
    assert served == [(8000, True)]


def test_the_welcome_of_the_protocols_example_is_the_servers():
    blocks = re.findall(r"```json\n(.*?)```", (DOCS / "protocol.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [found for found in map(json.loads, blocks) if found["type"] == "welcome"]
    assert example == json.loads(json.dumps(welcome(dg.create_app().live, resumed=False)))
