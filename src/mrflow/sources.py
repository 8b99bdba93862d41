"""What finishing can begin with besides a fresh draft: given images, and drafts with a changed plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from PIL import Image
from torch import Tensor

from mrflow.errors import ImageError, RequestError, SizeError
from mrflow.files import load_image
from mrflow.images import crop_to_aspect, pixels_sha256, to_pil, to_tensor
from mrflow.model import Model
from mrflow.plan import Plan
from mrflow.recipe import Recipe
from mrflow.request import Job, Seeds, make_jobs
from mrflow.results import Draft
from mrflow.sizes import Size, check_size, fit_size

ImageSource = Image.Image | str | Path | Tensor


def drafts_from_images(
    model: Model,
    image: ImageSource | Sequence[ImageSource],
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    seed: Seeds,
    size: tuple[int | None, int | None],
    plan: Plan,
) -> list[Draft]:
    """Return given images as drafts that `finish` enhances: cropped to the aspect ratio of their final size.

    size: the final (width, height), or (None, None) for the image's own times the plan's scale.
    plan: resolved. Raises ImageError, SizeError, PromptError or RequestError.
    """
    sources = cast("list[ImageSource]", list(image) if isinstance(image, (list, tuple)) else [image])
    if not sources:
        raise ImageError("There are 0 images; give at least one.")
    jobs = _jobs_for(len(sources), prompt, negative_prompt, seed)
    jobs = model.resolve_jobs(jobs, guided=plan.guided)
    return [_from_image(model, source, job, size, plan) for source, job in zip(sources, jobs, strict=True)]


def replan_drafts(model: Model, drafts: Draft | Iterable[Draft], plan: Plan | str | None) -> list[Draft]:
    """Return the drafts checked for this model, with another refine pass and size if `plan` says so.

    The number of draft steps stays what it was. Raises RequestError for no drafts, SizeError.
    """
    given = list(drafts) if isinstance(drafts, Iterable) else [drafts]
    if not given:
        raise RequestError("There are 0 drafts; give at least one.")
    for draft in given:
        if not isinstance(draft, Draft):
            raise RequestError(
                f"A draft is {type(draft).__name__}; give what draft() or Draft.from_image returns."
            )
    planned = given if plan is None else [_replan(model, draft, plan) for draft in given]
    for draft in planned:
        recipe = draft.base_recipe
        check_size(recipe.width, recipe.height, model.backbone.multiple(model.pipe))
    return planned


def check_input(recipe: Recipe, image: ImageSource | None) -> ImageSource:
    """Return the image if it is the one that the recipe began with; raises ImageError otherwise."""
    if image is None:
        raise ImageError("The recipe enhances an image; give that image too.")
    digest = _read(image)[1]
    if recipe.input_sha256 not in (None, digest):
        raise ImageError("The image is not the one that the recipe began with: its pixels differ.")
    return image


def _jobs_for(
    count: int, prompt: str | Sequence[str], negative: str | Sequence[str] | None, seed: Seeds
) -> list[Job]:
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise RequestError(f"There are {len(prompts)} prompts for {count} images; give one, or one each.")
    return make_jobs(prompts, negative, seed)


def _from_image(
    model: Model, source: ImageSource, job: Job, size: tuple[int | None, int | None], plan: Plan
) -> Draft:
    pixels, digest = _read(source)
    final = _final_size(model, (pixels.shape[-1], pixels.shape[-2]), size, plan)
    recipe = replace(model.recipe("enhance", job, final, plan), input_sha256=digest)
    return Draft(crop_to_aspect(pixels, *final), recipe)


def _read(source: ImageSource) -> tuple[Tensor, str]:
    """Return the image as (1, 3, h, w) pixels and its hash."""
    if isinstance(source, Tensor):
        pixels = _check_tensor(source).float()
        return pixels, pixels_sha256(to_pil(pixels)[0])
    image = load_image(source)
    return to_tensor([image]), pixels_sha256(image)


def _final_size(model: Model, own: Size, size: tuple[int | None, int | None], plan: Plan) -> Size:
    width, height = size
    multiple = model.backbone.multiple(model.pipe)
    if width is None and height is None:
        return fit_size(*own, plan.scale, multiple)
    if width is None or height is None:
        raise SizeError(f"The size is {width}x{height}; give both width and height, or neither.")
    check_size(width, height, multiple)
    return width, height


def _check_tensor(pixels: Tensor) -> Tensor:
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3) or not pixels.is_floating_point():
        shape = tuple(pixels.shape)
        raise ImageError(f"The image is a {pixels.dtype} tensor of shape {shape}; it must be float (1, 3, h, w).")
    if not (bool(pixels.min() >= 0) and bool(pixels.max() <= 1)):  # also false for nan
        raise ImageError("The image tensor has values outside [0, 1] or nan. Clamp it.")
    return pixels


def _replan(model: Model, draft: Draft, plan: Plan | str) -> Draft:
    base = draft.base_recipe
    new = replace(model.resolve_plan(plan), steps=base.plan.steps)
    height, width = draft.pixels.shape[-2:]
    size = (width * new.ratio, height * new.ratio)
    if any(side % model.backbone.multiple(model.pipe) for side in size):
        shown = f"{float(size[0]):g}x{float(size[1]):g}"
        raise SizeError(f"The draft of {width}x{height} at scale {new.scale:g} gives {shown}, which does not fit.")
    guided, was_guided = new.guided, base.plan.guided
    negative = model.defaults.negative_prompt if guided and not was_guided else base.negative_prompt
    recipe = replace(base, plan=new, width=int(size[0]), height=int(size[1]), negative_prompt=negative)
    return Draft(draft.pixels, recipe, draft.conditioning if was_guided or not guided else None)
