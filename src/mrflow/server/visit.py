"""What the page does when a button is pressed: orders of one visitor, told as they go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from mrflow.errors import MrFlowError
from mrflow.files import read_recipe
from mrflow.progress import Stage
from mrflow.recipe import Recipe
from mrflow.server.checking import Checked, check_prompt, of_drafts
from mrflow.server.errors import ApiError
from mrflow.server.orders import News, Order
from mrflow.server.requests import GenerateBody
from mrflow.server.responses import Form, StoredFile
from mrflow.server.service import Service
from mrflow.server.tickets import Made

DRAFTS = 8
_DRAFTED: tuple[Stage, ...] = ("decode_draft",)
_UPSCALED: tuple[Stage, ...] = ("upscale",)
_NATIVE: tuple[Stage, ...] = ("decode",)
_WORDS: dict[Stage, str] = {
    "text": "reading the prompt",
    "draft": "drafting",
    "decode_draft": "drafting",
    "upscale": "upscaling",
    "encode": "refining",
    "refine": "refining",
    "decode": "refining",
}


@dataclass(frozen=True)
class Wishes:
    """The page's fields as a visitor left them, all text: gradio 6 makes an empty number a 0."""

    prompt: str
    negative: str
    plan: str
    size: str
    seed: str
    guidance: str
    guidance_stop: str
    solver: str
    sigma: str


@dataclass(frozen=True)
class View:
    """What the page shows next: a line of text, and pictures by their names, each with its seconds."""

    text: str
    pictures: dict[str, tuple[Image.Image, float]]
    file: str | None = None  # what a finished picture's file is called here
    seed: int | None = None


async def generate(service: Service, client: str, wishes: Wishes, *, compare: bool) -> AsyncIterator[View]:
    """Yield the draft, the upscaled draft, the final and, to compare, the native picture as they are made."""
    try:
        body = _body(service, wishes)
        checked = await run_in_threadpool(check_prompt, service.scheduler, body, 1)
        order = Order(service.scheduler, client, (*_DRAFTED, *_UPSCALED))
        order.add(("draft", "finish"), checked.jobs, checked.plan, checked.size)
        async with order:
            async for news in order.news():
                yield await _view(service, news, checked)
        if compare:
            async for view in _native(service, client, body, checked):
                yield view
    except ApiError as refusal:
        yield View(f"**{refusal.message}**", {})


async def _native(service: Service, client: str, body: GenerateBody, checked: Checked) -> AsyncIterator[View]:
    """Yield the same picture by the plain pipeline, for comparison."""
    steps = service.scheduler.model.defaults.native_steps
    plan = checked.plan.native(steps, guidance_stop=body.guidance_stop, solver=body.solver)
    order = Order(service.scheduler, client, _NATIVE)
    order.add(("native",), checked.jobs, plan, checked.size)
    async with order:
        async for news in order.news():
            if news.made is None:
                yield View(f"native sampling: step {news.step} of {news.steps}", {})
            elif news.made.image is not None:
                seconds = _seconds(news.made)
                yield View(
                    f"native sampling took {seconds:.1f} s in {steps} steps",
                    {"native": (news.made.image, seconds)},
                )


async def make_drafts(service: Service, client: str, wishes: Wishes) -> AsyncIterator[tuple[str, list[Any]]]:
    """Yield a line of text and in the end the drafts, (id, image, seed) each.

    Not one by one: gradio 6 writes a gallery's pictures again with each change, also those being fetched.
    """
    try:
        body = _body(service, wishes)
        checked = await run_in_threadpool(check_prompt, service.scheduler, body, DRAFTS)
        order = Order(service.scheduler, client, _DRAFTED)
        order.add(("draft",), checked.jobs, checked.plan, checked.size)
        drafts: list[Any] = []
        async with order:
            async for news in order.news():
                if news.made is not None and news.made.draft is not None:
                    draft = news.made.draft
                    drafts.append((service.keep_draft(draft), draft.image, draft.base_recipe.seed))
                elif news.index == 0 and news.stage is not None:
                    yield _doing(news), []
        text = f"{len(drafts)} drafts in {news.seconds:.1f} s. Click those to finish."
        yield _with_warnings(text, checked), sorted(drafts, key=lambda each: each[2])
    except ApiError as refusal:
        yield f"**{refusal.message}**", []


async def finish_draft(service: Service, client: str, name: str) -> AsyncIterator[View]:
    """Yield the finished picture of a kept draft."""
    try:
        checked = of_drafts(service.kept_drafts([name]))
        order = Order(service.scheduler, client, _UPSCALED)
        order.add(("finish",), checked.jobs, checked.plan, checked.size, checked.drafts[0])
        async with order:
            async for news in order.news():
                yield await _view(service, news, checked)
    except ApiError as refusal:
        yield View(f"**{refusal.message}**", {})


def recipe_of(path: str | None) -> tuple[str, Recipe | None]:
    """Return a line of text and the recipe inside a picture that was dropped on the page."""
    if path is None:
        return "", None
    try:
        recipe = read_recipe(path)
    except MrFlowError as error:  # its words may hold the path
        return f"**{str(error).replace(str(path), Path(path).name)}**", None
    return f"The recipe of seed {recipe.seed}, made by {recipe.model}.", recipe


def _body(service: Service, wishes: Wishes) -> GenerateBody:
    """Return what is asked, as it would come over HTTP; raises an ApiError."""
    service.scheduler.check_open()
    model = service.scheduler.model
    field = model.backbone.guidance_field(model.pipe)
    plan = wishes.plan.strip()
    texts = (
        (field, wishes.guidance),
        ("guidance_stop", wishes.guidance_stop),
        ("refine_sigma", wishes.sigma),
    )
    try:
        values: dict[str, Any] = {name: float(text) for name, text in texts if text.strip()}
        return GenerateBody(
            prompt=wishes.prompt,
            negative_prompt=wishes.negative.strip() or None,
            plan=None if plan in ("", model.defaults.plan.label) else plan,  # the model's own says more
            seed=int(wishes.seed) if wishes.seed.strip() else None,
            size=wishes.size.strip() or None,
            solver=wishes.solver.strip() or None,
            **values,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ApiError(400, f"{first['loc'][0]}: {first['msg']}.") from None
    except ValueError:
        raise ApiError(400, "Seed, guidance, guided share and refine sigma must be numbers, or empty.") from None


async def _view(service: Service, news: News, checked: Checked) -> View:
    if news.made is not None and news.made.image is not None and news.made.recipe is not None:
        made = news.made
        data = await run_in_threadpool(Form().encode, news.made.image, news.made.recipe)
        name = service.files.put(StoredFile(data, "image/png"), len(data))
        text = f"done in {news.seconds:.1f} s, of which {made.seconds.get('queue', 0):.1f} s waiting"
        pictures = {"final": (news.made.image, news.seconds)}
        return View(_with_warnings(text, checked), pictures, name, news.made.recipe.seed)
    pictures = {}
    if news.image is not None:
        pictures = {"draft" if news.stage == "decode_draft" else "upscaled": (news.image, news.seconds)}
    return View(_doing(news), pictures)


def _doing(news: News) -> str:
    what = _WORDS[news.stage] if news.stage is not None else ""
    return f"{what}: step {news.step} of {news.steps}" if news.steps > 1 else what


def _with_warnings(text: str, checked: Checked) -> str:
    return "  \n".join([text, *(f"Note: {warning}" for warning in checked.warnings)])


def _seconds(made: Made) -> float:
    return sum(value for name, value in made.seconds.items() if name != "queue")
