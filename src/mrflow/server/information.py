"""The routes that tell: models, health, readiness, metrics, kept files."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from mrflow.server.errors import ApiError
from mrflow.server.service import Service


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

    @router.get("/v1/files/{name}")
    def file(name: str) -> Response:
        """Give out a picture that was asked for as a url, for a limited time."""
        found = service.files.get(name)
        if found is None:
            raise ApiError(404, "There is no such file, or no longer.", code="file_not_found")
        headers = {
            "Cache-Control": f"private, max-age={int(service.files.seconds)}",
            "Content-Disposition": "inline",
        }
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
    async def metrics() -> Response:
        """Give Prometheus its numbers."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
