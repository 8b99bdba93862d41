"""The routes that make pictures: OpenAI's generations and edits, our drafts and finish."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response

from mrflow.server import errors
from mrflow.server.checking import Checked, check_drafts, check_image, check_prompt, of_drafts
from mrflow.server.errors import ApiError
from mrflow.server.orders import Order
from mrflow.server.requests import DraftsBody, EditBody, FinishBody, GenerateBody
from mrflow.server.responses import Form, common, describe, now, usage
from mrflow.server.service import Service
from mrflow.server.streams import EventWriter, OrderStream, Verb, previews
from mrflow.sizes import draft_size

Outcome = TypeVar("Outcome")

_DEFAULT_DRAFTS = 8
_MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, ..."},
                        **EditBody.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}


def image_routes(service: Service) -> APIRouter:
    """Return the routes over `service`."""
    router = APIRouter(prefix="/v1/images", tags=["images"])

    @router.post("/generations")
    async def generate(request: Request, body: GenerateBody) -> Response:
        """Make pictures from a prompt: drafts, then finished."""
        service.check_model(body.model)
        form = Form.of(body, str(request.base_url))
        service.scheduler.check_open()
        checked = await run_in_threadpool(check_prompt, service.scheduler, body, body.n or 1)
        show = previews(body.partial_images, drafted=True) if body.stream else ()
        order = Order(service.scheduler, request.state.client, show)
        order.add(("draft", "finish"), checked.jobs, checked.plan, checked.size)
        return await _answer(
            service,
            request,
            order,
            checked,
            form,
            stream=body.stream,
            verb="image_generation",
            quality=body.quality,
        )

    @router.post("/edits", openapi_extra=_MULTIPART)
    async def edit(request: Request) -> Response:
        """Enhance a given picture: upscaled and refined, following the prompt."""
        service.scheduler.check_open()
        async with request.form(max_files=8, max_fields=64) as fields:
            body, image = _read_form(fields)
            service.check_model(body.model)
            form = Form.of(body, str(request.base_url))
            checked = await run_in_threadpool(check_image, service.scheduler, body, body.n or 1, image.file)
        pixels = checked.drafts[0].pixels
        show = previews(body.partial_images, drafted=False) if body.stream else ()
        order = _finishing(service, request, checked, show)
        return await _answer(
            service,
            request,
            order,
            checked,
            form,
            stream=body.stream,
            verb="image_edit",
            quality=body.quality,
            given=pixels.shape[-1] * pixels.shape[-2],
        )

    @router.post("/drafts")
    async def draft(request: Request, body: DraftsBody) -> Response:
        """Make cheap drafts, kept for a limited time, to be finished or not."""
        service.check_model(body.model)
        form = Form.of(body, str(request.base_url))
        service.scheduler.check_open()
        checked = await run_in_threadpool(check_prompt, service.scheduler, body, body.n or _DEFAULT_DRAFTS)
        order = Order(service.scheduler, request.state.client)
        order.add(("draft",), checked.jobs, checked.plan, checked.size)
        async with order:
            made = await _unless_gone(request, order.made())

        def data() -> list[dict[str, Any]]:
            drafts = [each.draft for each in made if each.draft is not None]
            return [
                {
                    "id": service.keep_draft(draft),
                    **form.item(draft.image, draft.recipe, service.files),
                    **describe(each),
                }
                for draft, each in zip(drafts, made, strict=True)
            ]

        created, small = now(), draft_size(*checked.size, checked.plan)
        answer = {
            "created": created,
            "expires_at": created + int(service.settings.keep_seconds),
            **common(form, body.quality or "auto", checked.size),
            "data": await run_in_threadpool(data),
            "usage": usage(made, [small] * len(made), service.patch),
            "warnings": checked.warnings,
        }
        return JSONResponse(answer)

    @router.post("/finish")
    async def finish(request: Request, body: FinishBody) -> Response:
        """Finish drafts that were kept; without changes, exactly as generations would have."""
        service.check_model(body.model)
        form = Form.of(body, str(request.base_url))
        service.scheduler.check_open()
        kept = await run_in_threadpool(service.kept_drafts, body.drafts)
        drafts = await run_in_threadpool(check_drafts, service.scheduler, kept, body.plan, body.refine_sigma)
        checked = of_drafts(drafts)
        show = previews(body.partial_images, drafted=False) if body.stream else ()
        order = _finishing(service, request, checked, show)
        return await _answer(service, request, order, checked, form, stream=body.stream)

    return router


def _finishing(service: Service, request: Request, checked: Checked, show: Any) -> Order:
    """Return an order that finishes drafts, each with its own plan and size."""
    order = Order(service.scheduler, request.state.client, show)
    for draft, job in zip(checked.drafts, checked.jobs, strict=True):
        recipe = draft.base_recipe
        order.add(("finish",), [job], recipe.plan, (recipe.width, recipe.height), draft)
    return order


async def _answer(
    service: Service,
    request: Request,
    order: Order,
    checked: Checked,
    form: Form,
    *,
    stream: bool | None,
    verb: Verb = "image_generation",
    quality: str | None = None,
    given: int = 0,
) -> Response:
    """Return the pictures of an order as one object, or its events as they come."""
    if stream:
        order.submit()
        writer = EventWriter(order, form, verb, quality, service.patch, given)
        return OrderStream(order, writer.events())
    async with order:
        made = await _unless_gone(request, order.made())

    def data() -> list[dict[str, Any]]:
        return [
            {**form.item(each.image, each.recipe, service.files), **describe(each)}
            for each in made
            if each.image is not None
        ]

    sizes = [ticket.size for ticket in order.tickets]
    return JSONResponse(
        {
            "created": now(),
            **common(form, quality or "auto", checked.size),
            **(
                {} if quality not in (None, "auto") else {"quality": None}
            ),  # as the plan says; no answer may say auto
            "model": service.names[0],
            "plan": checked.plan.label,
            "data": await run_in_threadpool(data),
            "usage": usage(made, sizes, service.patch, given),
            "warnings": checked.warnings,
        }
    )


async def _unless_gone(request: Request, making: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Return what is made; raises an ApiError as soon as the client is gone, for then nobody needs it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(making), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise errors.gone()
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


def _read_form(fields: FormData) -> tuple[EditBody, UploadFile]:
    """Return the text fields and the one image of an edit; raises an ApiError or RequestValidationError."""
    images = [value for name, value in fields.multi_items() if name in ("image", "image[]")]
    texts = {name: value for name, value in fields.multi_items() if name not in ("image", "image[]")}
    if "mask" in texts or "markup" in texts:
        raise ApiError(
            400, "Masks are not supported: the whole picture is enhanced.", param="mask", code="unsupported"
        )
    if len(images) != 1 or not isinstance(images[0], UploadFile):
        raise ApiError(
            400, f"There are {len(images)} images; give one, as a file.", param="image", code="invalid_image"
        )
    try:
        return EditBody.model_validate(texts), images[0]
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_input=False)]
        ) from None
