"""The guard in front of everything, the page included: hosts, keys, body sizes, slow clients, request ids."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrflow.server.errors import ApiError, internal
from mrflow.server.service import Service

log = logging.getLogger("mrflow.server")

COOKIE = "mrflow_session"
LOGIN = "/login"
_OPEN = ("/health", "/ready", LOGIN)
_FILES = "/v1/files/"  # their names can't be guessed, and pictures are shown by browsers that send no key
_IMAGES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/drafts", "/v1/images/finish")
_ROUTES = (*_IMAGES, "/v1/models", "/metrics", "/docs", "/openapi.json", *_OPEN)
_UPLOADS = ("/v1/images/edits", "/gradio_api/upload")
# Nothing is loaded from elsewhere, so that the page works offline and tells nobody that it was opened.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'; object-src 'none'"
)


class Guard:
    """ASGI middleware. `scope["state"]["client"]` says who asks: a key, or an address where there are no keys."""

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str] | None) -> None:
        """hosts: names under which the server may be called; None is any."""
        self._app, self._service, self._settings, self._hosts = app, service, service.settings, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send, self._settings.body_seconds)
        try:
            self._admit(scope)
            await self._app(scope, self._limited(scope, receive), reply)
        except ApiError as error:
            if not reply.begun:
                await error.response()(scope, receive, reply)
        except Exception:
            log.exception("request %s of %.200r failed", reply.id, scope["path"])
            if reply.begun:
                raise  # the connection ends, so that a cut answer is not taken for a whole one
            await internal().response()(scope, receive, reply)
        finally:
            self._service.metrics.requests.labels(_route(scope["path"]), str(reply.status)).inc()

    def _admit(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise ApiError(400, "This server is not known by that name.", code="unknown_host")
        origin = headers.get("origin")
        if origin is not None and scope["method"] != "GET" and urlsplit(origin).netloc != host:
            raise ApiError(403, "Requests from other sites are not answered.", code="cross_site")
        state = scope.setdefault("state", {})
        state["client"] = scope["client"][0] if scope.get("client") else "local"
        if not self._service.keys or path in _OPEN or path.startswith(_FILES):
            return
        client = self._client(headers, path)
        if client is not None:
            state["client"] = client
        elif path.startswith("/v1/") or path == "/metrics" or scope["method"] not in ("GET", "HEAD"):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")
        else:
            raise ApiError(303, LOGIN)

    def _client(self, headers: Headers, path: str) -> str | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._service.keys.client(key.strip())
        if path.startswith("/v1/") or path == "/metrics":
            return None  # a browser's cookie opens the page, not the API
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return None if cookie is None else self._service.sessions.client(cookie.value)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return `receive` that refuses bodies too large, whether they say so before or not, and slow ones."""
        upload = any(scope["path"].startswith(path) for path in _UPLOADS)
        most = self._settings.max_upload if upload else self._settings.max_body
        stated = Headers(scope=scope).get("content-length", "0")
        if not stated.isascii() or not stated.isdigit() or len(stated) > 18 or int(stated) > most:
            raise _too_large(most)
        seen, more = 0, True

        async def limited() -> Message:
            nonlocal seen, more
            if not more:
                return await receive()  # waits for the client's going away
            try:
                message = await asyncio.wait_for(receive(), self._settings.body_seconds)
            except TimeoutError:
                raise ApiError(408, "The body did not arrive in time.", code="timeout") from None
            seen += len(message.get("body", b""))
            more = bool(message.get("more_body", False))
            if seen > most:
                raise _too_large(most)
            return message

        return limited


class _Reply:
    """`send` that notes the status, adds headers and gives up on clients that do not read."""

    def __init__(self, send: Send, patience: float) -> None:
        self.id = "req_" + secrets.token_hex(12)
        self.status, self.begun = 499, False  # 499: the client went away before an answer began
        self._send, self._patience = send, patience

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.begun = message["status"], True
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"  # with none, browsers send no Origin either
            headers["Content-Security-Policy"] = _POLICY
        await asyncio.wait_for(self._send(message), self._patience)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body has more than {most} bytes.", code="request_too_large")


def _name(host: str) -> str:
    """Return a Host header without its port."""
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host


def _route(path: str) -> str:
    """Return a route's name for counting; what users type is counted as one."""
    if path in _ROUTES:
        return path
    return "/v1/files" if path.startswith(_FILES) else "/v1/other" if path.startswith("/v1/") else "page"
