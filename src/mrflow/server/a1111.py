"""AUTOMATIC1111's API, on a switch: its words read into ours, its hires fix into a plan."""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from mrflow.errors import PlanError
from mrflow.jobs import MAX_SIDE
from mrflow.model import Model
from mrflow.plan import ABOUT
from mrflow.server import errors, requests
from mrflow.server.errors import ApiError
from mrflow.server.responses import Encoder, unless_gone
from mrflow.server.service import Service
from mrflow.server.settings import MAX_N
from mrflow.server.tickets import Made, News, TicketGroup

Asked = TypeVar("Asked", requests.GenerateBody, requests.EditBody)

# denoising_strength up to, sigma. A refine pass of a step or two carries no more than .2 (docs/serving.md).
SIGMAS = ((0.2, 0.08), (0.4, 0.12), (0.6, 0.16), (1.0, 0.2))
SOLVERS = {"Euler": "own", "DPM++ 2M": "dpm++2m", "UniPC": "unipc"}
_LORA = re.compile(r"<lora:([^<>]+)>")
_AFTER = ("decode_draft", "upscale", "encode", "refine", "decode")  # the stages after the draft's steps


class TextBody(BaseModel):
    """POST /sdapi/v1/txt2img. What is not named here is ignored."""

    prompt: str = Field(min_length=0)
    negative_prompt: str | None = Field(None, min_length=0)
    seed: int = -1
    steps: int | None = Field(None, ge=0, le=int(ABOUT["steps"].high))
    cfg_scale: float | None = Field(None, description="Of models without guidance embeddings.")
    distilled_cfg_scale: float | None = Field(None, description="Of models with guidance embeddings.")
    width: int | None = Field(None, gt=0, le=MAX_SIDE, description="With enable_hr, of the draft.")
    height: int | None = Field(None, gt=0, le=MAX_SIDE)
    batch_size: int = Field(1, ge=1, le=MAX_N)
    n_iter: int = Field(1, ge=1, le=MAX_N)
    sampler_name: str | None = Field(None, max_length=100, description="Others than ours are the model's own.")
    enable_hr: bool = False
    hr_scale: float = Field(2.0, gt=0, le=8)
    hr_second_pass_steps: int = Field(
        0, ge=0, le=int(ABOUT["refine_steps"].high), description="Of the refine pass; 0 is the model's own."
    )
    denoising_strength: float | None = Field(None, ge=0, le=1, description="Read as a sigma.")
    script_name: str | None = Field(None, max_length=100)
    alwayson_scripts: dict[str, Any] | None = None


class ImageBody(TextBody):
    """POST /sdapi/v1/img2img: one picture, enhanced."""

    init_images: list[str] = Field(min_length=1, max_length=1, description="base64, or a data: url.")
    mask: str | None = None


@dataclass
class _Run:
    """A request at work. news: the last of it."""

    group: TicketGroup
    begun: float = field(default_factory=time.monotonic)
    news: News | None = None
    interrupted: bool = False


def a1111_routes(service: Service) -> APIRouter:
    """Return the routes over `service`."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
    scheduler, model, name = service.scheduler, service.scheduler.model, service.names[0]
    running: dict[str, list[_Run]] = {}

    async def answer(request: Request, body: TextBody, checked: requests.Checked) -> dict[str, Any]:
        client = request.state.client
        group = TicketGroup(scheduler, client, request_id=request.state.request_id, steps=True)
        if checked.drafts:
            group.add_drafts(checked.drafts, checked.jobs)
        else:
            group.add(("draft", "finish"), checked.jobs)
        run = _Run(group)
        running.setdefault(client, []).append(run)
        try:
            async with group:
                made = await unless_gone(request, _collect(run))
        finally:
            running[client].remove(run)
        return await run_in_threadpool(_answer, body, made, checked)

    @router.post("/txt2img")
    async def txt2img(request: Request, body: TextBody) -> dict[str, Any]:
        """Make pictures; enable_hr says how large the draft is and how it is finished."""
        scheduler.check_open()
        asked, notes = read_body(model, body, requests.GenerateBody)
        checked = await run_in_threadpool(requests.check_prompt, scheduler, asked, asked.n or 1)
        try:
            scale = body.hr_scale if body.enable_hr else checked.plan.scale
            jobs = [replace(job, plan=replace(job.plan, scale=scale)) for job in checked.jobs]
        except PlanError as error:
            raise errors.from_error(error, "hr_scale") from None
        return await answer(request, body, replace(checked, jobs=jobs, warnings=[*notes, *checked.warnings]))

    @router.post("/img2img")
    async def img2img(request: Request, body: ImageBody) -> dict[str, Any]:
        """Enhance one picture."""
        scheduler.check_open()
        if body.mask:
            raise ApiError(400, "Masks are not supported: the whole picture is enhanced.", param="mask")
        asked, notes = read_body(model, body, requests.EditBody)
        try:
            file = BytesIO(base64.b64decode(body.init_images[0].rpartition(",")[2], validate=True))
        except ValueError:
            raise ApiError(
                400, "init_images holds no base64.", param="init_images", code="invalid_image"
            ) from None
        checked = await run_in_threadpool(requests.check_image, scheduler, asked, asked.n or 1, file)
        return await answer(request, body, replace(checked, warnings=[*notes, *checked.warnings]))

    @router.get("/progress")
    async def progress(request: Request) -> dict[str, Any]:
        """Say how far the client's oldest request is."""
        run = next(iter(running.get(request.state.client, [])), None)
        news, share = run.news if run else None, _share(run.news) if run and run.news else 0.0
        eta = (time.monotonic() - run.begun) * (1 / share - 1) if run and share else 0.0
        at = {"sampling_step": news.step, "sampling_steps": news.steps} if news else {}
        state = {"job": "mrflow" if run else "", "job_count": len(run.group.tickets) if run else 0}
        state |= {"skipped": False, "interrupted": run is not None and run.interrupted, **at}
        return {"progress": share, "eta_relative": eta, "state": state, "current_image": None, "textinfo": None}

    @router.post("/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        """Stop the client's requests between two steps; they answer with what is finished."""
        for run in running.get(request.state.client, []):
            run.interrupted = True
            run.group.forget()
        return {}

    @router.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        """List the model."""
        return [
            {"title": name, "model_name": name, "filename": name, "hash": None, "sha256": None, "config": None}
        ]

    @router.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        """List the upscaler."""
        return [
            {"name": model.upscaler.name, "model_name": None, "model_path": None, "model_url": None, "scale": None}
        ]

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        """List what can step through a draft."""
        return [{"name": sampler, "aliases": [], "options": {}} for sampler in SOLVERS]

    @router.get("/options")
    async def options() -> dict[str, Any]:
        """Say which model there is."""
        return {"sd_model_checkpoint": name, "samples_format": "png"}

    @router.post("/options")
    async def set_options(given: dict[str, Any]) -> dict[str, Any]:
        """Change nothing; a model that is not served is refused."""
        chosen = given.get("sd_model_checkpoint")
        service.check_model(chosen if isinstance(chosen, str) and chosen else None)
        return {}

    return router


async def _collect(run: _Run) -> list[Made]:
    """Return what is made, in order; of an interrupted request what is finished."""
    made: dict[int, Made] = {}
    try:
        async for news in run.group.news():
            run.news = news if news.stage is not None else run.news
            if news.made is not None:
                made[news.index] = news.made
    except ApiError:
        if not run.interrupted:
            raise
    return [made[index] for index in sorted(made)]


def _share(news: News) -> float:
    """Return how much of a picture is done: its draft counts for four fifths."""
    if news.stage in _AFTER:
        return 0.8 + 0.2 * _AFTER.index(news.stage) / len(_AFTER)
    return 0.8 * news.step / news.steps if news.stage == "draft" else 0.01


def read_body(model: Model, body: TextBody, kind: type[Asked]) -> tuple[Asked, list[str]]:
    """Return the request in our words, and what was read otherwise or ignored."""
    if body.script_name or body.alwayson_scripts:
        raise ApiError(400, "Scripts and extensions are not supported.", param="script_name", code="unsupported")
    loras = _LORA.findall(body.prompt)
    own, notes, guidance = model.defaults.plan, list[str](), model.backbone.guidance_field(model.pipe)
    refine, scale = (body.hr_second_pass_steps, body.hr_scale) if body.enable_hr else (0, 1.0)
    fields: dict[str, Any] = {
        "prompt": _LORA.sub("", body.prompt).strip() if loras else body.prompt,
        "loras": loras or None,
        "negative_prompt": body.negative_prompt or None,
        "seed": None if body.seed < 0 else body.seed,
        "n": body.batch_size * body.n_iter,
        "solver": SOLVERS.get(body.sampler_name or ""),
        guidance: body.cfg_scale if guidance == "true_cfg_scale" else body.distilled_cfg_scale,
    }
    if body.steps or refine:
        fields["plan"] = f"{body.steps or own.steps}+{refine or own.refine_steps}"
    if body.width and body.height:
        unit = model.multiple if body.enable_hr else 1
        fields["size"] = "x".join(str(round(side * scale / unit) * unit) for side in (body.width, body.height))
    if body.denoising_strength is not None and (body.enable_hr or isinstance(body, ImageBody)):
        fields["refine_sigma"] = next(sigma for most, sigma in SIGMAS if body.denoising_strength <= most)
        told = f"denoising_strength {body.denoising_strength:g} is read as refine_sigma {fields['refine_sigma']}"
        notes.append(f"{told}, which a refine pass can carry.")
    if body.sampler_name and fields["solver"] is None:
        notes.append(f"sampler_name {body.sampler_name!r} is ignored: the model's own is taken.")
    if body.cfg_scale is not None and guidance == "guidance_scale":
        notes.append("cfg_scale is ignored: this model's guidance is distilled_cfg_scale.")
    return requests.validated(kind, fields), notes


def _answer(body: TextBody, made: list[Made], checked: requests.Checked) -> dict[str, Any]:
    done = [(each.image, each.recipe) for each in made if each.image is not None and each.recipe is not None]
    job, recipes = checked.jobs[0], [recipe for _, recipe in done]
    info = {
        **{name: getattr(job, name) for name in ("prompt", "negative_prompt", "seed", "width", "height")},
        "all_seeds": [recipe.seed for recipe in recipes],
        "all_prompts": [recipe.prompt for recipe in recipes],
        "infotexts": [recipe.infotext for recipe in recipes],
        "warnings": list(checked.warnings),
    }
    return {
        "images": [base64.b64encode(Encoder().encode(*each)).decode() for each in done],
        "parameters": body.model_dump(exclude={"init_images"}, exclude_none=True),
        "info": json.dumps(info),
    }
