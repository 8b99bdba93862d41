"""From the fields of a request to what the scheduler takes, checked by the code that Python callers meet."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO

from mrflow.errors import MrFlowError, MrFlowWarning, PlanError, PromptError, SizeError
from mrflow.files import load_image
from mrflow.model import Model
from mrflow.plan import Plan
from mrflow.presets import get_plan
from mrflow.request import Job, make_jobs
from mrflow.results import Draft
from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.server.requests import AskedBody
from mrflow.server.responses import OLDER_QUALITY
from mrflow.server.scheduler import Scheduler
from mrflow.server.settings import Settings
from mrflow.sizes import Size, parse_size
from mrflow.sources import drafts_from_images, replan_drafts

# Draft steps as shares of the model's own plan: of 12 they make 8, 12, 20, 30 and 50, of a 4-step checkpoint's 4
# they make 3, 4, 7, 10 and 17. 12+1 and 20+1 are the published plans, 50 is the usual number of native sampling.
QUALITY = {"low": 8 / 12, "medium": 1.0, "high": 20 / 12, "xhigh": 30 / 12, "max": 50 / 12}


@dataclass(frozen=True)
class Checked:
    """What is to be made: jobs of one plan and size, or drafts to be finished, and what the caller should know."""

    plan: Plan
    size: Size
    jobs: list[Job]
    drafts: list[Draft] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_prompt(scheduler: Scheduler, body: AskedBody, n: int) -> Checked:
    """Return the work for `n` pictures of a prompt; raises an ApiError."""
    model, settings = scheduler.model, scheduler.settings
    with _reading(scheduler) as warned:
        plan = model.resolve_plan(_plan(model, body, settings))
        width, height = parse_size(None if body.size == "auto" else body.size)
        size = model.resolve_size(width, height, plan)
        _check_pixels(size, settings)
        _check_text(body, settings)
        jobs = make_jobs(body.prompt, body.negative_prompt, body.seed, n)
        jobs = model.resolve_jobs(jobs, guided=plan.guided)
    return Checked(plan, size, jobs, warnings=warned)


def check_image(scheduler: Scheduler, body: AskedBody, n: int, file: IO[bytes]) -> Checked:
    """Return the work for `n` pictures from a given one; raises an ApiError."""
    model, settings = scheduler.model, scheduler.settings
    try:
        image = load_image(file, max_pixels=settings.max_input_pixels)
    except MrFlowError as error:
        raise errors.from_error(error) from None
    with _reading(scheduler) as warned:
        plan = model.resolve_plan(_plan(model, body, settings))
        _check_text(body, settings)
        size = parse_size(None if body.size == "auto" else body.size)
        seeds = [job.seed for job in make_jobs(body.prompt, body.negative_prompt, body.seed, n)]
        (draft,) = drafts_from_images(model, image, body.prompt, body.negative_prompt, seeds[0], size, plan)
        recipe = draft.base_recipe
        _check_pixels((recipe.width, recipe.height), settings)
        drafts = [replace(draft, base_recipe=replace(recipe, seed=seed)) for seed in seeds]
    return of_drafts(drafts, warned)


def check_drafts(
    scheduler: Scheduler, drafts: Sequence[Draft], plan: str | None, refine_sigma: float | None
) -> list[Draft]:
    """Return drafts with the refine pass changed as asked; raises an ApiError."""
    with _reading(scheduler):
        if plan is None and refine_sigma is None:
            return replan_drafts(scheduler.model, drafts, None)
        changed = []
        for draft in drafts:
            base = draft.base_recipe.plan
            if plan is not None:
                named = get_plan(plan)
                base = replace(base, refine_steps=named.refine_steps, refine_sigma=named.refine_sigma)
            if refine_sigma is not None:
                base = replace(base, refine_sigma=refine_sigma)
            _check_steps(base, scheduler.settings)
            changed += replan_drafts(scheduler.model, draft, base)
        return changed


def of_drafts(drafts: list[Draft], warned: Sequence[str] = ()) -> Checked:
    """Return the work of finishing drafts; plan and size are those of the first."""
    recipes = [draft.base_recipe for draft in drafts]
    jobs = [Job(recipe.prompt, recipe.negative_prompt, recipe.seed) for recipe in recipes]
    return Checked(recipes[0].plan, (recipes[0].width, recipes[0].height), jobs, drafts, list(warned))


def _plan(model: Model, body: AskedBody, settings: Settings) -> Plan:
    plan = model.defaults.plan if body.plan is None else get_plan(body.plan)
    quality = OLDER_QUALITY.get(body.quality or "auto", body.quality or "auto")
    if body.plan is None and body.num_inference_steps is None and quality != "auto":
        plan = replace(plan, steps=math.ceil(round(plan.steps * QUALITY[quality], 6)))
    numbers = {
        "steps": body.num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "true_cfg_scale": body.true_cfg_scale,
        "guidance_stop": body.guidance_stop,
        "solver": body.solver,
        "refine_sigma": body.refine_sigma,
    }
    plan = replace(plan, **{name: value for name, value in numbers.items() if value is not None})  # type: ignore[arg-type]
    _check_steps(plan, settings)
    return plan


def _check_steps(plan: Plan, settings: Settings) -> None:
    if max(plan.steps, plan.refine_steps) > settings.max_steps:
        raise PlanError(f"The plan is {plan.label}; this server takes {settings.max_steps} steps of each at most.")


def _check_pixels(size: Size, settings: Settings) -> None:
    if size[0] * size[1] > settings.max_pixels:
        raise SizeError(
            f"The size is {size[0]}x{size[1]}; this server makes {settings.max_pixels} pixels at most."
        )


def _check_text(body: AskedBody, settings: Settings) -> None:
    for name, text in (("prompt", body.prompt), ("negative_prompt", body.negative_prompt)):
        if text is not None and len(text) > settings.max_prompt:
            raise PromptError(f"The {name} has {len(text)} characters; at most {settings.max_prompt} are read.")


@contextmanager
def _reading(scheduler: Scheduler) -> Iterator[list[str]]:
    """Use the model's tokenizers; give a list that holds mrflow's warnings afterwards.

    The lock also keeps `catch_warnings`, which is not made for threads, to one thread at a time.
    """
    texts: list[str] = []
    if not scheduler.reading.acquire(timeout=30):
        raise errors.hung()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MrFlowWarning)
            yield texts
        texts += [str(each.message) for each in caught if issubclass(each.category, MrFlowWarning)]
    except ApiError:
        raise
    except MrFlowError as error:
        raise errors.from_error(error, _param_of(error)) from None
    finally:
        scheduler.reading.release()


def _param_of(error: MrFlowError) -> str | None:
    names: dict[type, str] = {PlanError: "plan", SizeError: "size", PromptError: "prompt"}
    return names.get(type(error))
