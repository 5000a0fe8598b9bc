"""Who may talk to the server, and what its page may do: a layer around the application that sees every request first.

Host is checked because a web page anywhere can have its own name resolve to this machine (DNS rebinding); Origin,
because a page of another origin can open a WebSocket here; a token, wherever one was set.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/", "/healthz")  # and /static/…: what a browser asks for before it knows the token
COSTLY_PATHS = ("/api/", "/metrics")
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def host_of(netloc: str) -> str:
    """The host in ``host:port``, in lower case; IPv6 in its brackets."""
    name = netloc.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def same_secret(given: str, expected: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


class Guard:
    """ASGI middleware. hosts: names that Host may be, "*" = any.  origins: other origins that may use the server.
    failed: the answer to an exception, of which Starlette would make one outside of this layer, without its headers."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        origins: Iterable[str],
        token: str | None,
        failed: Callable[[Scope, Exception], Response],
    ) -> None:
        self.app, self.token, self.failed = app, token, failed
        self.hosts = {host_of(host) for host in hosts}
        self.origins = {origin.rstrip("/").lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = self.marked(scope, headers, send)
        refusal = self.refusal(scope, headers)
        if refusal is not None:
            status, reason = refusal
            if scope["type"] == "websocket":
                # Before accept: a bare 403. uvicorn could send a whole answer, but logs an error with each.
                await send({"type": "websocket.close", "code": 1008, "reason": reason})
            else:
                await JSONResponse({"error": reason}, status)(scope, receive, send)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204)(scope, receive, send)
        else:
            await self.answered(scope, receive, send)

    async def answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request, answered also if the application fails at it."""
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except Exception as error:
            answer = self.failed(scope, error)
            if begun:  # it breaks off, so that the client sees that something is missing
                raise
            await answer(scope, receive, send)

    def refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """(status, reason) if the request is not to be served."""
        host = headers.get("host", "")
        if "*" not in self.hosts and host_of(host) not in self.hosts:
            return 421, "This server does not answer to that host name."
        origin = headers.get("origin")
        careful = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        # A GET changes nothing, but pictures and figures cost work: any page could have them computed by an <img>.
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not self.origins
        costly = scope["type"] == "http" and local_path(scope).startswith(COSTLY_PATHS)
        if costly and origin is None and elsewhere:
            return 403, "Pages of other sites may not use the server."
        if origin is not None and (careful or costly) and not (self.own(origin, host) or self.allowed(origin)):
            return 403, "This origin may not use the server."
        if scope["type"] == "http" and self.token is not None and scope["method"] != "OPTIONS":
            path = local_path(scope)
            if path not in OPEN_PATHS and not path.startswith("/static/"):
                scheme, _, given = headers.get("authorization", "").partition(" ")
                if scheme.lower() != "bearer" or not same_secret(given.strip(), self.token):
                    return 401, "The token is missing or wrong."
        return None

    def own(self, origin: str, host: str) -> bool:
        """subtle: the scheme is not compared, behind a proxy that ends TLS it is not known here."""
        return origin.partition("://")[2].lower() == host.strip().lower() != ""

    def allowed(self, origin: str | None) -> bool:
        return origin is not None and origin.lower() in self.origins

    def marked(self, scope: Scope, headers: Headers, send: Send) -> Send:
        """send, with the headers of every answer."""
        origin = headers.get("origin")

        async def marked_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.mark(message, origin)
            await send(message)

        return marked_send

    def mark(self, message: Message, origin: str | None) -> None:
        answer = MutableHeaders(scope=message)
        for name, value in SECURITY_HEADERS.items():
            answer.setdefault(name, value)
        answer.setdefault("cache-control", "no-store")
        if self.origins:
            answer.add_vary_header("Origin")
        if self.allowed(origin) and origin is not None:
            answer["access-control-allow-origin"] = origin
            answer["access-control-allow-headers"] = "authorization"
            answer["access-control-max-age"] = "600"
        else:
            answer["cross-origin-resource-policy"] = "same-origin"
        if message["status"] == 401:
            answer["www-authenticate"] = "Bearer"


def local_path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(root):
        path = path[len(root) :]
    return path or "/"
