"""The application: routes, page and guard put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

import mrflow
from mrflow.model import Model
from mrflow.pipeline import MrFlow
from mrflow.server.a1111 import a1111_routes
from mrflow.server.address import Address
from mrflow.server.errors import ApiError, invalid_field
from mrflow.server.guard import Guard
from mrflow.server.information import documentation_routes, information_routes
from mrflow.server.keys import Keys
from mrflow.server.page import STATIC, page_routes
from mrflow.server.requests import ErrorAnswer
from mrflow.server.routes import image_routes
from mrflow.server.service import Kept, make_service
from mrflow.server.settings import Settings


def create_app(
    models: MrFlow | Model | Sequence[MrFlow | Model],
    settings: Settings | None = None,
    *,
    keys: Keys | None = None,
    aliases: Sequence[str] = (),
    address: Address | None = None,
    page: bool = True,
    a1111: bool = False,
    mcp: bool = False,
    kept: Kept | None = None,
) -> FastAPI:
    """Return the ASGI application; its workers start and end with its lifespan.

    models: one for each device, the same otherwise; the application uses them alone from then on. A single small
        one on a CPU gets a worker for each core, see Settings.lanes.
    keys: None or empty lets everybody in. aliases: further names that requests may give for the model.
    address: where clients find the server, None for anywhere. page: serve the page at `/`.
    a1111: speak AUTOMATIC1111's API, too. mcp: give out tools at /mcp.
    kept: stores for drafts and files, where they are shared with other processes.
    `app.state.service` holds the parts; `app.state.service.scheduler.stop()` begins an orderly end.
    """
    given = models if isinstance(models, Sequence) else [models]
    settings, keys = settings or Settings(), keys or Keys()
    loaded = [each.model if isinstance(each, MrFlow) else each for each in given]
    service = make_service(loaded, settings, keys, aliases, kept)
    app = FastAPI(
        title="mrflow",
        version=mrflow.__version__,
        summary="OpenAI-compatible images API with real previews",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an address of the proxy's making
    )
    app.state.service = service
    errors: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorAnswer, "description": "No success."}}
    app.include_router(image_routes(service), responses=errors)
    app.include_router(information_routes(service), responses=errors)
    app.include_router(documentation_routes(service))
    app.mount("/static", StaticFiles(directory=STATIC))
    if a1111:
        app.include_router(a1111_routes(service), responses=errors)
    if mcp:
        from mrflow.server.mcp import mount  # an extra's library

        mount(app)
    if page:
        app.include_router(page_routes(service))
    _answer_errors(app)
    app.add_middleware(Guard, service=service, address=address or Address())
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    scheduler = app.state.service.scheduler
    scheduler.start()
    try:
        async with app.state.mcp.run() if hasattr(app.state, "mcp") else nullcontext():
            yield
    finally:
        scheduler.close()


def _answer_errors(app: FastAPI) -> None:
    """Have every error answered in OpenAI's shape."""
    missing = "There is no such route; /docs lists them. A client's base_url ends in /v1."
    unread = "The body can't be read. Send JSON in UTF-8, or a form with its boundary; /docs has the fields."
    what = {
        400: (unread, "invalid_body"),
        404: (missing, "not_found"),
        405: ("The route does not take this method.", "method_not_allowed"),
    }

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ApiError):
            return error.response()
        message, code = what.get(error.status_code, ("The request can't be answered as it is.", None))
        answer = ApiError(error.status_code, message, code=code)
        answer.headers = error.headers  # Allow, for one
        return answer.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return invalid_field(error.errors()[0]).response()
