"""The API's description for people: /docs, written from the OpenAPI document, without anything from elsewhere.

FastAPI's own page loads its scripts from a network of other people's servers, which tells them of each visit and
does not work offline.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mrflow.server.guard import COOKIE, LOGIN
from mrflow.server.service import Service

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.4 ui-monospace, monospace } h2 { margin-top: 2.5rem; font-size: 1.1rem }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid #8886; padding: .3rem .6rem .3rem 0;
vertical-align: top } td:first-child { width: 13rem } small { opacity: .7 }
input, button { font: inherit; padding: .5rem .8rem; width: 100%; box-sizing: border-box; margin: .4rem 0 }
"""


def documentation_routes(service: Service) -> APIRouter:
    """Return /docs, and where keys are needed the login form of the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return _html("mrflow: the API", _document(request.app.openapi()))

    if not service.keys:
        return router

    @router.get(LOGIN)
    async def form() -> Response:
        return _html("mrflow", _LOGIN_FORM)

    @router.post(LOGIN)
    async def login(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=4) as fields:
            key = fields.get("key")
        client = service.keys.client(key) if isinstance(key, str) else None
        if client is None:
            return _html("mrflow", f"<p role=alert>That key is not known here.</p>{_LOGIN_FORM}", 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            service.sessions.begin(client),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    return router


_LOGIN_FORM = (
    f"<form method=post action={LOGIN}><label for=key>API key</label>"
    "<input id=key name=key type=password required autofocus autocomplete=current-password>"
    "<button>Open the page</button></form>"
)


def _html(title: str, body: str, status: int = 200) -> Response:
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    head += f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
    return HTMLResponse(f"{head}<h1>{escape(title)}</h1>{body}", status)


def _document(schema: dict[str, Any]) -> str:
    parts = ["<p>Errors have OpenAI's shape. <a href='openapi.json'>The OpenAPI document</a>.</p>"]
    for path, verbs in schema["paths"].items():
        for verb, route in verbs.items():
            parts.append(f"<h2><code>{verb.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(route.get('description', ''))}</p>")
            for media, content in route.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<small>{escape(media)}</small>{_fields(_resolved(schema, content['schema']))}")
    return "".join(parts)


def _fields(model: dict[str, Any]) -> str:
    needed = model.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (needed)' if name in needed else ''}<br>"
        f"<small>{escape(_kind(field))}</small><td>{escape(field.get('description', ''))}"
        for name, field in model.get("properties", {}).items()
    )
    return f"<table>{rows}</table>"


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    name = node.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["components"]["schemas"][name] if name else node
    return found


def _kind(field: dict[str, Any]) -> str:
    choices = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    first = choices[0]
    if "enum" in first:
        return " | ".join(map(str, first["enum"]))
    low, high = (
        first.get("minimum", first.get("exclusiveMinimum")),
        first.get("maximum", first.get("exclusiveMaximum")),
    )
    bounds = f", {low:g} to {high:g}" if low is not None and high is not None else ""
    return f"{first.get('type', 'text')}{bounds}"
