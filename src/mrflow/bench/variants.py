"""What staged sampling is compared with: its own stages left out or exchanged.

A draft that is only upscaled shows what refining adds; a draft enlarged in latent space, with the same noise,
shows what the way through pixels and an upscaler adds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from mrflow.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from mrflow.drafts import Result
    from mrflow.jobs import Job, Size
    from mrflow.pipeline import MrFlow
    from mrflow.plan import Plan
    from mrflow.steps import Run
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
    from mrflow.jobs import ask
    from mrflow.steps import Run

    model = fast.model
    if not hasattr(model.backbone, "layout"):
        raise RequestError(f"{type(model.backbone).__name__} does not say how its latents lie; leave out latent.")
    callback = settings.pop("callback", None)
    jobs = model.resolve(ask(plan=plan, **settings))
    with borrowed(fast.pipe):
        run = Run.over(model, callback)
        images = [image for job in jobs for image in to_pil(_finish(run, job))]
        return Result(images, [model.recipe("staged", job) for job in jobs], run.clock.totals())


def _finish(run: Run, job: Job) -> Tensor:
    """Return pixels: draft, enlarge, add noise, refine, decode."""
    from mrflow import steps
    from mrflow.sampling import mix_noise, refine_sigmas

    batch = steps.encode_prompts(run, steps.Batch([job]))
    small = job.plan.draft_size(*job.size, run.model.multiple)
    drawn = steps.denoise(run, batch, small)
    with run.clock.stage("upscale"):
        latents = _enlarge(run, drawn, small, job.size)
    noised = mix_noise(latents, refine_sigmas(job.plan.refine_sigma, job.plan.refine_steps), [job.seed])
    return steps.decode(run, batch, steps.refine(run, batch, noised, job.size), job.size)


def _enlarge(run: Run, drawn: Tensor, small: Size, size: Size) -> Tensor:
    from torch.nn.functional import interpolate

    latents = run.model.backbone.layout.unpack(run.model.pipe, drawn, *small)
    latents = latents.squeeze(2) if latents.ndim == 5 else latents  # a video of one frame
    height, width = (int(side) for side in latents.shape[-2:])
    sides = (height * size[1] // small[1], width * size[0] // small[0])
    return interpolate(latents.float(), sides, mode="bicubic", align_corners=False)
