"""Decides who may look and who may act, and keeps other sites out: before any route, for every request.

A program sends its token in the header Authorization. A browser sends it once, on the page /login, and gets a cookie that no script can
read. A request that changes something must be JSON from a page of this server: a form of another site can send neither.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapeline.config import DashboardConfig
from tapeline.errors import ConfigError
from tapeline.secret import Secret

Role = Literal["nobody", "viewer", "operator"]
COOKIE: Final = "tapeline"
#: Where the browser's cookie comes from. It needs no token.
LOGIN: Final = "/login"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_FOR_MONTHS_S: Final = 90 * 86_400
#: What a page of this server may load and do: its own files, and nothing else.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # With `no-referrer`, a browser would send the form of the token with the origin `null`.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may do what."""

    viewer: Secret
    operator: Secret
    actions: bool
    hosts: frozenset[str]
    origins: frozenset[str]
    tls: bool

    def role(self, headers: Headers) -> Role:
        """Return what the sender of a request may do."""
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        bearer = sent.strip() if scheme.lower() == "bearer" else ""
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if self.operator and (_same(bearer, self.operator.reveal()) or _same(cookie, cookie_of(self.operator))):
            return "operator"
        if self.viewer and not (_same(bearer, self.viewer.reveal()) or _same(cookie, cookie_of(self.viewer))):
            return "nobody"
        return "operator" if self.actions and not self.operator else "viewer"

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this server. Another name may be a foreign page's, which resolves to this machine."""
        return _name(host) in self.hosts

    def may_read(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may read answers: our own pages, and those of the configured sites."""
        return origin in self.origins or urlsplit(origin).netloc == host


def rules_of(dashboard: DashboardConfig, viewer: Secret, operator: Secret) -> Rules:
    """Return the rules of a configuration. Raises ConfigError for one that would let anybody in."""
    name = _name(dashboard.listen)
    if bool(dashboard.tls_certificate) != bool(dashboard.tls_key):
        raise ConfigError("[dashboard] tls_certificate and tls_key belong together. Set both, or none.")
    if name not in _LOOPBACK and not (viewer or operator):
        raise ConfigError(
            f"[dashboard] listen = {dashboard.listen!r} can be reached from other machines, and there is no token. Set "
            "TAPELINE_DASHBOARD_TOKEN or token_file to a long random text, or listen on 127.0.0.1."
        )
    if name not in _LOOPBACK and not viewer:
        viewer = operator  # whoever may not act may not look either
    hosts = {name, *map(_name, dashboard.hosts), *_LOOPBACK}
    return Rules(viewer, operator, dashboard.actions, frozenset(hosts), frozenset(dashboard.origins), bool(dashboard.tls_key))


def cookie_of(token: Secret) -> str:
    """The value of the cookie for a token. The token cannot be found out from it."""
    return hmac.new(token.reveal().encode(), b"cookie of the dashboard", hashlib.sha256).hexdigest()


class Guarded:
    """An application behind the rules: a request that is not allowed does not reach it."""

    def __init__(self, app: ASGIApp, rules: Rules, public: Iterable[str]) -> None:
        """`public`: the paths that need no token, or their beginnings if they end with a slash."""
        self._app, self._rules, self._public = app, rules, tuple(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        role = self._rules.role(headers)
        refusal = self._refusal(scope, headers, origin, role)
        scope["tapeline.role"] = role
        answer = _Answer(send, self._cors(origin) if origin in self._rules.origins else ())
        if refusal is None:
            await self._app(scope, receive, answer)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the answer is 403
        else:
            await refusal(scope, receive, answer)

    def _refusal(self, scope: Scope, headers: Headers, origin: str, role: Role) -> Response | None:
        if not self._rules.is_ours(headers.get("host", "")):
            return _no(403, "This server does not know itself by this name. Add it to [dashboard] hosts.")
        if origin and not self._rules.may_read(origin, headers.get("host", "")):
            return _no(403, f"Pages of {origin} may not read this. Add it to [dashboard] origins.")
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            return Response(status_code=204)
        path = scope["path"]
        if role == "nobody" and not any(path == some or (some.endswith("/") and path.startswith(some)) for some in self._public):
            page = "text/html" in headers.get("accept", "") and scope["type"] == "http" and scope["method"] == "GET"
            return RedirectResponse(LOGIN, 303) if page else _no(401, "A token is needed: Authorization: Bearer TOKEN.")
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD") and path != LOGIN:
            return _refused_action(headers, role)
        return None

    def _cors(self, origin: str) -> tuple[tuple[bytes, bytes], ...]:
        return (
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-allow-headers", b"authorization, content-type, last-event-id"),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"vary", b"origin"),
        )


class _Answer:
    """Adds the headers that every answer has."""

    def __init__(self, send: Send, more: tuple[tuple[bytes, bytes], ...]) -> None:
        self._send, self._more = send, more

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # A page of a configured site may load this, whatever the usual answer forbids.
            usual = [some for some in _HEADERS if not (self._more and some[0] == b"cross-origin-resource-policy")]
            message = {**message, "headers": [*message.get("headers", ()), *usual, *self._more]}
        await self._send(message)


def login(form: Mapping[str, str], rules: Rules) -> Response:
    """Return the answer to a token that a person entered: the cookie, or the page again."""
    sent = form.get("token", "").strip()
    for token in (rules.operator, rules.viewer):
        if token and _same(sent, token.reveal()):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, cookie_of(token), _FOR_MONTHS_S, httponly=True, samesite="strict", secure=rules.tls)
            return answer
    return PlainTextResponse("This token is not known. Go back, and try again.\n", 403)


def _refused_action(headers: Headers, role: Role) -> Response | None:
    if role != "operator":
        return _no(403, "This needs the operator's token, or on loopback: [dashboard] actions = true.")
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return _no(415, "Send JSON, with Content-Type: application/json.")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return _no(403, "Pages of other sites may not do this.")
    return None


def _no(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def _same(sent: str, known: str) -> bool:
    return hmac.compare_digest(sent.encode(), known.encode())


def _name(host: str) -> str:
    """The name in host:port, without brackets, in small letters."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    return name.strip("[]").lower()
