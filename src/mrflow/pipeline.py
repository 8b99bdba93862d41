"""MrFlow: draft, finish, both at once, enhance, and the plain pipeline for comparison.

    1 encode the prompt    2 draft    3 decode    4 upscale    5 encode    6 add noise    7 refine    8 decode

`draft` is steps 1 to 3, `finish` 4 to 8, a call both, `enhance` 1 and 4 to 8. Everything a caller gives is
checked before any work; the steps themselves are in `mrflow.steps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mrflow.arguments import DRAFTING, GIVING, REFINING, SEEDING, Arguments, Call, check_images, read_call
from mrflow.backbones.family import Pipeline
from mrflow.borrowing import borrowed
from mrflow.calls import OnPicture, finish_drafts, make_drafts, make_natives
from mrflow.drafts import Draft, Drafts, ImageSource, Result, check_input, drafts_from_images, replan_drafts
from mrflow.errors import RequestError
from mrflow.jobs import Job, Lora, Prompts, Seeds, ask, generators_kept, parse_bytes
from mrflow.lanes import cpu_threads
from mrflow.loading import check_device, check_dtype, load_model, wrap_pipeline
from mrflow.loras import find_loras, loaded, unload, worn
from mrflow.model import Model
from mrflow.offloading import advise
from mrflow.plan import DEFAULT_PLAN, Defaults, Plan, get_plan, shown, whole
from mrflow.progress import Callback
from mrflow.recipe import Recipe, warn_of_difference
from mrflow.steps import Run
from mrflow.upscaler import Upscaler

_TOLD = (  # by a recipe, of what is asked
    *("negative_prompt", "width", "height", "plan", "seed", "max_sequence_length"),
    *("loras", "references", "noise_width", "noise_height"),
)


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
    keep_upscaled: keep the pictures of step 4 in the result. callback: gets a Progress at each step, and may
        raise; without one a single bar names what is going on, as the pipeline's own is set to look.
    on_picture: called with each finished picture's number and a Result of it alone, while others are still to be
        made; what it raises ends the call.
    loras: of what load_loras knows, such as ["style:0.8"]; None is what it was given, [] none at all.
    others: any field of Plan (steps=8, refine_sigma=0.2), and the pipeline's own arguments under their own names,
        so that a call of the pipeline is one of ours: num_inference_steps (the draft's), guidance_scale,
        true_cfg_scale, num_images_per_prompt, generator, max_sequence_length, output_type ("pil", "pt" or "np"),
        return_dict; control_image, joint_attention_kwargs, callback_on_step_end and the like go to both passes.
    references: pictures, or their paths, that FLUX.2 sees in both passes; in a call its own name, image=, will do.
        Recipes and drafts in files hold their hashes: finish and replay want them again.

    Raises RequestError (PromptError, PlanError, SizeError) for what cannot be done as asked, before any work.
    """

    def __init__(
        self,
        pipe: Pipeline,
        upscaler: Upscaler | str | Path | None = None,
        *,
        defaults: Defaults | None = None,
        batch_size: int | None = None,
        max_memory: int | str | None = None,
    ) -> None:
        """Wrap a pipeline. upscaler: a .safetensors or .pth file, a known name, "bicubic" or another method.

        upscaler None is Real-ESRGAN, from the cache or the extra upscalers, else fetched once, when first needed.

        batch_size: pictures that go through the model at once; larger requests are split. None is 1 on a CPU,
            where batches gain nothing, and 4 elsewhere.
        max_memory: bytes, or a text such as "24GB", that no stage shall need more of: larger pictures are made in
            tiles, one at a time. Reckoned from the architecture (mrflow.costs); what libraries need comes on top.
        Raises UnsupportedPipelineError for a family without a backbone, UpscalerError as Upscaler.load does.
        """
        self._wrap(wrap_pipeline(pipe, upscaler, defaults), batch_size, max_memory)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, batch_size: int | None = None, max_memory: Any = None, **kwargs: Any
    ) -> MrFlow:
        """Return MrFlow over "vista", a folder in diffusers' layout or a hub id; see mrflow.loading.load_model.

        max_memory: see MrFlow; a mapping is diffusers' own, by device. On a GPU, what is free beyond it is left.
        kwargs: upscaler, device, dtype, quantize, offload, and whatever DiffusionPipeline.from_pretrained takes.
        """
        if isinstance(max_memory, Mapping):
            kwargs, max_memory = {**kwargs, "max_memory": max_memory}, None
        fast = cls.__new__(cls)
        allowed = parse_bytes(max_memory)
        fast._wrap(load_model(source, allowed=allowed, **kwargs), batch_size, allowed)
        return fast

    @classmethod
    def from_pipe(cls, pipe: Pipeline | MrFlow, **kwargs: Any) -> MrFlow:
        """Return MrFlow over a loaded pipeline, or that of another with its LoRAs; kwargs: MrFlow's own."""
        if not isinstance(pipe, MrFlow):
            return cls(pipe, **kwargs)
        made = cls(pipe.pipe, **kwargs)
        made.model = replace(made.model, loras=pipe.model.loras)
        return made

    def _wrap(self, model: Model, batch_size: int | None, max_memory: int | str | None = None) -> None:
        if batch_size is not None and (whole(batch_size) or 0) < 1:
            raise RequestError(f"batch_size is {shown(batch_size)}; it must be a whole number from 1. Try 4.")
        if (allowed := parse_bytes(max_memory)) is not None:
            from mrflow.costs import largest_tile

            model, batch_size = replace(model, side=largest_tile(model, allowed)), batch_size or 1
        self.model = model
        self._batch_size = batch_size
        self._base = replace(model.defaults.plan, solver=None)

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

    def load_loras(self, *loras: str | Path, folders: Iterable[str | Path] = ()) -> tuple[Lora, ...]:
        """Return the LoRAs that pictures have from now on unless they say otherwise; without any they have none.

        loras: .safetensors files, Hugging Face ids, or names of files in the folders, each perhaps with :WEIGHT.
        folders: whose files pictures may name, too; each is loaded when first asked for, and switched off after
        each pass. On a CPU a model with LoRAs makes one picture at a time.
        Raises LoraNameError, LoraError for a file that is none or does not fit, MissingExtraError without peft.
        """
        known = find_loras(loras, folders)
        with borrowed(self.pipe):
            unload(self.pipe, loaded(self.pipe))
            with worn(self.pipe, known.usual, known):
                self.model = replace(self.model, loras=known)
        return known.usual

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
        keep_upscaled: bool = False,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **others: Any,
    ) -> Result:
        """Return finished pictures: draft, then finish. With return_dict=False a tuple that holds the images."""
        call = self._read(others, plan=plan, seed=seed, num_images=num_images)
        jobs = self._jobs(call, prompt, negative_prompt, width, height)
        self._read_upscaler()
        with self._running(callback, call.extra, len(jobs)) as run:
            result = finish_drafts(
                run,
                make_drafts(run, jobs),
                keep_upscaled=keep_upscaled,
                on_picture=on_picture,
                output_type=call.output_type,
            )
        return result if call.return_dict else result.to_tuple()

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
        **others: Any,
    ) -> Drafts:
        """Return drafts, `plan.scale` times smaller than width x height, ready to be finished."""
        call = self._read(others, plan=plan, seed=seed, num_images=num_images, verb="draft", without=GIVING)
        jobs = self._jobs(call, prompt, negative_prompt, width, height)
        with self._running(callback, call.extra, len(jobs)) as run:
            drafts = make_drafts(run, jobs)
            return Drafts(tuple(drafts), run.clock.totals())

    def finish(
        self,
        drafts: Draft | Iterable[Draft],
        *,
        plan: Plan | str | None = None,
        keep_upscaled: bool = False,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **others: Any,
    ) -> Result:
        """Return the drafts at full size.

        plan: None finishes as the drafts were planned, exactly as a call would have. Another one, or fields of it
        among the others, changes the refine pass, and with its scale the final size. Give again what else the
        drafts were made with.
        """
        self.model.check_parts(texts=False)
        call = self._read(others, plan=plan, base=None, verb="finish", without=DRAFTING | SEEDING)
        chosen = None if plan is None else call.plan
        planned = replan_drafts(self.model, drafts, chosen, call.numbers, call.references)
        self._read_upscaler()
        with self._running(callback, call.extra, len(planned)) as run:
            for draft in planned:
                if draft.base_recipe.mode != "enhance":
                    warn_of_difference(draft.base_recipe.conditions, run.conditions, "A draft")
            result = finish_drafts(
                run,
                planned,
                keep_upscaled=keep_upscaled,
                on_picture=on_picture,
                output_type=call.output_type,
            )
        return result if call.return_dict else result.to_tuple()

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
        keep_upscaled: bool = False,
        callback: Callback | None = None,
        on_picture: OnPicture | None = None,
        **others: Any,
    ) -> Result:
        """Return given pictures, upscaled and refined: steps 4 to 8.

        image: Pillow images, paths or (1, 3, h, w) tensors in [0, 1]; one prompt each, or one for all.
        width, height: None is the image's own size times the plan's scale, in whole patches; give both or
        neither. An image of another shape is cropped to the aspect ratio, evenly on both sides.
        Raises ImageError for an image that cannot be read.
        """
        unused = DRAFTING | {"num_images_per_prompt"}
        call = self._read(others, plan=plan, seed=seed, verb="enhance", without=unused)
        told: dict[str, Any] = {"plan": call.plan, "width": width, "height": height}
        told |= {"max_sequence_length": call.max_sequence_length, "loras": call.loras}
        told["references"] = call.references
        with generators_kept(call.seed):
            drafts = drafts_from_images(self.model, image, prompt, negative_prompt, call.seed, **told)
        self._read_upscaler()
        with self._running(callback, call.extra, len(drafts)) as run:
            result = finish_drafts(
                run,
                drafts,
                keep_upscaled=keep_upscaled,
                on_picture=on_picture,
                output_type=call.output_type,
            )
        return result if call.return_dict else result.to_tuple()

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
        **others: Any,
    ) -> Result:
        """Return the plain pipeline's pictures at full size, for comparison: same prompts, seeds and guidance.

        steps: None is the model's default, 50. plan: only its guidance and solver count; guided in every step and
        stepped by the pipeline's own scheduler, unless the plan itself says otherwise.
        """
        chosen = replace(get_plan(plan), steps=DEFAULT_PLAN.steps, refine_steps=DEFAULT_PLAN.refine_steps)
        unused = REFINING - {"guidance_scale", "true_cfg_scale"}
        others["steps"] = steps
        call = self._read(others, plan=chosen, seed=seed, num_images=num_images, verb="native", without=unused)
        if "steps" not in call.numbers:
            call = replace(call, plan=replace(chosen, steps=self.model.defaults.native_steps))
        jobs = self._jobs(call, prompt, negative_prompt, width, height, native=True)
        with self._running(callback, call.extra, len(jobs)) as run:
            result = make_natives(run, jobs, on_picture=on_picture, output_type=call.output_type)
        return result if call.return_dict else result.to_tuple()

    def replay(
        self,
        recipe: Recipe,
        image: ImageSource | None = None,
        *,
        callback: Callback | None = None,
        **others: Any,
    ) -> Result:
        """Return the picture that `recipe` describes, made again; its pixels_sha256 tells whether it is the same.

        The same on the same machine and library versions; `recipe.differences` names what is not. A CPU takes as
        many threads as the picture had, where it has the cores. image: the one that "enhance" began with. others:
        give again what the picture was made with; LoRAs, caches and a scheduler are the pipeline's, as it is now.
        Warns (MrFlowWarning) where these are not what the recipe says, for then the pixels will differ. Raises
        ImageError where the image is missing or another one.
        """
        call = self._read(others, verb="replay", without=DRAFTING | REFINING | SEEDING | GIVING)
        extra, recipe = call.extra, recipe.seeing(call.references)
        self.model.warn_of_difference(recipe, Run.over(self.model, extra=extra).conditions)
        told = {name: getattr(recipe, name) for name in _TOLD}
        with cpu_threads(recipe.threads):
            if recipe.mode == "enhance":
                given = check_input(recipe, image)
                told = {name: told[name] for name in told if not name.startswith("noise_")}
                return self.enhance(given, recipe.prompt, **told, callback=callback, **extra)
            jobs = self.model.resolve(ask(recipe.prompt, **told), native=recipe.mode == "native")
            with self._running(callback, extra, len(jobs)) as run:
                if recipe.mode == "native":
                    return make_natives(run, jobs)
                drafts = make_drafts(run, jobs)
                if recipe.mode == "draft":
                    made = Drafts(tuple(drafts), run.clock.totals())
                    return Result(made.images, made.recipes, made.seconds, made)
                if recipe.mode == "finish":  # of drafts that went through a file
                    there = recipe.latents is None
                    drafts = replan_drafts(self.model, [draft.rounded(latents=there) for draft in drafts])
                return finish_drafts(run, drafts)

    def _read(self, others: Arguments, **ours: Any) -> Call:
        ours = {"base": self._base, **ours}  # whose solver the model's resolving puts back where it fits
        call = read_call(self.pipe, self.model.backbone, others, **ours)
        if call.plan is not None and "steps" in call.numbers and ours.get("plan") is None:
            self.model.warn_of_steps(call.plan)
        return call

    def _read_upscaler(self) -> None:
        """Have what is missing said before any sampling."""
        if self.model.upscaler.pending is not None:
            self.model.upscaler.ready()

    def _jobs(
        self,
        call: Call,
        prompt: Prompts,
        negative_prompt: Prompts | None,
        width: int | None,
        height: int | None,
        *,
        native: bool = False,
    ) -> list[Job]:
        """Return what is asked for as jobs; raises RequestError and its kin before any work."""
        told: dict[str, Any] = {"plan": call.plan, "width": width, "height": height}
        told |= {"loras": call.loras, "references": call.references}
        length = call.max_sequence_length
        with nullcontext() if isinstance(call.seed, (int, type(None))) else generators_kept(call.seed):
            asked = ask(prompt, negative_prompt, call.seed, call.num_images, max_sequence_length=length, **told)
            return self.model.resolve(asked, native=native)

    @contextmanager
    def _running(self, callback: Callback | None, extra: Arguments, pictures: int) -> Iterator[Run]:
        """Hold the pipeline for one call and give what its steps work with."""
        if extra:
            check_images(extra, pictures)
        shown = getattr(self.pipe, "_progress_bar_config", None) or {}
        with borrowed(self.pipe), ExitStack() as stack:
            run = Run.over(self.model, callback, extra, self._batch_size, shown)
            stack.callback(run.clock.close)
            try:
                yield run
            except Exception as error:
                advise(self.pipe, error)
                raise
