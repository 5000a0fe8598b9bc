"""``draggan-fast serve``: the live page and its server."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from .errors import DragError

if TYPE_CHECKING:
    from .server import LiveApp

NEEDED = ("starlette", "uvicorn", "websockets", "prometheus_client")


def serve(arguments: argparse.Namespace) -> NoReturn:
    """Until Ctrl-C. Nothing but this machine can reach it, unless another address and a token are given."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DragError(f"The server needs {', '.join(missing)}; run pip install 'draggan-fast[serve]'.")
    from .command_common import set_threads
    from .live_security import LOOPBACK_HOSTS, is_loopback
    from .loading import load
    from .models import DEFAULT_MODEL
    from .server import create_app

    host, port, token = arguments.host, arguments.port, arguments.token
    local = is_loopback(host)
    if not local and not token:
        raise DragError(
            f"Whoever reaches {host} could use this server; give --token SECRET, or keep to --host 127.0.0.1."
        )
    if not 0 <= port <= 65535:
        raise DragError(f"--port must be from 0 to 65535, not {port}.")
    set_threads(default_threads() if arguments.threads is None else arguments.threads)
    with listen(host, port) as listener:
        models = [load(name, arguments.device, arguments.precision) for name in arguments.model or [DEFAULT_MODEL]]
        app = create_app(
            models,
            token=token,
            # Behind a token a foreign name does no harm: its page does not know the token.
            allowed_hosts=(*LOOPBACK_HOSTS, f"[{host}]" if ":" in host else host) if local else ("*",),
            allow_origins=arguments.allow_origin,
            max_sessions=arguments.max_sessions,
        )
        run(app, listener, host, token, arguments.open)


def default_threads() -> int | None:
    """All CPUs but one, which is for the event loop and for a browser on the same machine: threads of one computation
    wait for each other, and on a CPU that they share all of them wait. None where OMP_NUM_THREADS has decided."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    import torch

    return max(torch.get_num_threads() - 1, 1)


def run(app: LiveApp, listener: socket.socket, host: str, token: str | None, open_page: bool) -> NoReturn:
    """Serves until Ctrl-C, and ends the process."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.live.halt()  # first: exports that are being computed would be waited for
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=app.live.limits.upload_bytes + 4096,
        ws_per_message_deflate=False,  # pictures are compressed already
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=0.3,  # type: ignore[arg-type]  # seconds, which nothing asks to be whole; for slow readers
    )
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    # In the part of the address that browsers do not send: it stays out of logs.
    complete = address + (f"#token={quote(token)}" if token else "")
    print(f"draggan-fast: {', '.join(app.live.models.names)} at {address} (Ctrl-C ends it)", flush=True)
    if open_page:
        opener = threading.Timer(0.5, webbrowser.open, [complete])
        opener.daemon = True  # a browser that does not come up must not keep the server from ending
        opener.start()
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again once it has shut down
    finally:
        app.live.stop()
    print("draggan-fast: stopped", flush=True)
    # Nothing is left to be done or written, but Python takes a second and more to take torch apart; and a long step or
    # the encoding of a film, which nobody will see any more, may not have ended.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens before any model is loaded, so that a taken port is known at once. Raises DragError."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere the option means another thing
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        if listener is not None:
            listener.close()
        raise DragError(f"Cannot listen at {host}, port {port}: {error.strerror or error}.") from None
    return listener
