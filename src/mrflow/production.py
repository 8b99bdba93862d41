"""From jobs to results: requests cut into batches, run through the stages, and given their recipes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mrflow.backbones import Conditioning
from mrflow.conditions import finished_conditions
from mrflow.images import pixels_sha256, to_pil
from mrflow.model import Model
from mrflow.plan import Plan
from mrflow.recipe import Mode, Recipe
from mrflow.request import Job
from mrflow.results import Draft, Result
from mrflow.sizes import Size, draft_size
from mrflow.stages import Stages

OnPicture = Callable[[int, Result], None]
"""Takes each picture as soon as it is finished: its number, from 0, and a result of it alone."""


def make_drafts(stages: Stages, jobs: Sequence[Job], plan: Plan, size: Size, batch_size: int) -> list[Draft]:
    """Return one draft per job, meant for `size`: steps 1 to 3."""
    rows = stages.encode_prompts(jobs, guided=plan.guided, batch_size=batch_size)
    small = draft_size(*size, plan)
    drafts: dict[int, Draft] = {}
    batches = cut_batches([stages.model.backbone.batch_key(row) for row in rows], batch_size)
    conditions = stages.conditions
    for number, part in enumerate(batches, 1):
        seeds = [jobs[k].seed for k in part]
        batch = (number, len(batches))
        pixels = stages.sample([rows[k] for k in part], seeds, plan, small, "decode_draft", batch)
        for k, row in zip(part, torch.split(pixels, 1), strict=True):
            recipe = stages.model.recipe("draft", jobs[k], size, plan, len(part), conditions, stages.clock.device)
            drafts[k] = Draft(row.clone(), recipe, rows[k])
    return [drafts[k] for k in range(len(jobs))]


def finish_drafts(
    stages: Stages,
    drafts: Sequence[Draft],
    batch_size: int,
    *,
    keep_upscaled: bool = False,
    on_picture: OnPicture | None = None,
) -> Result:
    """Return the drafts at full size: steps 4 to 8, and step 1 for those whose prompt is not encoded yet."""
    rows = conditioning_of(stages, drafts, batch_size)
    batches = cut_batches([finish_key(stages.model, *pair) for pair in zip(drafts, rows, strict=True)], batch_size)
    conditions = stages.conditions
    finished = _Finished(stages, drafts, on_picture)
    for number, part in enumerate(batches, 1):
        recipe = drafts[part[0]].base_recipe
        pixels = torch.cat([drafts[k].pixels.to(stages.clock.device) for k in part])
        seeds = [drafts[k].base_recipe.seed for k in part]
        larger, final = stages.finish(
            pixels,
            [rows[k] for k in part],
            seeds,
            recipe.plan,
            (recipe.width, recipe.height),
            (number, len(batches)),
        )
        recipes = [
            finished_recipe(stages.model, drafts[k].base_recipe, len(part), conditions, stages.clock.device)
            for k in part
        ]
        finished.add(part, final, recipes, larger if keep_upscaled else None)
    return finished.result()


def make_natives(
    stages: Stages,
    jobs: Sequence[Job],
    plan: Plan,
    size: Size,
    batch_size: int,
    *,
    on_picture: OnPicture | None = None,
) -> Result:
    """Return one picture per job from the plain pipeline at full size."""
    rows = stages.encode_prompts(jobs, guided=plan.guided, batch_size=batch_size)
    batches = cut_batches([stages.model.backbone.batch_key(row) for row in rows], batch_size)
    conditions = stages.conditions
    finished = _Finished(stages, (), on_picture)
    for number, part in enumerate(batches, 1):
        seeds = [jobs[k].seed for k in part]
        batch = (number, len(batches))
        pixels = stages.sample([rows[k] for k in part], seeds, plan, size, "decode", batch)
        recipes = [
            stages.model.recipe("native", jobs[k], size, plan, len(part), conditions, stages.clock.device)
            for k in part
        ]
        finished.add(part, pixels, recipes)
    return finished.result()


def finished_recipe(
    model: Model, draft: Recipe, batch: int, conditions: Mapping[str, str], device: torch.device
) -> Recipe:
    """Return the recipe of the picture that a draft becomes, as yet without its pixels' hash."""
    made: Mode = "staged" if draft.input_sha256 is None else "finish"
    mode: Mode = "enhance" if draft.mode == "enhance" else made
    if mode != "enhance":  # which drafts nothing
        conditions = finished_conditions(draft.conditions, conditions)
    recipe = model.recipe(
        mode, _job(draft), (draft.width, draft.height), draft.plan, max(batch, draft.batch), conditions, device
    )
    threads = recipe.threads if recipe.threads == draft.threads else None
    return replace(recipe, input_sha256=draft.input_sha256, threads=threads)


def conditioning_of(stages: Stages, drafts: Sequence[Draft], batch_size: int) -> list[Conditioning]:
    """Return each draft's conditioning: its own, or encoded now where it has none."""
    rows = {k: draft.conditioning for k, draft in enumerate(drafts) if draft.conditioning is not None}
    for guided in (False, True):
        missing = [k for k, d in enumerate(drafts) if k not in rows and d.base_recipe.plan.guided is guided]
        if missing:
            jobs = [_job(drafts[k].base_recipe) for k in missing]
            encoded = stages.encode_prompts(jobs, guided=guided, batch_size=batch_size)
            rows |= zip(missing, encoded, strict=True)
    return [rows[k] for k in range(len(drafts))]


def finish_key(model: Model, draft: Draft, row: Conditioning) -> Hashable:
    """Return what drafts finished in one batch must share: one size, one plan, one kind of conditioning."""
    recipe = draft.base_recipe
    shape, kind = tuple(draft.pixels.shape), model.backbone.batch_key(row)
    return shape, recipe.width, recipe.height, recipe.plan, kind


def cut_batches(keys: Sequence[Hashable], size: int) -> list[list[int]]:
    """Return the indices of equal keys together, `size` of them at most."""
    groups: dict[Hashable, list[int]] = {}
    for k, key in enumerate(keys):
        groups.setdefault(key, []).append(k)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


class _Finished:
    """The pictures of a call, as they come from its batches."""

    def __init__(self, stages: Stages, drafts: Sequence[Draft], on_picture: OnPicture | None) -> None:
        self._stages = stages
        self._drafts = drafts
        self._on_picture = on_picture
        self._made: dict[int, Result] = {}

    def add(
        self, part: Sequence[int], pixels: Tensor, recipes: Sequence[Recipe], upscaled: Tensor | None = None
    ) -> None:
        """Take a batch: the numbers of its pictures, (B, 3, h, w), recipes without hash, and perhaps step 4."""
        larger = [] if upscaled is None else to_pil(upscaled)
        for at, (k, image, recipe) in enumerate(zip(part, to_pil(pixels), recipes, strict=True)):
            hashed = replace(recipe, pixels_sha256=pixels_sha256(image))
            drafts = self._drafts[k : k + 1]
            self._made[k] = Result([image], [hashed], self._stages.clock.totals(), drafts, larger[at : at + 1])
            if self._on_picture is not None:
                self._on_picture(k, self._made[k])

    def result(self) -> Result:
        """Return all pictures, in the order that they were asked for."""
        made = [self._made[k] for k in range(len(self._made))]
        return Result(
            [one.images[0] for one in made],
            [one.recipes[0] for one in made],
            self._stages.clock.totals(),
            self._drafts,
            [image for one in made for image in one.upscaled],
        )


def _job(recipe: Recipe) -> Job:
    return Job(recipe.prompt, recipe.negative_prompt, recipe.seed)
