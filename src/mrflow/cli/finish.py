"""`mrflow finish`: chosen drafts at full size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mrflow.cli.loading import RecordedModel
from mrflow.cli.options import References, Streams
from mrflow.cli.outputs import StagedOutput, Written, tell_pictures
from mrflow.cli.planning import RefineOptions
from mrflow.cli.progress import StageBars
from mrflow.errors import RequestError
from mrflow.recipe import Recipe


def finish(
    *draft: Annotated[Path, Parameter(required=True)],
    references: References = (),
    plans: RefineOptions = RefineOptions(),
    model: RecordedModel = RecordedModel(),
    output: StagedOutput = StagedOutput(),
    streams: Streams = Streams(),
) -> None:
    """Finish drafts at full size, as their recipes say or with another refine pass.

    Args:
        draft: Files from 'mrflow draft' or --stages.
        references: Those that the drafts were made with.

    Examples:
      mrflow finish a-meadow-at-dawn-7-draft.png
      mrflow finish drafts/*.png --sigma 0.2 --out finished/
    """
    from mrflow import Draft

    chosen = [Draft.from_image(path) for path in draft]
    recipes = [each.base_recipe for each in chosen]
    model.check_loras(recipes)
    source = model if model.model else model.named(_first_of_one_model(recipes))
    _check_plans(recipes, plans)
    kept = ("upscaled",) if output.stages else ()
    paths = output.paths("{prompt}-{seed}.png", recipes, draft, companions=kept)
    fast = source.load()
    plan = plans.apply(fast, recipes[0].plan) if plans.given() else None
    with Written(paths, stages=kept, force=output.force) as written, StageBars() as bars:
        told: dict[str, Any] = {"plan": plan, "references": list(references), "keep_upscaled": output.stages}
        result = fast.finish(chosen, **told, callback=bars, on_picture=written)
    tell_pictures(written.entries, result.seconds, as_json=streams.json)


def _first_of_one_model(recipes: Sequence[Recipe]) -> Recipe:
    names = list(dict.fromkeys(recipe.model for recipe in recipes))
    if len(names) > 1:
        raise RequestError(f"The drafts are of {len(names)} models: {', '.join(names)}. Finish each apart.")
    return recipes[0]


def _check_plans(recipes: Sequence[Recipe], plans: RefineOptions) -> None:
    """Raise RequestError if what is changed would not mean the same for every draft."""
    distinct = {recipe.plan for recipe in recipes}
    if plans.given() and len(distinct) > 1:
        raise RequestError(
            f"The drafts have {len(distinct)} different plans, so their refine pass cannot be changed together. "
            "Finish each plan's drafts apart."
        )
