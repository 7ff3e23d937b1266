"""Everything that is refused before a request is looked at: who may ask, and how much.

It wraps the application as plain ASGI, so that bodies are counted while they come in.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

from infer.serve.options import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS: Final = ("/", "/docs", "/health")
"""Paths that need no token: the pages, which hold no data, and the probe."""
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """An application behind its checks.

    Args:
        app: The application.
        token: The token that clients must send; None if only this machine can reach the server.
        host: The address that the server listens on.
        most_body_bytes: The largest body.
    """

    def __init__(self, app: ASGIApp, token: str | None, host: str, most_body_bytes: int) -> None:
        self.app, self.most = app, most_body_bytes
        self.token = None if token is None else _digest(token.encode())
        self.only_local = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self.app(scope, self._counted(receive), _with_headers(send))

    def _refusal(self, path: str, headers: MutableMapping[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.only_local and not is_loopback(_hostname(host)):
            # A page whose name was pointed at this machine would otherwise be let in.
            return 403, f"Host: {host[:80]} is not this machine; use 127.0.0.1 or localhost"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
            return 403, "Origin: pages of other sites may not use this server"
        if self.token is not None and path not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            scheme, _, value = given.partition(b" ")
            right = hmac.compare_digest(_digest(value.strip()), self.token)
            if scheme.lower() != b"bearer" or not right:
                return 401, "Authorization: send the server's token as 'Bearer TOKEN'"
        try:
            size = int(headers.get(b"content-length", b"0"))
        except ValueError:
            return 400, "Content-Length: is not a number"
        return self._too_large() if size > self.most else None

    def _too_large(self) -> tuple[int, str]:
        return 413, (
            f"body: has more than the {self.most:,} bytes that this server reads; shorten the "
            "text, or make the image smaller"
        )

    def _counted(self, receive: Receive) -> Receive:
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.most:
                raise BodyTooLarge(self._too_large()[1])
            return message

        return counted


class BodyTooLarge(Exception):
    """A body without a length turned out too large."""


def error_body(message: str, kind: str) -> dict[str, Any]:
    """The body of an answer that reports an error."""
    return {"error": {"type": kind, "message": message}}


def kind_of(status: int) -> str:
    """The type of an error with an HTTP status, in OpenAI's words."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")


def _digest(text: bytes) -> bytes:
    """A text's hash: comparing hashes takes the same time whatever the text's length."""
    return hashlib.sha256(text).digest()


def _hostname(host: str) -> str:
    """A Host header without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {key.lower() for key, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((key, value) for key, value in _HEADERS if key not in there),
            ]
        await send(message)

    return sending


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(message, kind_of(status))).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
