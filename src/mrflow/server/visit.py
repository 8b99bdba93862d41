"""What the page does when a button is pressed: pictures for one visitor, told of as they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from mrflow.errors import MrFlowError
from mrflow.files import read_recipe
from mrflow.plan import ABOUT, About, written
from mrflow.progress import Stage
from mrflow.recipe import Recipe
from mrflow.server.errors import ApiError
from mrflow.server.requests import Checked, GenerateBody, check_prompt, of_drafts, plan_numbers
from mrflow.server.responses import Encoder
from mrflow.server.service import Service
from mrflow.server.store import StoredFile
from mrflow.server.tickets import News, TicketGroup

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


Wishes = Mapping[str, str]
"""The page's fields by their names in requests, as a visitor left them: gradio 6 makes an empty number a 0."""


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
        group = TicketGroup(service.scheduler, client, (*_DRAFTED, *_UPSCALED))
        group.add(("draft", "finish"), checked.jobs)
        async with group:
            async for news in group.news():
                yield await _view(service, news, checked)
        if compare:
            async for view in _native(service, client, body, checked):
                yield view
    except ApiError as error:
        yield View(f"**{error.message}**", {})


async def _native(service: Service, client: str, body: GenerateBody, checked: Checked) -> AsyncIterator[View]:
    """Yield the same picture by the plain pipeline, for comparison."""
    steps = service.scheduler.model.defaults.native_steps
    asked = plan_numbers(body)
    plan = checked.plan.native(steps, guidance_stop=asked.get("guidance_stop"), solver=asked.get("solver"))
    group = TicketGroup(service.scheduler, client, _NATIVE)
    group.add(("native",), [replace(job, plan=plan) for job in checked.jobs])
    async with group:
        async for news in group.news():
            if news.made is None:
                yield View(f"native sampling: step {news.step} of {news.steps}", {})
            elif news.made.image is not None:
                seconds = sum(value for name, value in news.made.seconds.items() if name != "queue")
                text = f"native sampling took {seconds:.1f} s in {steps} steps"
                yield View(text, {"native": (news.made.image, seconds)})


async def make_drafts(service: Service, client: str, wishes: Wishes) -> AsyncIterator[tuple[str, list[Any]]]:
    """Yield a line of text and in the end the drafts, (id, image, seed) each.

    Not one by one: gradio 6 writes a gallery's pictures again with each change, also those being fetched.
    """
    try:
        body = _body(service, wishes)
        checked = await run_in_threadpool(check_prompt, service.scheduler, body, DRAFTS)
        group = TicketGroup(service.scheduler, client, _DRAFTED)
        group.add(("draft",), checked.jobs)
        drafts: list[Any] = []
        async with group:
            async for news in group.news():
                if news.made is not None and news.made.draft is not None:
                    draft = news.made.draft
                    drafts.append((service.keep_draft(draft), draft.image, draft.base_recipe.seed))
                elif news.index == 0 and news.stage is not None:
                    yield _doing(news), []
        text = f"{len(drafts)} drafts in {news.seconds:.1f} s. Click those to finish."
        yield _with_warnings(text, checked), sorted(drafts, key=lambda each: each[2])
    except ApiError as error:
        yield f"**{error.message}**", []


async def finish_draft(service: Service, client: str, name: str) -> AsyncIterator[View]:
    """Yield the finished picture of a kept draft."""
    try:
        checked = of_drafts(service.kept_drafts([name]))
        group = TicketGroup(service.scheduler, client, _UPSCALED)
        group.add(("finish",), checked.jobs, checked.drafts[0])
        async with group:
            async for news in group.news():
                yield await _view(service, news, checked)
    except ApiError as error:
        yield View(f"**{error.message}**", {})


def recipe_of(path: str | None) -> tuple[str, Recipe | None]:
    """Return a line of text and the recipe inside a picture that was dropped on the page."""
    if path is None:
        return "", None
    try:
        recipe = read_recipe(path)
    except MrFlowError as error:  # its words may hold the path
        return f"**{str(error).replace(str(path), Path(path).name)}**", None
    return f"The recipe of seed {recipe.seed}, made by {recipe.model}.", recipe


def plan_fields(service: Service) -> dict[str, About]:
    """Return the plan's numbers that the page asks for, by their names in requests.

    Of two kinds of guidance those of the model; the draft's steps stand in the plan's own field.
    """
    model = service.scheduler.model
    others = {"steps", "guidance_scale", "true_cfg_scale"} - {model.backbone.guidance_field(model.pipe)}
    return {about.http: about for name, about in ABOUT.items() if about.http and name not in others}


def wishes_of(recipe: Recipe, numbers: Iterable[str]) -> Wishes:
    """Return the page's fields as they would have asked for this picture, among them these of the plan's."""
    plan = {about.http: getattr(recipe.plan, name) for name, about in ABOUT.items()}
    return {
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt or "",
        "plan": recipe.plan.label,
        "size": f"{recipe.width}x{recipe.height}",
        "seed": str(recipe.seed),
        **{name: written(plan[name]) for name in numbers},
    }


def _body(service: Service, wishes: Wishes) -> GenerateBody:
    """Return what is asked, as it would come over HTTP; raises an ApiError."""
    service.scheduler.check_open()
    texts = {name: text.strip() for name, text in wishes.items() if text.strip()} | {"prompt": wishes["prompt"]}
    if texts.get("plan") == service.scheduler.model.defaults.plan.label:
        del texts["plan"]  # the model's own says more
    try:
        return GenerateBody.model_validate(texts, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        name, rule = first["loc"][0], first["msg"].replace("Input", "it", 1)
        raise ApiError(400, f"{name} is {first['input']!r:.80}; {rule}. Leave it empty for the default.") from None


async def _view(service: Service, news: News, checked: Checked) -> View:
    made = news.made
    if made is None or made.image is None or made.recipe is None:
        name = "draft" if news.stage == "decode_draft" else "upscaled"
        return View(_doing(news), {name: (news.image, news.seconds)} if news.image is not None else {})
    data = await run_in_threadpool(Encoder().encode, made.image, made.recipe)
    file = service.files.put(StoredFile(data, "image/png"), len(data))
    text = f"done in {news.seconds:.1f} s, of which {made.seconds.get('queue', 0):.1f} s waiting"
    pictures = {"final": (made.image, news.seconds)}
    return View(_with_warnings(text, checked), pictures, file, made.recipe.seed)


def _doing(news: News) -> str:
    what = _WORDS[news.stage] if news.stage is not None else ""
    return f"{what}: step {news.step} of {news.steps}" if news.steps > 1 else what


def _with_warnings(text: str, checked: Checked) -> str:
    return "  \n".join([text, *(f"Note: {warning}" for warning in checked.warnings)])
