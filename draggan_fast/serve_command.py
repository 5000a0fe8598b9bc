"""``draggan-fast serve``: the live page and its server."""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.util
import logging
import os
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from .argument_checks import check_threads
from .errors import DragError
from .protocol import MAX_TOKEN, check_token

if TYPE_CHECKING:
    from .server import LiveApp

NEEDED = ("starlette", "uvicorn", "websockets", "prometheus_client")
TOKEN_VARIABLE = "DRAGGAN_FAST_TOKEN"


def serve(arguments: argparse.Namespace) -> NoReturn:
    """Until Ctrl-C. Nothing but this machine can reach it, unless another address and a token are given."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DragError(
            f"The server needs {', '.join(missing)}, from the extra draggan-fast[serve]: in the checkout run "
            "pip install '.[serve]'."
        )
    from .live_security import LOOPBACK_HOSTS, is_loopback
    from .models import DEFAULT_MODEL, resolve

    # What can be told without torch, which takes seconds to import, comes first.
    host, port, token = arguments.host, arguments.port, token_of(arguments)
    if token is None and not is_loopback(host):
        raise DragError(
            f"Whoever reaches {host} could use this server; give it a token (--token-file FILE or {TOKEN_VARIABLE}), "
            "or keep to --host 127.0.0.1."
        )
    if not 0 <= port <= 65535:
        raise DragError(f"--port must be from 0 to 65535, not {port}.")
    if not arguments.max_sessions >= 1:
        raise DragError(f"--max-sessions must be at least 1, not {arguments.max_sessions}.")
    check_threads(arguments.threads)
    names = arguments.model or [DEFAULT_MODEL]
    for name in names:
        resolve(name)
    with listen(host, port) as listener:
        from .command_common import set_threads
        from .loading import load
        from .server import create_app

        set_threads(default_threads() if arguments.threads is None else arguments.threads)
        models = [load(name, arguments.device, arguments.precision) for name in names]
        # Behind a token a foreign name does no harm: its page does not know the token. Without one it is loopback.
        hosts = ("*",) if token is not None else (*LOOPBACK_HOSTS, f"[{host}]" if ":" in host else host)
        app = create_app(
            models,
            token=token,
            allowed_hosts=hosts,
            allow_origins=arguments.allow_origin,
            max_sessions=arguments.max_sessions,
        )
        # In the part of the address that browsers do not send: it stays out of logs. But it comes to stand in the
        # command line of the browser, for other users of the machine to read, and not all tokens stand in one already.
        secret = f"#token={quote(token)}" if token is not None and arguments.token is not None else ""
        run(app, listener, host, secret, arguments.open)


def token_of(arguments: argparse.Namespace) -> str | None:
    """From the command line, the environment or a file, whichever is given; None if none is. Raises DragError."""
    given = {
        "--token": arguments.token,
        "--token-file": arguments.token_file,
        TOKEN_VARIABLE: os.environ.get(TOKEN_VARIABLE),
    }
    sources = [name for name, value in given.items() if value is not None]
    if not sources:
        return None
    if len(sources) > 1:
        raise DragError(f"{' and '.join(sources)} both name a token; give it in one way.")
    (source,) = sources
    token = given[source]
    if source == "--token-file":
        try:
            with open(token, encoding="utf-8") as file:
                token = file.read(2 * MAX_TOKEN).removesuffix("\n").removesuffix("\r")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise DragError(f"Cannot read the token from {arguments.token_file!r}: {reason}.") from None
        source = f"the file {arguments.token_file!r}"
    try:
        check_token(token)
    except DragError as error:
        raise DragError(f"{error} That of {source} is not." if token else f"The token of {source} is empty.") from None
    return token


def default_threads() -> int | None:
    """All CPUs but one, which is for the event loop and for a browser on the same machine: threads of one computation
    wait for each other, and on a CPU that they share all of them wait. None where OMP_NUM_THREADS has decided."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    import torch

    return max(torch.get_num_threads() - 1, 1)


def run(app: LiveApp, listener: socket.socket, host: str, secret: str, open_page: bool) -> NoReturn:
    """Serves until Ctrl-C, and ends the process. secret: follows the address that is opened in a browser."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.live.halt()  # first: exports that are being computed would be waited for
            await asyncio.sleep(0.05)  # in which viewers are told; uvicorn cuts off whoever is still sending
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=app.live.limits.largest_message,
        ws_per_message_deflate=False,  # pictures are compressed already, or stay on this machine
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=0.3,  # type: ignore[arg-type]  # seconds, which nothing asks to be whole; for slow readers
    )
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    print(f"draggan-fast: {', '.join(app.live.models.names)} at {address} (Ctrl-C ends it)", flush=True)
    if open_page:
        opener = threading.Timer(0.5, webbrowser.open, [address + secret])
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
        other = port + 1 if port < 65535 else port - 1
        advice = {
            errno.EADDRINUSE: f" Give another one, --port {other}, or --port 0 for any that is free.",
            errno.EACCES: " Give one above 1023.",
        }
        reason = error.strerror or error
        raise DragError(f"Cannot listen at {host}, port {port}: {reason}.{advice.get(error.errno or 0, '')}") from None
    return listener
