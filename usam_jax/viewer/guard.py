"""Who may talk to the server, and the security headers of every response."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_BODY = 2 * 2**20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # keeps patient images off the disk
}


class TooLarge(Exception):
    """A body of more than MAX_BODY bytes, which the application answers with 413."""

    def __init__(self) -> None:
        super().__init__(f"the body has more than {MAX_BODY} bytes")


class Guard:
    """Lets only requests of the viewer's own page through to an application."""

    def __init__(self, app: App, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
        refusal = self.check(scope["path"], headers)
        if refusal:
            await respond(send, *refusal)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *encoded_headers()]
            await send(message)

        await self.app(scope, limited(receive), send_with_headers)

    def check(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return status and reason if a request is refused."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in LOOPBACK:  # stops DNS rebinding; the port may be that of a tunnel
            return 421, "the Host is not this machine"
        if "origin" in headers and headers["origin"] != f"http://{host}":
            return 403, "the request comes from another site"
        if path.startswith("/api/"):
            given = headers.get("x-token", "").encode("latin-1")
            if not hmac.compare_digest(given, self.token.encode()):
                return 401, "the token is wrong; open the address that usam-view printed"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, str(TooLarge())
        return None


def limited(receive: Receive) -> Receive:
    """Return `receive` that raises TooLarge if a body without Content-Length becomes too large."""
    total = 0

    async def receive_some() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_BODY:
            raise TooLarge
        return message

    return receive_some


def encoded_headers() -> list[tuple[bytes, bytes]]:
    """Return HEADERS as ASGI has them."""
    return [(name.encode(), value.encode()) for name, value in HEADERS.items()]


async def respond(send: Send, status: int, reason: str) -> None:
    """Send an error as JSON."""
    body = json.dumps({"error": reason}).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers = [*own, *encoded_headers()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
