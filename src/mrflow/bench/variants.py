"""What staged sampling is compared with: its own stages left out or exchanged.

A draft that is only upscaled shows what refining adds; a draft enlarged in latent space, with the same noise,
shows what the way through pixels and an upscaler adds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from mrflow.errors import RequestError

if TYPE_CHECKING:
    from mrflow.drafts import Result
    from mrflow.pipeline import MrFlow
    from mrflow.plan import Plan
    from mrflow.upscaler import Upscaler

LATENT = "latent"
"""The name, among upscalers, of enlarging latents instead of pixels."""


def with_upscaler(fast: MrFlow, name: str | None) -> MrFlow:
    """Return `fast` with the upscaler of this name or file, each read once; None is its own."""
    from mrflow.pipeline import MrFlow

    if name is None:
        return fast
    return MrFlow(fast.pipe, _upscaler(name), defaults=fast.model.defaults, batch_size=fast.batch_size)


@cache
def _upscaler(name: str) -> Upscaler:
    from mrflow.upscaler import Upscaler

    return Upscaler.load(name)


def run_unrefined(fast: MrFlow, plan: Plan, **settings: Any) -> Result:
    """Return the drafts at full size by the upscaler alone: steps 1 to 4."""
    import torch

    from mrflow.drafts import Result
    from mrflow.images import to_pil
    from mrflow.progress import Clock

    drafts = fast.draft(plan=plan, **settings)
    clock = Clock(fast.model.device, settings.get("callback"))
    images = []
    for draft in drafts:
        size = (draft.base_recipe.width, draft.base_recipe.height)
        with torch.no_grad(), clock.stage("upscale") as stage:
            stage.pixels = fast.model.upscaler.upscale(draft.pixels, *size)
        images += to_pil(stage.pixels)
    later = clock.totals()
    total = drafts.seconds["total"] + later["total"]
    return Result(images, drafts.recipes, {**drafts.seconds, **later, "total": total}, drafts)


def run_latent(fast: MrFlow, plan: Plan, **settings: Any) -> Result:
    """Return pictures whose draft was enlarged as latents, bicubic, with the noise that the pixels' way gets.

    Raises RequestError for a family whose layout of latents is not known.
    """
    from mrflow.borrowing import borrowed
    from mrflow.drafts import Result
    from mrflow.images import to_pil
    from mrflow.progress import Clock

    model = fast.model
    if not hasattr(model.backbone, "layout"):
        raise RequestError(f"{type(model.backbone).__name__} does not say how its latents lie; leave out latent.")
    settings = dict(settings)
    callback = settings.pop("callback", None)
    plan = model.resolve_plan(plan)
    size = model.resolve_size(settings.pop("width", None), settings.pop("height", None), plan)
    jobs = model.resolve_jobs(make_jobs(**settings), guided=plan.guided)
    images, recipes = [], []
    with borrowed(fast.pipe):
        stages = Stages(model=model, clock=Clock(model.device, callback))
        for job in jobs:
            rows = stages.encode_prompts([job], guided=plan.guided, batch_size=1)
            images += to_pil(_finish(stages, rows, job.seed, plan, size))
            recipes.append(model.recipe("staged", job, size, plan))
        return Result(images, recipes, stages.clock.totals())


def _finish(stages: Any, rows: Any, seed: int, plan: Plan, size: tuple[int, int]) -> Any:
    """Return pixels: draft, enlarge, add noise, refine, decode."""
    from torch.nn.functional import interpolate

    from mrflow.jobs import draft_size
    from mrflow.sampling import add_noise, make_noise, refine_generators

    model, small = stages.model, draft_size(*size, plan)
    with stages.clock.stage("draft", plan.steps) as stage:
        held = stages.draft_latents(rows, [seed], plan, small, stage.step)
    with stages.clock.stage("upscale"):
        latents = model.backbone.layout.unpack(model.pipe, held, *small)
        latents = latents.squeeze(2) if latents.ndim == 5 else latents  # a video of one frame
        sides = [int(side * plan.ratio) for side in latents.shape[-2:]]
        latents = interpolate(latents.float(), sides, mode="bicubic", align_corners=False)
        generators = refine_generators([seed])
        noise = make_noise(latents.shape[1:], generators, latents.device)
        noised = add_noise(latents, plan.refine_sigma, noise)
    return stages.refine(noised, rows, plan, size, generators)
