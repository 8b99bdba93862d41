"""`mrflow finish`: chosen drafts at full size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mrflow.cli import options
from mrflow.cli.loading import ModelOptions
from mrflow.cli.outputs import plan_outputs, subjects_of
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import StageBars
from mrflow.cli.reporting import reporting
from mrflow.cli.writing import Written, tell_pictures
from mrflow.errors import RequestError
from mrflow.recipe import Recipe


def finish(
    drafts: Annotated[
        list[Path],
        typer.Argument(metavar="DRAFT", help="Files from 'mrflow draft' or --stages.", show_default=False),
    ],
    refine_steps: options.RefineSteps = None,
    sigma: options.Sigma = None,
    scale: options.Scale = None,
    model: options.RecordedModel = None,
    upscaler: options.Upscaler = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: options.Out = None,
    force: options.Force = False,
    stages: options.Stages = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Finish drafts at full size, as their recipes say or with another refine pass.

    Examples:
      mrflow finish a-meadow-at-dawn-7-draft.png
      mrflow finish drafts/*.png --sigma 0.2 --out finished/
    """
    with reporting(debug):
        from mrflow import Draft

        plans = PlanOptions(refine_steps=refine_steps, refine_sigma=sigma, scale=scale)
        chosen = [Draft.from_image(path) for path in drafts]
        recipes = [each.base_recipe for each in chosen]
        name = model or _shared_model(recipes)
        _check_plans(recipes, plans)
        kept = ("upscaled",) if stages else ()
        subjects = subjects_of(recipes, drafts)
        paths = plan_outputs(out, "{prompt}-{seed}.png", subjects, companions=kept, force=force)
        source = ModelOptions(model=name, recorded=model is None, upscaler=upscaler, device=device, dtype=dtype)
        fast = source.load()
        plan = plans.apply(fast, recipes[0].plan) if plans.given() else None
        with Written(paths, stages=kept, force=force) as written, StageBars() as bars:
            result = fast.finish(chosen, plan=plan, stages=stages, callback=bars, on_picture=written)
        tell_pictures(written.entries, result.seconds, as_json=as_json)


def _shared_model(recipes: Sequence[Recipe]) -> str:
    names = list(dict.fromkeys(recipe.model for recipe in recipes))
    if len(names) > 1:
        raise RequestError(f"The drafts are of {len(names)} models: {', '.join(names)}. Finish each apart.")
    return names[0]


def _check_plans(recipes: Sequence[Recipe], plans: PlanOptions) -> None:
    """Check the changed plan; what is changed must mean the same for every draft."""
    distinct = {recipe.plan for recipe in recipes}
    if plans.given() and len(distinct) > 1:
        raise RequestError(
            f"The drafts have {len(distinct)} different plans, so their refine pass cannot be changed together. "
            "Finish each plan's drafts apart."
        )
