"""What staged sampling is compared with: its own stages left out or exchanged, and other models.

A draft that is only upscaled shows what refining adds. What enlarges it is a number of a plan, or an upscaler.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from mrflow.errors import PlanError

if TYPE_CHECKING:
    import torch

    from mrflow.drafts import Result
    from mrflow.pipeline import MrFlow
    from mrflow.plan import Plan
    from mrflow.upscaler import Upscaler


def with_upscaler(fast: MrFlow, name: str | None) -> MrFlow:
    """Return `fast` with the upscaler of this name or file, each read once; None is its own."""
    from mrflow.pipeline import MrFlow

    if name is None:
        return fast
    return MrFlow.from_pipe(
        fast, upscaler=_upscaler(name), defaults=fast.model.defaults, batch_size=fast.batch_size
    )


def with_model(fast: MrFlow, name: str | None) -> MrFlow:
    """Return another model, with its own upscaler, on the device and in the dtype of `fast`; None is `fast`.

    Each is loaded once, and stays.
    """
    from mrflow.pipeline import MrFlow

    if name is None:
        return fast
    made = _model(name, fast.model.device, fast.model.dtype)
    return MrFlow.from_pipe(
        made, upscaler=made.model.upscaler, defaults=made.model.defaults, batch_size=fast.batch_size
    )


@cache
def _model(name: str, device: torch.device, dtype: torch.dtype) -> MrFlow:
    from mrflow.pipeline import MrFlow

    made = MrFlow.from_pretrained(name, device=device, dtype=dtype)
    made.pipe.set_progress_bar_config(disable=True)
    return made


@cache
def _upscaler(name: str) -> Upscaler:
    from mrflow.upscaler import Upscaler

    return Upscaler.load(name)


def run_unrefined(fast: MrFlow, plan: Plan, **settings: Any) -> Result:
    """Return the drafts at full size by the upscaler alone: steps 1 to 4. Raises PlanError for one of latents."""
    import torch

    from mrflow.drafts import Result
    from mrflow.images import to_pil
    from mrflow.progress import Clock
    from mrflow.sampling import keep_colors

    upscaler = fast.model.lift(plan)
    if upscaler.latents:
        raise PlanError(f"{upscaler.name} enlarges latents, which want refining. Give at least 1 step.")
    drafts = fast.draft(plan=plan, **settings)
    clock = Clock(fast.model.device, settings.get("callback"))
    images = []
    for draft in drafts:
        size, tile = draft.base_recipe.size, draft.base_recipe.plan.cut(*draft.base_recipe.size)
        with torch.no_grad(), clock.stage("upscale") as stage:
            larger = upscaler.upscale(draft.pixels, *size, tile=tile)
            stage.pixels = keep_colors(larger, draft.pixels, plan.color_guard)
        images += to_pil(stage.pixels)
    later = clock.totals()
    total = drafts.seconds["total"] + later["total"]
    return Result(images, drafts.recipes, {**drafts.seconds, **later, "total": total}, drafts)
