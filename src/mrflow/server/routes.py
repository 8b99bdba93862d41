"""The routes that make pictures: OpenAI's generations and edits, our drafts and finish."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response

from mrflow.progress import Stage
from mrflow.server import requests
from mrflow.server.errors import ApiError
from mrflow.server.responses import Answer, Encoder, later, shown, steps_of
from mrflow.server.service import Service
from mrflow.server.tasks import Tasks
from mrflow.server.tickets import TicketGroup

_DEFAULT_DRAFTS = 8
_IMAGE = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, ..."}
_EDIT_SCHEMA = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "image": _IMAGE,
        "reference": {"type": "array", "items": _IMAGE},
        **requests.EditBody.model_json_schema()["properties"],
    },
}
_PICTURE, _REFERENCE = ("image", "image[]"), ("reference", "reference[]")
_KNOWN = (*requests.EditBody.model_fields, *_PICTURE, *_REFERENCE, "mask", "markup")
_MULTIPART = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _EDIT_SCHEMA}}}}


def image_routes(service: Service) -> APIRouter:
    """Return the routes over `service`."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    scheduler = service.scheduler

    @router.post("/tasks")
    @router.post("/generations")
    async def generate(request: Request, body: requests.GenerateBody) -> Response:
        """Make pictures from a prompt: drafts, then finished. At tasks, or with "Prefer: respond-async", later."""
        encoder = _encoder(service, request, body)
        checked = await run_in_threadpool(requests.check_prompt, scheduler, body, body.n or 1)
        if body.native:
            checked = requests.as_native(scheduler, body, checked)
        if body.dry_run:
            size = f"{checked.size[0]}x{checked.size[1]}"
            steps = steps_of(checked.plan, native=bool(body.native))
            plan = {"plan": steps, "numbers": checked.plan.to_dict()}
            return JSONResponse({**plan, "size": size, "warnings": checked.warnings})
        show = () if body.native else shown(body, drafted=True)
        group = _group(service, request, body, show)
        group.add(("native",) if body.native else ("draft", "finish"), checked.jobs)
        answer = Answer(service, group, encoder, body.quality, progress=body.progress)
        return await answer.send(request, checked, body.stream)

    @router.post("/edits", openapi_extra=_MULTIPART)
    async def edit(request: Request) -> Response:
        """Enhance a given picture, following the prompt; with references alone make a new one that sees them."""
        scheduler.check_open()
        async with request.form(max_files=8, max_fields=64) as fields:
            body, image, references = _read_form(fields)
            encoder, asked = _encoder(service, request, body), (scheduler, body, body.n or 1)
            if image is None:
                checked = await run_in_threadpool(requests.check_prompt, *asked, references)
            else:
                checked = await run_in_threadpool(requests.check_image, *asked, image, references)
        given = sum(each.source.width * each.source.height for each in checked.jobs[0].references)
        if checked.drafts:
            group = _finishing(service, request, checked, body)
            given += checked.drafts[0].pixels[0, 0].numel()
        else:
            group = _group(service, request, body, shown(body, drafted=True))
            group.add(("draft", "finish"), checked.jobs)
        answer = Answer(
            service, group, encoder, body.quality, verb="image_edit", given=given, progress=body.progress
        )
        return await answer.send(request, checked, body.stream)

    @router.post("/drafts")
    async def draft(request: Request, body: requests.DraftsBody) -> Response:
        """Make cheap drafts, kept for a limited time, to be finished or not."""
        encoder = _encoder(service, request, body)
        checked = await run_in_threadpool(requests.check_prompt, scheduler, body, body.n or _DEFAULT_DRAFTS)
        group = _group(service, request, body)
        group.add(("draft",), checked.jobs)
        answer = Answer(service, group, encoder, body.quality, verb="image_draft", progress=body.progress)
        return await answer.send(request, checked, body.stream)

    @router.post("/finish")
    async def finish(request: Request, body: requests.FinishBody) -> Response:
        """Finish drafts that were kept; without changes, exactly as generations would have."""
        encoder = _encoder(service, request, body)
        drafts = await run_in_threadpool(service.kept_drafts, body.drafts)
        checked = await run_in_threadpool(requests.check_drafts, scheduler, body, drafts)
        group = _finishing(service, request, checked, body)
        return await Answer(service, group, encoder, progress=body.progress).send(request, checked, body.stream)

    if service.tasks is not None:
        _add_tasks(router, service.tasks)
    return router


def _add_tasks(router: APIRouter, tasks: Tasks) -> None:
    """Add the routes that ask after work, its owner's alone."""

    @router.get("/tasks")
    async def mine(request: Request) -> Response:
        """List the tasks of the key that asks, without their pictures."""
        told = [tasks.describe(task) for task in tasks.of(request.state.client)]
        return JSONResponse({"object": "list", "data": [{**each, "result": None} for each in told]})

    @router.get("/tasks/{name}")
    async def fetch(request: Request, name: str) -> Response:
        """Say how a task is, and give its pictures once they are made."""
        return JSONResponse(tasks.describe(tasks.get(name, request.state.client)))

    @router.delete("/tasks/{name}")
    async def cancel(request: Request, name: str) -> Response:
        """Forget a task; one that is not done stops between two steps."""
        tasks.remove(tasks.get(name, request.state.client))
        return JSONResponse({"id": name, "object": "image.task", "deleted": True})


def _encoder(service: Service, request: Request, body: requests.ImageBody) -> Encoder:
    """Return how pictures are given out, if the request may be taken at all; raises an ApiError."""
    service.check_model(body.model)
    encoder = Encoder.of(body, str(request.base_url))
    service.scheduler.check_open()
    return encoder


def _group(
    service: Service, request: Request, body: requests.StreamedBody, show: Iterable[Stage] = ()
) -> TicketGroup:
    steps = bool(body.progress) or later(request)
    most, told = getattr(body, "partial_images", None), request.state
    return TicketGroup(service.scheduler, told.client, show, steps=steps, most=most, request_id=told.request_id)


def _finishing(
    service: Service, request: Request, checked: requests.Checked, body: requests.PreviewedBody
) -> TicketGroup:
    """Return tickets that finish drafts."""
    group = _group(service, request, body, shown(body, drafted=False))
    group.add_drafts(checked.drafts, checked.jobs)
    return group


def _read_form(fields: FormData) -> tuple[requests.EditBody, IO[bytes] | None, list[IO[bytes]]]:
    """Return the texts of an edit, its image and its references; raises an ApiError or RequestValidationError."""
    # an empty one, text or file, is what browsers and tools send for nothing
    given = [(name, each) for name, each in fields.multi_items() if name not in _KNOWN or not _is_empty(each)]
    images, references = ([value for name, value in given if name in names] for names in (_PICTURE, _REFERENCE))
    texts = {name: value for name, value in given if name not in (*_PICTURE, *_REFERENCE)}
    if "mask" in texts or "markup" in texts:
        text = "Masks are not supported: the whole picture is enhanced."
        raise ApiError(400, text, param="mask", code="unsupported")
    files: list[IO[bytes]] = [each.file for each in (*images, *references) if isinstance(each, UploadFile)]
    if len(images) > 1 or not files or len(files) < len(images) + len(references):
        text = f"There are {len(images)} images; give one to enhance, references or both, as files."
        raise ApiError(400, text, param="image", code="invalid_image")
    try:  # see the guard for latin-1
        texts = {
            name: it if isinstance(it, UploadFile) else it.encode("latin-1").decode() for name, it in texts.items()
        }
    except UnicodeError:
        raise ApiError(400, "A field of the form is no UTF-8 text.", code="invalid_value") from None
    image = files.pop(0) if images else None
    return requests.validated(requests.EditBody, texts), image, files


def _is_empty(value: str | UploadFile) -> bool:
    return not (value.filename if isinstance(value, UploadFile) else value)
