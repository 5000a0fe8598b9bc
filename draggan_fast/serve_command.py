"""``draggan-fast serve``: the live page and its server."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
import webbrowser
from urllib.parse import quote

from .errors import DragError

MISSING = "The server needs packages that are not installed; run pip install 'draggan-fast[serve]'."


def serve(arguments: argparse.Namespace) -> int:
    """Until Ctrl-C. Nothing but this machine can reach it, unless another address and a token are given."""
    try:
        import uvicorn

        from .live_security import LOOPBACK_HOSTS, is_loopback
        from .server import create_app
    except ModuleNotFoundError as error:
        raise DragError(f"{MISSING} (missing: {error.name})") from None
    from .command_common import set_threads
    from .loading import load
    from .models import DEFAULT_MODEL

    host, port, token = arguments.host, arguments.port, arguments.token
    local = is_loopback(host)
    if not local and not token:
        raise DragError(
            f"Whoever reaches {host} could use this server; give --token SECRET, or keep to --host 127.0.0.1."
        )
    if not 0 <= port <= 65535:
        raise DragError(f"--port must be from 0 to 65535, not {port}.")
    set_threads(arguments.threads)
    listener = listen(host, port)
    models = [load(name, arguments.device, arguments.precision) for name in arguments.model or [DEFAULT_MODEL]]
    app = create_app(
        models,
        token=token,
        # Behind a token a foreign name does no harm: its page does not know the token.
        allowed_hosts=(*LOOPBACK_HOSTS, host) if local else ("*",),
        allow_origins=arguments.allow_origin,
        max_sessions=arguments.max_sessions,
    )
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=app.live.limits.upload_bytes + 4096,
        ws_per_message_deflate=False,  # pictures are compressed already
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    server = uvicorn.Server(config)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    # In the part of the address that browsers do not send: it stays out of logs.
    complete = address + (f"#token={quote(token)}" if token else "")
    print(f"draggan-fast: {', '.join(app.live.models.names)} at {address} (Ctrl-C ends it)", flush=True)
    if arguments.open:
        threading.Timer(0.5, webbrowser.open, [complete]).start()
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again once it has shut down
    finally:
        ended = app.live.stop()
    print("draggan-fast: stopped", flush=True)
    if not ended:  # a long step is still being computed, and nobody will see it
        sys.stdout.flush()
        os._exit(0)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket bound before any model is loaded, so that a taken port is known at once. Raises DragError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere the option means another thing
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise DragError(f"Cannot listen at {host}, port {port}: {error.strerror or error}.") from None
    return listener
