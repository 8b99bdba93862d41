"""The routes that tell: models, health, readiness, metrics, kept files; /docs and the login form.

FastAPI's own page of the API loads its scripts from a network of other people's servers, which tells them of each
visit and does not work offline. Ours is written from the OpenAPI document, without anything from elsewhere.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

import mrflow
from mrflow.server.errors import ApiError
from mrflow.server.guard import COOKIE, LOGIN
from mrflow.server.service import Service

_TEMPLATES = Environment(loader=PackageLoader("mrflow.server"), autoescape=True)


def information_routes(service: Service) -> APIRouter:
    """Return the routes over `service`."""
    router = APIRouter(tags=["information"])
    started = int(time.time())

    def model_object(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "mrflow"}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the model, under all its names."""
        return {"object": "list", "data": [model_object(name) for name in service.names]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe the model."""
        service.check_model(name)
        return model_object(name)

    @router.get("/v1/loras")
    async def loras() -> dict[str, Any]:
        """List the LoRAs that requests may name, and whether pictures have them unasked."""
        known = service.scheduler.model.loras
        data = [{"id": name, "object": "lora", "usual_weight": known.usual_weight(name)} for name in known.files]
        return {"object": "list", "data": data}

    @router.get("/v1/files/{name}")
    def file(name: str) -> Response:
        """Give out a picture that was asked for as a url, for a limited time."""
        name, _, ending = name.partition(".")
        found = service.files.get(name)
        if found is None or ending not in ("", found.media_type.removeprefix("image/")):
            raise ApiError(404, "There is no such file, or no longer.", code="file_not_found")
        age = f"private, max-age={int(service.files.seconds)}"
        headers = {"Cache-Control": age, "Content-Disposition": "inline"}
        return Response(found.data, media_type=found.media_type, headers=headers)

    @router.get("/health")
    async def health() -> Response:
        """Say whether the server works: 503 if no worker responds."""
        scheduler = service.scheduler
        state = scheduler.state
        workers = [
            {"device": str(worker.model.device), "status": "hung" if worker.hung else "ok"}
            for worker in scheduler.workers
        ]
        body = {"status": state, "waiting": scheduler.waiting, "workers": workers}
        return JSONResponse(body, 503 if state == "hung" else 200)

    @router.get("/ready")
    async def ready() -> Response:
        """Say whether new requests are taken: 503 if not."""
        state = service.scheduler.state
        return JSONResponse({"ready": state == "ok"}, 200 if state == "ok" else 503)

    @router.get("/metrics")
    def metrics() -> Response:
        """Give Prometheus its numbers, of all replicas where there are several."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def documentation_routes(service: Service) -> APIRouter:
    """Return /docs, and where keys are needed the login form of the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(request.app.openapi()))

    if not service.keys:
        return router

    @router.get(LOGIN)
    async def form() -> Response:
        return HTMLResponse(login_page())

    @router.post(LOGIN)
    async def login(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=4) as fields:
            key = fields.get("key")
        client = service.keys.client(key) if isinstance(key, str) else None
        if client is None:
            return HTMLResponse(login_page("That key is not known here."), 401)
        top, secure = f"{request.scope['root_path']}/", request.scope["scheme"] == "https"
        answer, session = RedirectResponse(top, 303), service.sessions.begin(client)
        answer.set_cookie(COOKIE, session, path=top, httponly=True, samesite="strict", secure=secure)
        return answer

    return router


def render(template: str, **values: Any) -> str:
    """Return a page of `templates/` as HTML; what it loads is asked for by version, so that none is outdated."""
    return _TEMPLATES.get_template(template).render(version=mrflow.__version__, **values)


def login_page(problem: str = "") -> str:
    """Return the login form as HTML, with a word on what went wrong."""
    return render("login.html", title="mrflow", action=LOGIN[1:], problem=problem)


def docs_page(schema: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    routes = [(verb, path, route) for path, verbs in schema["paths"].items() for verb, route in verbs.items()]
    bodies = {f"#/components/schemas/{name}": body for name, body in schema["components"]["schemas"].items()}
    return render("docs.html", title="mrflow: the API", routes=routes, bodies=bodies, kind=_kind)


def _kind(field: dict[str, Any]) -> str:
    """Return what a field takes: its type and bounds, or its choices."""
    return " | ".join(_one_kind(each) for each in field.get("anyOf", [field]) if each.get("type") != "null")


def _one_kind(first: dict[str, Any]) -> str:
    if "enum" in first:
        return " | ".join(map(str, first["enum"]))
    low = first.get("minimum", first.get("exclusiveMinimum"))
    high = first.get("maximum", first.get("exclusiveMaximum"))
    bounds = f", {low:g} to {high:g}" if low is not None and high is not None else ""
    return f"{first.get('type', 'text')}{bounds}"
