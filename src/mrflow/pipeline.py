"""MrFlow: draft, finish, both at once, enhance, and the plain pipeline for comparison.

    1 encode the prompt    2 draft    3 decode    4 upscale    5 encode    6 add noise    7 refine    8 decode

`draft` is steps 1 to 3, `finish` 4 to 8, a call both, `enhance` 1 and 4 to 8. Everything a caller gives is
checked before any work; the steps themselves are in `mrflow.stages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mrflow.arguments import Arguments, check_arguments
from mrflow.backbones import Pipeline
from mrflow.conditions import describe, warn_of_difference
from mrflow.errors import RequestError
from mrflow.loading import check_device, check_dtype, load_model, wrap_pipeline
from mrflow.model import Model
from mrflow.passes import borrowed
from mrflow.plan import Defaults, Plan
from mrflow.presets import get_plan
from mrflow.production import OnPicture, finish_drafts, make_drafts, make_natives
from mrflow.progress import Callback, Clock
from mrflow.recipe import Recipe
from mrflow.request import Seeds, make_jobs
from mrflow.results import Draft, Drafts, Result
from mrflow.sharing import cpu_threads
from mrflow.sources import ImageSource, check_input, drafts_from_images, replan_drafts
from mrflow.stages import Stages
from mrflow.upscaler import Upscaler

Prompts = str | Sequence[str]


class MrFlow:
    """Staged sampling over a diffusers text-to-image pipeline, which stays the caller's own.

    The pipeline is borrowed for each call and is afterwards as it was, also after an error or Ctrl-C; LoRA,
    quantisation, offloading and compilation keep working, for its own loop does the denoising. One call at a
    time per pipeline: a second one raises BusyError.

    Arguments that all verbs share:

    prompt: one text or several. negative_prompt: one for all or one each; used where classifier-free
        guidance runs, the model's default if None.
    width, height: pixels of the finished picture, the model's default if None.
    plan: a Plan, a preset's name, any "N+M", or None for the model's default.
    seed: a number (several pictures take seed, seed + 1, ...), one each, or None: drawn, and kept in the recipe.
    num_images: pictures per prompt, side by side in the result.
    stages: keep the upscaled pictures in the result. callback: gets a Progress at each step, and may raise.
    on_picture: called with each finished picture's number and a Result of it alone, while others are still to be
        made; what it raises ends the call.
    extra: any other argument of the pipeline's call, for both passes (see mrflow.arguments): control_image,
        joint_attention_kwargs, callback_on_step_end and the like.

    Raises RequestError (PromptError, PlanError, SizeError) for what cannot be done as asked, before any work.
    """

    def __init__(
        self,
        pipe: Pipeline,
        upscaler: Upscaler | str | Path | None = None,
        *,
        defaults: Defaults | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Wrap a pipeline. upscaler: a .safetensors or .pth file, "bicubic" or "bilinear".

        batch_size: pictures that go through the model at once; larger requests are split. None is 1 on a CPU,
            where batches gain nothing, and 4 elsewhere.
        Raises UnsupportedPipelineError for a family without a backbone, UpscalerError as Upscaler.load does.
        """
        self._wrap(wrap_pipeline(pipe, upscaler, defaults), batch_size)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, batch_size: int | None = None, **kwargs: Any) -> MrFlow:
        """Return MrFlow over "vista", a folder in diffusers' layout or a hub id; see mrflow.loading.load_model.

        kwargs: upscaler, device, dtype, and whatever DiffusionPipeline.from_pretrained takes.
        """
        fast = cls.__new__(cls)
        fast._wrap(load_model(source, **kwargs), batch_size)
        return fast

    def _wrap(self, model: Model, batch_size: int | None) -> None:
        if batch_size is not None and (
            not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
        ):
            raise RequestError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1. Try 4.")
        self.model = model
        self._batch_size = batch_size

    @property
    def batch_size(self) -> int:
        """Pictures that go through the model at once."""
        return self._batch_size or (1 if self.model.device.type == "cpu" else 4)

    @property
    def pipe(self) -> Pipeline:
        """The caller's pipeline."""
        return self.model.pipe

    def to(self, device: str | torch.device, dtype: str | torch.dtype | None = None) -> MrFlow:
        """Move the pipeline (the upscaler follows when it runs) and return self; dtype None keeps it."""
        device = check_device(device)
        self.pipe.to(device) if dtype is None else self.pipe.to(device, check_dtype(dtype, device))
        return self

    def __call__(
        self,
        prompt: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        width: int | None = None,
        height: int | None = None,
        plan: Plan | str | None = None,
        seed: Seeds = None,
        num_images: int = 1,
        stages: bool = False,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **extra: Any,
    ) -> Result:
        """Return finished pictures: draft, then finish."""
        extra = check_arguments(self.pipe, extra)
        plan = self.model.resolve_plan(plan)
        size = self.model.resolve_size(width, height, plan)
        jobs = make_jobs(prompt, negative_prompt, seed, num_images)
        jobs = self.model.resolve_jobs(jobs, guided=plan.guided)
        with self._running(callback, extra) as running:
            batch_size = self.batch_size
            drafts = make_drafts(running, jobs, plan, size, batch_size)
            return finish_drafts(running, drafts, batch_size, keep_upscaled=stages, on_picture=on_picture)

    def draft(
        self,
        prompt: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        width: int | None = None,
        height: int | None = None,
        plan: Plan | str | None = None,
        seed: Seeds = None,
        num_images: int = 1,
        callback: Callback | None = None,
        **extra: Any,
    ) -> Drafts:
        """Return drafts, `plan.scale` times smaller than width x height, ready to be finished."""
        extra = check_arguments(self.pipe, extra)
        plan = self.model.resolve_plan(plan)
        size = self.model.resolve_size(width, height, plan)
        jobs = make_jobs(prompt, negative_prompt, seed, num_images)
        jobs = self.model.resolve_jobs(jobs, guided=plan.guided)
        with self._running(callback, extra) as running:
            drafts = make_drafts(running, jobs, plan, size, self.batch_size)
            return Drafts(tuple(drafts), running.clock.totals())

    def finish(
        self,
        drafts: Draft | Iterable[Draft],
        *,
        plan: Plan | str | None = None,
        stages: bool = False,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **extra: Any,
    ) -> Result:
        """Return the drafts at full size.

        plan: None finishes as the drafts were planned, exactly as a call would have. Another one changes the
        refine pass, and with its scale the final size. extra: give again what the drafts were made with.
        """
        extra = check_arguments(self.pipe, extra)
        planned = replan_drafts(self.model, drafts, plan)
        with self._running(callback, extra) as running:
            for draft in planned:
                if draft.base_recipe.mode != "enhance":
                    warn_of_difference(draft.base_recipe.conditions, running.conditions, "A draft")
            return finish_drafts(running, planned, self.batch_size, keep_upscaled=stages, on_picture=on_picture)

    def enhance(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        width: int | None = None,
        height: int | None = None,
        plan: Plan | str | None = None,
        seed: Seeds = None,
        stages: bool = False,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **extra: Any,
    ) -> Result:
        """Return given pictures, upscaled and refined: steps 4 to 8.

        image: Pillow images, paths or (1, 3, h, w) tensors in [0, 1]; one prompt each, or one for all.
        width, height: None is the image's own size times the plan's scale, in whole patches; give both or
        neither. An image of another shape is cropped to the aspect ratio, evenly on both sides.
        Raises ImageError for an image that cannot be read.
        """
        extra = check_arguments(self.pipe, extra)
        plan = self.model.resolve_plan(plan)
        drafts = drafts_from_images(self.model, image, prompt, negative_prompt, seed, (width, height), plan)
        with self._running(callback, extra) as running:
            return finish_drafts(running, drafts, self.batch_size, keep_upscaled=stages, on_picture=on_picture)

    def native(
        self,
        prompt: Prompts,
        *,
        steps: int | None = None,
        negative_prompt: Prompts | None = None,
        width: int | None = None,
        height: int | None = None,
        plan: Plan | str | None = None,
        seed: Seeds = None,
        num_images: int = 1,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **extra: Any,
    ) -> Result:
        """Return the plain pipeline's pictures at full size, for comparison: same prompts, seeds and guidance.

        steps: None is the model's default, 50. plan: only its guidance and solver count; guided in every step and
        stepped by the pipeline's own scheduler, unless the plan itself says otherwise.
        """
        extra = check_arguments(self.pipe, extra)
        steps = self.model.defaults.native_steps if steps is None else steps
        given = get_plan(plan)
        plan = self.model.resolve_plan(plan).native(steps, guidance_stop=given.guidance_stop, solver=given.solver)
        size = self.model.resolve_size(width, height, None)
        jobs = make_jobs(prompt, negative_prompt, seed, num_images)
        jobs = self.model.resolve_jobs(jobs, guided=plan.guided)
        with self._running(callback, extra) as running:
            return make_natives(running, jobs, plan, size, self.batch_size, on_picture=on_picture)

    def replay(
        self,
        recipe: Recipe,
        image: ImageSource | None = None,
        *,
        callback: Callback | None = None,
        **extra: Any,
    ) -> Result:
        """Return the picture that `recipe` describes, made again; its pixels_sha256 tells whether it is the same.

        The same on the same machine and library versions; `recipe.differences` names what is not. A CPU takes as
        many threads as the picture had, where it has the cores. image: the one that "enhance" began with. extra:
        give again what the picture was made with; LoRAs, caches and a scheduler are the pipeline's, as it is now.
        Warns (MrFlowWarning) where these are not what the recipe says, for then the pixels will differ. Raises
        ImageError where the image is missing or another one.
        """
        extra = check_arguments(self.pipe, extra)
        warn_of_difference(recipe.conditions, describe(self.pipe, extra), "The picture")
        settings: dict[str, Any] = {
            "negative_prompt": recipe.negative_prompt,
            "width": recipe.width,
            "height": recipe.height,
            "plan": recipe.plan,
            "seed": recipe.seed,
            "callback": callback,
            **extra,
        }
        with cpu_threads(recipe.threads):
            if recipe.mode == "staged":
                return self(recipe.prompt, **settings)
            if recipe.mode == "native":
                return self.native(recipe.prompt, steps=recipe.plan.steps, **settings)
            if recipe.mode == "enhance":
                return self.enhance(check_input(recipe, image), recipe.prompt, **settings)
            drafts = self.draft(recipe.prompt, **settings)
            if recipe.mode == "draft":
                return Result(drafts.images, drafts.recipes, drafts.seconds, drafts)
            return self.finish(drafts[0].rounded(), callback=callback, **extra)

    @contextmanager
    def _running(self, callback: Callback | None, extra: Arguments) -> Iterator[Stages]:
        """Hold the pipeline for one call and give its stages."""
        with borrowed(self.pipe, quiet=callback is not None):
            yield Stages(model=self.model, clock=Clock(self.model.device, callback), extra=extra)
