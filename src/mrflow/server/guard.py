"""The guard in front of everything, the page included: hosts, keys, body sizes, slow clients, request ids."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from mrflow.server.address import Address
from mrflow.server.errors import ApiError, internal
from mrflow.server.service import Service

log = logging.getLogger("mrflow.server")

COOKIE = "mrflow_session"
PAGE = "x-mrflow-page"  # sent by the page's script: a form, and a script of another site, can't send it unasked
LOGIN = "/login"
_OPEN = ("/health", "/ready", LOGIN)
_STATIC = "/static/"  # the same for everybody
_FILES = "/v1/files/"  # their names can't be guessed, and pictures are shown by browsers that send no key
_TASKS = "/v1/images/tasks"
_IMAGES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/drafts", "/v1/images/finish", _TASKS)
_ROUTES = (*_IMAGES, "/v1/models", "/metrics", "/docs", "/openapi.json", *_OPEN)
_A1111 = "/sdapi/v1/"
_GROUPS = {_FILES: "/v1/files", _TASKS: _TASKS, "/v1/": "/v1/other", _A1111: _A1111, "/mcp": "/mcp"}
_API = ("/v1/", _A1111, "/mcp")
_UPLOADS = ("/v1/images/edits", "/sdapi/v1/img2img", "/mcp")
# Nothing is loaded from elsewhere, so that the page works offline and tells nobody that it was opened.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'none'"
)


class Guard:
    """ASGI middleware. `scope["state"]["client"]` says who asks: a key, or an address where there are no keys."""

    def __init__(self, app: ASGIApp, service: Service, address: Address) -> None:
        """address: where clients find the server."""
        self._app, self._service, self._settings, self._address = app, service, service.settings, address
        self._proxied = ProxyHeadersMiddleware(self._answer, address.trusted_proxies)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = dict(scope)  # the web server keeps its own, by which it leaves the body of a HEAD away
        scope["method"] = "GET" if scope["method"] == "HEAD" else scope["method"]
        reply, begin = _Reply(send, self._settings.body_seconds), time.monotonic()
        scope["state"] = {**scope.get("state", {}), "request_id": reply.id}
        try:
            peer = scope["client"][0] if scope.get("client") else None
            self._address.find_host(scope, peer in self._proxied.trusted_hosts)
            await self._proxied(scope, receive, reply)  # type: ignore[arg-type]
        except ApiError as error:
            if not reply.begun:
                await error.response()(scope, receive, reply)
        except Exception:
            log.exception("request %s of %.200r failed", reply.id, scope["path"])
            if reply.begun:
                raise  # the connection ends, so that a cut answer is not taken for a whole one
            await internal().response()(scope, receive, reply)
        finally:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            self._service.metrics.request_done(_route(path), str(reply.status), time.monotonic() - begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose client and scheme are known."""
        path = self._address.find_path(scope)
        self._admit(scope, path)
        headers = MutableHeaders(scope=scope)
        if path.endswith("/edits"):  # else starlette reads as latin-1, without a word, what is no UTF-8
            headers["content-type"] = headers.get("content-type", "") + "; charset=latin-1"
        elif path in _IMAGES or path.startswith(_A1111):  # curl -d says that it is a form
            headers["content-type"] = "application/json"
        await self._app(scope, self._limited(scope, path, receive), send)

    def _admit(self, scope: Scope, path: str) -> None:
        headers = Headers(scope=scope)
        if scope["method"] != "GET" and _from_elsewhere(headers):
            raise ApiError(403, "Requests from other sites are not answered.", code="cross_site")
        state = scope.setdefault("state", {})
        state["client"] = scope["client"][0] if scope.get("client") else "local"
        if not self._service.keys or path in _OPEN or path.startswith((_FILES, _STATIC)):
            return
        client = self._client(headers, path)
        if client is not None:
            state["client"] = client
        elif path.startswith(_API) or path == "/metrics" or scope["method"] != "GET":
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")
        else:
            raise ApiError(303, scope["root_path"] + LOGIN)

    def _client(self, headers: Headers, path: str) -> str | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._service.keys.client(key.strip())
        if scheme.lower() == "basic" and path.startswith(_A1111):
            return self._service.keys.client(_password(key))
        if path == "/metrics" or (path.startswith(_API) and PAGE not in headers):
            return None  # a browser's cookie opens the page, and the API to the page alone
        return self._service.sessions.client(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def _limited(self, scope: Scope, path: str, receive: Receive) -> Receive:
        """Return `receive` that refuses bodies too large, whether they say so before or not, and slow ones."""
        most = self._settings.max_upload if path.startswith(_UPLOADS) else self._settings.max_body
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


def _password(basic: str) -> str:
    """Return the password of basic authentication, which holds the key; the user's name is of no matter."""
    try:
        return base64.b64decode(basic, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body has more than {most} bytes.", code="request_too_large")


def _from_elsewhere(headers: Headers) -> bool:
    """Return whether a browser asks for another site; those that say so themselves know it behind any proxy."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower()


def _route(path: str) -> str:
    """Return a route's name for counting; what users type is counted as one."""
    if path in _ROUTES:
        return path
    for begin, route in _GROUPS.items():
        if path.startswith(begin):
            return route
    return "page"
