"""Shared fixtures: the golden folder, two real networks, a live server with a client, a browser with tabs.

What serves and drives pages is imported by who asks for it: its packages are extras.
"""

import os
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import draggan_fast as dg

# Without a GPU, Triton's interpreter runs the Triton kernels. It must be asked for before they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Small networks gain nothing from threads, and on a busy machine threads that wait for each other cost a lot.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def nvlabs():
    """The golden 256×256 network: random weights, every feature of the published ones."""
    return dg.load(GOLDEN / "nvlabs" / "nvlabs.pkl", device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def small():
    """A 64×64 network, for whatever needs many steps."""
    return dg.load(GOLDEN / "rosinality" / "rosinality.pt", device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def steady_torch():
    """Tests draw the same random numbers whatever ran before them."""
    torch.manual_seed(0)


@pytest.fixture
def vector_level():
    """A function that chooses the vector instructions, undone after the test."""
    from draggan_fast import _C

    before = _C.build_info()["level"]
    yield _C.set_level
    _C.set_level(before)


@pytest.fixture(scope="module")
def port():
    """A server of tiny models, one of them with classes, for tests that leave nothing behind."""
    from tests.live_client import running, wait_until_ready
    from tests.live_models import tiny_model

    with running(dg.create_app([tiny_model(), tiny_model("classes", c_dim=3)], max_sessions=40)) as port:
        wait_until_ready(port)
        yield port


@pytest.fixture
def client(port):
    """A viewer of that server, who closes the picture at the end."""
    from tests.live_client import Client

    with Client(port) as client:
        yield client
        client.say("close")


@pytest.fixture(scope="module")
def chromium():
    """subtle: not for longer than a module, while it runs asyncio has its loop in this thread."""
    from draggan_fast.bench.browser import browser

    with browser() as launched:
        yield launched


@pytest.fixture
def open_tab(chromium):
    """Opens tabs on pages; at the end they are closed, and what they saw is judged."""
    from tests.page_tabs import tabs

    with tabs(chromium) as opened:
        yield opened


@pytest.fixture(scope="module")
def guest():
    """Somebody else's site: its ``html`` is the page at its ``url``."""
    from tests.page_tabs import Guest

    with ThreadingHTTPServer(("127.0.0.1", 0), Guest) as server:
        server.url, server.html = f"http://127.0.0.1:{server.server_port}/", b""
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
