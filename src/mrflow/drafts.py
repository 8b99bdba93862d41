"""Drafts and results, and what else finishing can begin with: files, given images, drafts with another plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from PIL import Image
from torch import Tensor

from mrflow.errors import ImageError, PlanError, RequestError, SizeError
from mrflow.files import load_image, read_latents, read_recipe, save_image
from mrflow.images import crop_to_aspect, make_grid, pixels_sha256, to_pil, to_tensor
from mrflow.jobs import Job, Lora, Prompts, Reference, Seeds, ask, check_size, fit_size
from mrflow.plan import NATIVE, Plan, get_plan
from mrflow.recipe import ENCODED, Recipe

if TYPE_CHECKING:
    from mrflow.backbones.family import Embeds
    from mrflow.model import Model

ImageSource = Image.Image | str | Path | Tensor
_SHOWN = 2048  # pixels of the longer side of what a notebook shows
_PATCHES = (1, 2, 4, 8, 16, 32, 64)  # sides of patches, in pixels, that a draft's size may have been fitted to


@dataclass(frozen=True, eq=False, repr=False)
class Draft:
    """A picture at draft size, with what is needed to finish it.

    pixels: (1, 3, h, w) in [0, 1], float32, on the device that made it.
    base_recipe: of the picture it is to become: final size, plan, prompt, seed. Its input_sha256 is that of the
        8-bit image that the pixels were read from, None for pixels that never were an image.
    latents: (1, ...), as the pipeline gave them; None where they are not known, as after a file that holds none.
    embeds: the encoded prompt, so that finishing does not encode it again; None after a round trip through a file,
        where the prompt is encoded anew from the recipe.
    """

    pixels: Tensor
    base_recipe: Recipe
    embeds: Embeds | None = None
    latents: Tensor | None = None

    def __repr__(self) -> str:
        base, (height, width) = self.base_recipe, self.pixels.shape[-2:]
        made = f"{width}x{height} for {base.width}x{base.height}, {base.plan.label}, seed {base.seed}"
        return f"Draft({made}, {_short(base.prompt)})"

    def _repr_png_(self) -> bytes:
        return _png([self.image])

    @cached_property
    def image(self) -> Image.Image:
        """The draft as an 8-bit RGB image."""
        return to_pil(self.pixels)[0]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the draft itself, with the hash of its pixels, as it is saved."""
        return replace(self.base_recipe, pixels_sha256=pixels_sha256(self.image), input_sha256=None)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the draft as an image that `Draft.from_image` reads back. Returns the path.

        A PNG holds the latents too, exactly; another file does not.
        """
        return save_image(self.image, path, self.recipe, overwrite=overwrite, latents=self.latents)

    @classmethod
    def from_image(cls, path: str | Path) -> Draft:
        """Return the draft that `save` wrote.

        The file holds 8 bits a channel, so finishing it differs from finishing the draft in memory by
        rounding (at most 1/510 in the pixels that the upscaler sees); such a recipe says mode "finish".
        Raises ImageError for a file that is no image or no draft, RecipeError for a broken recipe.
        """
        recipe = read_recipe(path)
        if recipe.mode != "draft":
            raise ImageError(f"{path} is a picture of mode {recipe.mode!r}; it must be a draft. Try enhance.")
        image = load_image(path)
        if image.size not in [recipe.plan.draft_size(*recipe.size, each) for each in _PATCHES]:
            shown = "{}x{}, its recipe says {}x{}".format(*image.size, *recipe.plan.draft_size(*recipe.size))
            raise ImageError(f"{path} is {shown}; a draft must keep its size. Try enhance.")
        latents = read_latents(path) if recipe.pixels_sha256 == pixels_sha256(image) else None  # else retouched
        return cls._of_image(image, recipe, latents)

    def rounded(self, *, latents: bool = True) -> Draft:
        """Return the draft as it would come back from a file, one that holds no latents if so said."""
        return self._of_image(self.image, self.base_recipe, self.latents if latents else None)

    @classmethod
    def _of_image(cls, image: Image.Image, recipe: Recipe, latents: Tensor | None) -> Draft:
        base = replace(recipe, pixels_sha256=None, input_sha256=pixels_sha256(image))
        return cls(to_tensor([image]), base, latents=latents)


@dataclass(frozen=True, eq=False, repr=False)
class Drafts(Sequence[Draft]):
    """Drafts in the order of their prompts and seeds, and the seconds that each stage took."""

    drafts: tuple[Draft, ...]
    seconds: Mapping[str, float]

    def __repr__(self) -> str:
        return f"Drafts({_summary(self.recipes, self.seconds)})"

    def _repr_png_(self) -> bytes | None:
        return _png(self.images) if self.drafts else None

    @property
    def images(self) -> list[Image.Image]:
        """The drafts as 8-bit RGB images."""
        return [draft.image for draft in self.drafts]

    @property
    def recipes(self) -> list[Recipe]:
        """One recipe per draft."""
        return [draft.recipe for draft in self.drafts]

    @overload
    def __getitem__(self, index: int) -> Draft: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Draft, ...]: ...
    def __getitem__(self, index: int | slice) -> Draft | tuple[Draft, ...]:
        return self.drafts[index]

    def __iter__(self) -> Iterator[Draft]:
        return iter(self.drafts)

    def __len__(self) -> int:
        return len(self.drafts)


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Finished pictures.

    images: one per prompt and seed: 8-bit RGB Pillow images, or with output_type "pt" a tensor (B, 3, h, w) on the
        device, with "np" an array (B, h, w, 3), both float32 in [0, 1]. recipes: the same order.
    seconds: stage to seconds, summed over batches; "total" is end to end. On CUDA each stage is timed with
        the device synchronized.
    drafts: what the pictures were finished from; empty for native and enhance.
    upscaled: the pictures after step 4, before refining, if they were asked for (keep_upscaled=True); else empty.
    """

    images: Any
    recipes: list[Recipe]
    seconds: Mapping[str, float]
    drafts: Sequence[Draft] = ()
    upscaled: list[Image.Image] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Result({_summary(self.recipes, self.seconds)})"

    def to_tuple(self) -> Any:
        """Return what diffusers gives for return_dict=False: a tuple that holds the images."""
        return (self.images,)

    def _repr_png_(self) -> bytes | None:
        return _png(self.images) if isinstance(self.images, list) and self.images else None


def drafts_from_images(
    model: Model,
    image: ImageSource | Sequence[ImageSource],
    prompt: Prompts,
    negative_prompt: Prompts | None = None,
    seed: Seeds = None,
    *,
    plan: Plan | None = None,
    width: int | None = None,
    height: int | None = None,
    max_sequence_length: int | None = None,
    loras: tuple[Lora, ...] | None = None,
    references: tuple[Reference, ...] = (),
) -> list[Draft]:
    """Return given images as drafts that `finish` enhances: cropped to the aspect ratio of their final size.

    width, height: None is the image's own size times the plan's scale. plan: None is the model's own.
    Raises ImageError, SizeError, PromptError or RequestError.
    """
    sources = cast("list[ImageSource]", list(image) if isinstance(image, (list, tuple)) else [image])
    if not sources:
        raise ImageError("There are 0 images; give at least one.")
    prompts = [prompt] * len(sources) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(sources):
        raise RequestError(f"There are {len(prompts)} prompts for {len(sources)} images; give one, or one each.")
    if (width is None) != (height is None):
        raise SizeError(f"The size is {width}x{height}; give both width and height, or neither.")
    told: dict[str, Any] = {"plan": plan, "max_sequence_length": max_sequence_length, "loras": loras}
    told["references"] = references
    asked = ask(prompts, negative_prompt, seed, **told)
    if len(asked) != len(sources):
        raise RequestError(f"There are {len(asked)} seeds for {len(sources)} images; give one number or one each.")
    read = [_read(source) for source in sources]
    chosen = plan or model.defaults.plan
    if chosen.switches:
        raise PlanError(
            f"The plan is {chosen.label}, which goes on where a draft's schedule ended; a given image has none. "
            "Give refine_sigma a number, such as 0.12."
        )
    scale = float(chosen.ratio) if chosen.scales else chosen.scale
    for k, (pixels, _) in enumerate(read):
        own = fit_size(pixels.shape[-1], pixels.shape[-2], scale, model.multiple) if width is None else None
        asked[k] = replace(asked[k], width=own[0] if own else width, height=own[1] if own else height)
    jobs = model.resolve(asked, given=True)
    return [_from_image(model, job, *each) for job, each in zip(jobs, read, strict=True)]


def replan_drafts(
    model: Model,
    drafts: Draft | Iterable[Draft],
    plan: Plan | str | None = None,
    numbers: Mapping[str, Any] | None = None,
    references: tuple[Reference, ...] = (),
) -> list[Draft]:
    """Return the drafts checked for this model, with another refine pass and size if `plan` says so.

    plan: None is what each was planned with. numbers: fields of it that change. The number of draft steps stays
    what it was. references: those of drafts from files, which hold their hashes. Raises RequestError for no
    drafts and for references that are missing, SizeError, LoraNameError.
    """
    given = list(drafts) if isinstance(drafts, Iterable) else [drafts]
    if not given:
        raise RequestError("There are 0 drafts; give at least one.")
    for draft in given:
        if not isinstance(draft, Draft):
            kind = type(draft).__name__
            raise RequestError(f"A draft is {kind}; give what draft() or Draft.from_image returns.")
    if plan is not None or numbers:
        given = [_replan(model, each, _plan_for(each, plan).changed(**(numbers or {}))) for each in given]
    given = [replace(each, base_recipe=each.base_recipe.seeing(references)) for each in given]
    for draft in given:
        check_size(*draft.base_recipe.size, model.multiple)
        model.loras.resolve(draft.base_recipe.loras)
    return [_with_latents(model, each) for each in given]


def _with_latents(model: Model, draft: Draft) -> Draft:
    """Return the draft with the latents that a lift of this model can begin with, or as one to be encoded."""
    base, latents = draft.base_recipe, draft.latents
    if not model.lift(base.plan).latents:
        return draft
    if latents is None or (base.model, base.revision) != (model.name, model.revision):
        return replace(draft, latents=None, base_recipe=replace(base, latents=ENCODED))
    if base.input_sha256:  # from a file, which may hold anything
        model.check_latents(latents, draft.pixels)
    return draft


def check_input(recipe: Recipe, image: ImageSource | None) -> ImageSource:
    """Return the image if it is the one that the recipe began with; raises ImageError otherwise."""
    if image is None:
        raise ImageError("The recipe enhances an image; give that image too.")
    if recipe.input_sha256 in (None, _read(image)[1]):
        return image
    before = image if isinstance(image, Tensor) else load_image(image, as_before=True)
    if isinstance(before, Tensor) or pixels_sha256(before) != recipe.input_sha256:
        raise ImageError("The image is not the one that the recipe began with: its pixels differ.")
    return before  # as versions to 0.1.0 read it


def _from_image(model: Model, job: Job, pixels: Tensor, digest: str) -> Draft:
    recipe = model.recipe("enhance", job, input_sha256=digest)
    return Draft(crop_to_aspect(pixels, *job.size), recipe)


def _read(source: ImageSource) -> tuple[Tensor, str]:
    """Return the image as (1, 3, h, w) pixels and its hash."""
    if isinstance(source, Tensor):
        pixels = _check_tensor(source).float()
        return pixels, pixels_sha256(to_pil(pixels)[0])
    image = load_image(source)
    return to_tensor([image]), pixels_sha256(image)


def _check_tensor(pixels: Tensor) -> Tensor:
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3) or not pixels.is_floating_point():
        shape = tuple(pixels.shape)
        raise ImageError(f"The image is a {pixels.dtype} tensor of shape {shape}; it must be float (1, 3, h, w).")
    if not (bool(pixels.min() >= 0) and bool(pixels.max() <= 1)):  # also false for nan
        raise ImageError("The image tensor has values outside [0, 1] or nan. Clamp it.")
    return pixels


def _plan_for(draft: Draft, plan: Plan | str | None) -> Plan:
    return draft.base_recipe.plan if plan is None else get_plan(plan)


def _replan(model: Model, draft: Draft, plan: Plan) -> Draft:
    base = draft.base_recipe
    new = replace(model.resolve_plan(plan), steps=base.plan.steps, noise=base.plan.noise)  # as it was drafted
    new = model.fit(new, base.prompt)
    if (new.switches or base.plan.switches) and new.label != base.plan.label:
        raise PlanError(
            f"The draft is of the plan {base.plan.label}, and {new.label} is asked for; where all steps are one "
            "schedule, both passes keep to it. Leave refine_sigma and refine_steps out, or enhance its image."
        )
    width, height = base.size
    if new.ratio != base.plan.ratio:
        width, height = _enlarged(model, draft, new)
    new = model.cut(new, width, height)
    negative = model.defaults.negative_prompt if new.guided and not base.plan.guided else base.negative_prompt
    noise = (base.noise_width or base.width, base.noise_height or base.height)
    recipe = replace(base, plan=new, width=width, height=height, negative_prompt=negative)
    if new.noise == NATIVE and noise != recipe.size:
        recipe = replace(recipe, noise_width=noise[0], noise_height=noise[1])
    embeds = draft.embeds if base.plan.guided or not new.guided else None
    return Draft(draft.pixels, recipe, embeds, draft.latents)


def _enlarged(model: Model, draft: Draft, plan: Plan) -> tuple[int, int]:
    height, width = draft.pixels.shape[-2:]
    size = (width * plan.ratio, height * plan.ratio)
    if any(side % model.multiple for side in size):
        shown = f"{float(size[0]):g}x{float(size[1]):g}"
        text = f"The draft of {width}x{height} at scale {float(plan.ratio):g} gives {shown}"
        raise SizeError(f"{text}, which does not fit: sides must be multiples of {model.multiple}.")
    return int(size[0]), int(size[1])


def _png(images: Sequence[Image.Image]) -> bytes:
    """Return pictures as one PNG, for notebooks."""
    file, sheet = BytesIO(), make_grid(images)
    sheet.thumbnail((_SHOWN, _SHOWN))
    sheet.save(file, "PNG")
    return file.getvalue()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _summary(recipes: Sequence[Recipe], seconds: Mapping[str, float]) -> str:
    """Return a line on a call's pictures."""
    if not recipes:
        return "none"
    sizes = ", ".join(dict.fromkeys(f"{each.width}x{each.height}" for each in recipes))
    seeds = ", ".join(str(each.seed) for each in recipes[:8]) + (", ..." if len(recipes) > 8 else "")
    label = recipes[0].plan.steps if recipes[0].mode == "native" else recipes[0].plan.label
    took = f"{seconds['total']:.2f} s" if "total" in seconds else ""
    return f"{len(recipes)} of {sizes}, {recipes[0].mode} {label}, seeds {seeds}, {took}".rstrip(", ")
