"""The eight steps of staged sampling, from prompts to pictures, each timed and reported.

    1 encode the prompt      2 denoise small      3 decode                                      draft
    4 upscale      5 encode      6 add noise      7 refine      8 decode                        finish

Where a plan or an upscaler enlarges latents, step 4 takes the draft's own, and step 5 encodes only what has none.
Tensors stay on the device throughout. The denoising loop is the pipeline's own; it runs once small and once large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from mrflow.arguments import Arguments, describe_arguments, fit_arguments, lora_scale, told_encoder
from mrflow.backbones.family import Embeds, autoencoder_device
from mrflow.borrowing import describe, lora_scales_kept, run_pipeline, settings
from mrflow.errors import NonFiniteError
from mrflow.files import load_image
from mrflow.jobs import Job, Lora, Size
from mrflow.loras import worn
from mrflow.model import Model
from mrflow.plan import NATIVE, Plan
from mrflow.progress import Callback, Clock, P, Step, timed
from mrflow.sampling import Noised, draft_generators, keep_colors, mix_noise, refine_sigmas, shrink_noise
from mrflow.schedulers import draft_scheduler, exact_scheduler, take_head, take_tail
from mrflow.tiling import autoencoder_in_tiles, transformer_in_tiles

_Text = tuple[str, str | None, int | None, tuple[Lora, ...]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the steps work with: a borrowed pipeline, what is known of it, a clock, the caller's own arguments.

    batch_size: pictures that go through the model at once; 1 on a CPU, where batches gain nothing, and 4 elsewhere
        unless somebody says. conditions: what shapes pictures besides checkpoint, plan and prompt, for recipes.
    """

    model: Model
    clock: Clock
    batch_size: int = 1
    extra: Arguments = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def over(
        cls,
        model: Model,
        callback: Callback | None = None,
        extra: Arguments | None = None,
        batch_size: int | None = None,
        bar: Mapping[str, Any] | None = None,
    ) -> Run:
        """Return a run that begins now, over a model whose pipeline has been borrowed. bar: see `Clock`."""
        device, tile = model.device, model.vae_tile
        conditions = describe(model.pipe) | ({"vae": f"in tiles of {tile}"} if tile else {})
        return cls(
            model=model,
            clock=Clock(device, callback, bar),
            batch_size=batch_size or (1 if device.type == "cpu" else 4),
            extra=extra or {},
            conditions=conditions | (describe_arguments(extra) if extra else {}),
        )


@dataclass(frozen=True)
class Batch:
    """Jobs that go through the model together, of one kind, with their prompts once they are encoded.

    number, of: which of how many batches, for the callback. part, whole: which of how many pictures of the call.
    level, levels: which of how many of the plan's, from 1, once its jobs are those of one level.
    """

    jobs: Sequence[Job]
    rows: Sequence[Embeds] = ()
    number: int = 1
    of: int = 1
    part: Sequence[int] = (0,)
    whole: int = 1
    level: int = 1
    levels: int = 1

    @property
    def plan(self) -> Plan:
        """Of all of its jobs."""
        return self.jobs[0].plan

    @property
    def size(self) -> Size:
        """Width and height of the finished pictures."""
        return self.jobs[0].width, self.jobs[0].height

    def each_level(self, multiple: int) -> list[Batch]:
        """Return the batch for each level of its plan: jobs of that level's own plan and size."""
        plans, sizes, batches = self.plan.levels, self.plan.sizes(*self.size, multiple)[1:], list[Batch]()
        for plan, (width, height) in zip(plans, sizes, strict=True):
            jobs = [replace(job, plan=plan, width=width, height=height) for job in self.jobs]
            batches.append(replace(self, jobs=jobs, level=len(batches) + 1, levels=len(plans)))
        return batches

    @property
    def noise_size(self) -> Size:
        """Of which the plain pipeline's noise is taken."""
        first = self.jobs[0]
        return first.noise_width or first.width, first.noise_height or first.height

    @property
    def seeds(self) -> list[int]:
        """One each."""
        return [job.seed for job in self.jobs]


def _finite(part: str) -> Callable[[Step[P, Tensor]], Step[P, Tensor]]:
    """Return a decorator that holds what a step makes, a row per job, to be finite, once: a GPU waits for it."""

    def decorate(step: Step[P, Tensor]) -> Step[P, Tensor]:
        @wraps(step)
        def checked(run: Any, batch: Any, *args: P.args, **kwargs: P.kwargs) -> Tensor:
            made = step(run, batch, *args, **kwargs)
            rows = made.isfinite().flatten(1).all(1).tolist()
            if not all(rows):
                bad = [str(seed) for seed, good in zip(batch.seeds, rows, strict=True) if not good]
                raise _not_finite(run, part, f"seed {', '.join(bad)}")
            return made

        return cast("Step[P, Tensor]", checked)

    return decorate


def _not_finite(run: Run, part: str, which: str) -> NonFiniteError:
    return NonFiniteError(
        f"The {part} gave values that are not finite (nan or infinite) in the stage '{run.clock.at}', for {which}."
        " float16 overflows in many networks: load it in bfloat16 or float32. Else its weights may be damaged or "
        "too coarsely quantised, or a LoRA too strong: try without, or another checkpoint."
    )


def draft(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return drafts, (B, 3, h, w) pixels in [0, 1], float32, and their latents as the pipeline has them."""
    batch = encode_prompts(run, batch)
    size = batch.plan.draft_size(*batch.size, run.model.backbone.multiple(run.model.pipe))
    latents = denoise(run, batch, size)
    return decode_draft(run, batch, latents, size), latents


def finish(
    run: Run, batch: Batch, drafts: Tensor, kept: Tensor | None = None, *, show: bool = False
) -> tuple[Tensor | None, Tensor]:
    """Return upscaled (see show) and finished pixels, (B, 3, height, width), of drafts (B, 3, h, w): steps 4 to 8.

    Once for each level of the plan: what one has finished, pixels and latents, is the next one's draft.
    kept: the drafts' latents, for a lift that enlarges latents; None encodes the pixels. show: keep what the last
    lift makes, and decode what has no pixels else.
    """
    batch = encode_prompts(run, batch)  # of drafts that came from files
    upscaled: Tensor | None = None
    for each in batch.each_level(run.model.multiple) if batch.plan.scales else (batch,):
        plan, size, seeds = each.plan, each.size, each.seeds
        if run.model.lift(plan).latents:
            small = encode(run, each, drafts) if kept is None else _unpack(run, kept, drafts)
            kept = upscale_latents(run, each, small, drafts)
            upscaled = _show(run, each, kept) if show else None
        else:
            upscaled = upscale(run, each, drafts, size)
            kept = encode(run, each, upscaled)
            upscaled = upscaled if show else None
        given = plan.refine_sigma, plan.refine_steps
        sigmas = next_sigmas(run, each, kept, size) if plan.switches else refine_sigmas(*given)
        kept = refine(run, each, mix_noise(kept, sigmas, seeds, each.level), size)
        drafts = decode(run, each, kept, size, drafts)
    return upscaled, drafts


def native(run: Run, batch: Batch) -> Tensor:
    """Return the plain pipeline's pictures, (B, 3, height, width), for comparison."""
    batch = encode_prompts(run, batch)
    latents = denoise(run, batch, batch.size)
    return decode(run, batch, latents, batch.size)


def encode_prompts(run: Run, batch: Batch) -> Batch:
    """Return the batch with a row of embeddings for each job, unless it has them. Equal prompts share one.

    Jobs may have different plans here: where one is guided, its negative prompt is encoded too.
    """
    if batch.rows:
        return batch
    keys: list[_Text] = [
        (job.prompt, job.negative_prompt, job.max_sequence_length, job.loras) for job in batch.jobs
    ]
    kinds: dict[tuple[bool, int | None, tuple[Lora, ...]], list[_Text]] = {}
    for key in dict.fromkeys(keys):
        kinds.setdefault((key[1] is not None, *key[2:]), []).append(key)
    rows: dict[_Text, Embeds] = {}
    pipe = run.model.pipe
    scale = lora_scale(run.extra) if run.extra else None
    with run.clock.stage("text"):
        for (guided, length, loras), alike in kinds.items():
            for at in range(0, len(alike), run.batch_size):
                prompts, negatives, *_ = zip(*alike[at : at + run.batch_size], strict=True)
                texts = list(prompts), list(negatives) if guided else None
                with (
                    worn(pipe, loras, run.model.loras) if loras else nullcontext(),
                    nullcontext() if scale is None else lora_scales_kept(pipe, scale),
                    settings(pipe, told_encoder(pipe, run.extra)),
                ):
                    encoded = run.model.backbone.encode_prompts(pipe, *texts, length)
                rows |= zip(alike[at : at + run.batch_size], encoded, strict=True)
        values = list(filter(torch.is_tensor, chain.from_iterable(map(dict.values, rows.values()))))
        if values and not torch.stack(list(map(torch.all, map(torch.isfinite, values)))).all():  # asked once
            bad = [
                p
                for (p, *_), row in rows.items()
                for v in row.values()
                if torch.is_tensor(v) and not v.isfinite().all()
            ]
            raise _not_finite(run, "text encoder", f"the prompt {bad[0]!r:.200}")
    return replace(batch, rows=list(map(rows.__getitem__, keys)))


@timed("draft", loop="steps")
@_finite("transformer")
def denoise(run: Run, batch: Batch, size: Size) -> Tensor:
    """Return latents drawn from noise in `plan.steps` steps on the model's own schedule at `size`.

    In one run of the pipeline, or in two, of which only the first is guided. Of a plan that switches these are the
    first steps of the schedule, and end at the clean estimate (`draft_scheduler`).
    """
    backbone, pipe, plan, seeds = run.model.backbone, run.model.pipe, batch.plan, batch.seeds
    part, steps = slice(plan.steps) if plan.switches else None, plan.schedule_steps
    more: dict[str, Any] = {"generator": draft_generators(seeds)}
    if plan.noise == NATIVE and size != (noise_size := batch.noise_size):
        more["latents"] = _native_noise(run, batch, noise_size, size)
    cfg, guided = plan.true_cfg_scale or 1.0, plan.guided_steps
    whole = _Pass(batch, size, draft_scheduler(pipe, plan.solver, part), cfg, end=plan.steps / steps)
    if cfg <= 1 or guided == plan.steps:
        return _run_pipeline(run, whole, more)[0]
    share = guided / steps
    take_head(whole.scheduler, guided)
    held = _run_pipeline(run, replace(whole, end=share), more)[1]
    take_tail(whole.scheduler)
    rest = replace(whole, cfg=1.0, begin=share, before=guided)
    return _run_pipeline(run, rest, {**more, "latents": backbone.resume(pipe, held, *size)})[0]


def _native_noise(run: Run, batch: Batch, native: Size, size: Size) -> Tensor:
    """Return the noise that the pipeline draws for a picture of `native` size, brought down to `size`, packed."""
    backbone, pipe = run.model.backbone, run.model.pipe
    asked = _Pass(batch, native, draft_scheduler(pipe), 1.0)
    given = _run_without_a_step(run, asked, {"generator": draft_generators(batch.seeds)})
    noise = backbone.unpack(pipe, given, *native)
    rows, columns = (int(side) for side in noise.shape[-2:])
    small = shrink_noise(noise, rows * size[1] // native[1], columns * size[0] // native[0])
    return backbone.pack(pipe, small.to(given.dtype))


def _run_without_a_step(run: Run, asked: _Pass, more: Mapping[str, Any]) -> Tensor:
    """Return the latents that the pipeline itself would begin with; its scheduler is set as for a run."""
    take_head(asked.scheduler, 0)
    jobs = [replace(job, references=()) for job in asked.batch.jobs]  # which would be encoded for nothing
    return _run_pipeline(run, replace(asked, batch=replace(asked.batch, jobs=jobs)), more)[0]


@timed("upscale")
@_finite("upscaler")
def upscale(run: Run, batch: Batch, pixels: Tensor, size: Size) -> Tensor:
    """Return pixels (B, 3, height, width) of exactly `size` from smaller ones, (B, 3, h, w)."""
    larger = run.model.lift(batch.plan).upscale(pixels, *size, tile=batch.plan.cut(*size))
    return keep_colors(larger, pixels, batch.plan.color_guard)


def _unpack(run: Run, kept: Tensor, drafts: Tensor) -> Tensor:
    """Return latents of drafts (B, 3, h, w), as the pipeline gave them, as (B, C, H, W), float32."""
    height, width = drafts.shape[-2:]
    return run.model.backbone.unpack(run.model.pipe, kept.float(), width, height)


@timed("upscale", shown=False)
@_finite("upscaler")
def upscale_latents(run: Run, batch: Batch, latents: Tensor, drafts: Tensor) -> Tensor:
    """Return latents (B, C, H, W) of drafts (B, 3, h, w) as large as those of the finished pictures."""
    height, width = drafts.shape[-2:]
    larger = partial(run.model.lift(batch.plan).upscale_latents, before=(width, height), after=batch.size)
    return run.model.backbone.enlarge(run.model.pipe, latents, larger)


def _show(run: Run, batch: Batch, latents: Tensor) -> Tensor:
    """Return enlarged latents as pixels (B, 3, height, width), by way of the pipeline's own form of them."""
    given, scheduler = run.model.backbone.pack(run.model.pipe, latents), draft_scheduler(run.model.pipe)
    more = {"latents": given, "generator": draft_generators(batch.seeds)}
    own = _run_without_a_step(run, _Pass(batch, batch.size, scheduler, 1.0), more)
    return _decode(run, batch, own, batch.size)


@timed("encode")
@_finite("autoencoder")
def encode(run: Run, batch: Batch, pixels: Tensor) -> Tensor:
    """Return pixels as float32 latents (B, C, H, W), the posterior's mode."""
    run.model.pipe.maybe_free_model_hooks()  # else text encoders may still lie on the device
    place, (height, width) = autoencoder_device(run.model.pipe, run.clock.device), pixels.shape[-2:]
    with _autoencoder(run, batch, (width, height)):
        return run.model.backbone.encode(run.model.pipe, pixels.to(place)).to(run.clock.device)


def _autoencoder(run: Run, batch: Batch, size: Size) -> AbstractContextManager[None]:
    """Return a context in which the autoencoder works as the plan has it for pictures of this size."""
    tile, least = batch.plan.cut(*size), run.model.vae_tile
    if tile is None and least and max(size) > least:
        tile = least
    return autoencoder_in_tiles(getattr(run.model.pipe, "vae", None), tile) if tile else nullcontext()


def next_sigmas(run: Run, batch: Batch, latents: Tensor, size: Size) -> list[float]:
    """Return the sigmas of a schedule's large steps, to the end, as the pipeline itself sets them at `size`.

    They begin at the next number, not at the next lower sigma: a larger picture needs more noise to hide as much,
    for which models shift; so the transformer is called as often as natively. latents: of that size.
    """
    pipe, rest = run.model.pipe, slice(batch.plan.steps, None)
    asked = _Pass(batch, size, draft_scheduler(pipe, None, rest), 1.0, refines=True)
    _run_without_a_step(run, asked, {"latents": run.model.backbone.pack(pipe, latents)})
    sigmas: list[float] = asked.scheduler.sigmas.tolist()
    return sigmas


@timed("refine", loop="refine_steps")
@_finite("transformer")
def refine(run: Run, batch: Batch, noised: Noised, size: Size) -> Tensor:
    """Return latents, as the pipeline gives them, refined over the sigmas without feature caches.

    By Euler, or, if the plan switches, by the pipeline's own scheduler or the plan's solver, begun anew.
    """
    pipe, backbone, plan = run.model.pipe, run.model.backbone, batch.plan
    cfg = plan.true_cfg_scale if plan.refine_true_cfg_scale is None else plan.refine_true_cfg_scale
    more = {"latents": backbone.pack(pipe, noised.latents), "generator": noised.generators}
    if plan.switches:
        scheduler = draft_scheduler(pipe, plan.solver, slice(plan.steps, None))
        begin = plan.steps / plan.schedule_steps
    else:
        timesteps = backbone.timesteps(pipe, noised.sigmas[:-1], *size)
        scheduler, begin = exact_scheduler(pipe, noised.sigmas, timesteps), 1 - noised.sigmas[0]
    last = _Pass(batch, size, scheduler, cfg or 1.0, begin=begin, refines=True)
    return _run_pipeline(run, last, more)[0]


@_finite("autoencoder")
def _decode(run: Run, batch: Batch, latents: Tensor, size: Size, drafts: Tensor | None = None) -> Tensor:
    """Return latents, as the pipeline gives them, as pixels (B, 3, h, w) in [0, 1], float32; drafts: to guard."""
    latents = latents.to(autoencoder_device(run.model.pipe, run.clock.device))
    with _autoencoder(run, batch, size):
        pixels = run.model.backbone.decode(run.model.pipe, latents, *size).to(run.clock.device)
    return pixels if drafts is None else keep_colors(pixels, drafts, batch.plan.color_guard)


decode_draft = timed("decode_draft")(_decode)
decode = timed("decode")(_decode)


@dataclass(frozen=True)
class _Pass:
    """One run of the pipeline's own loop.

    scheduler: in place of the pipeline's meanwhile. begin, end: the shares of the way from noise to picture that
    the run goes from and to. before: steps that an earlier run has done, from which all count on. refines: with
    the plan's refine steps and without feature caches.
    """

    batch: Batch
    size: Size
    scheduler: Any
    cfg: float
    begin: float = 0.0
    end: float = 1.0
    before: int = 0
    refines: bool = False


def _run_pipeline(run: Run, one: _Pass, more: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what the pipeline gives as latents, and what its loop held; more: further arguments of its call."""
    pipe, backbone, batch, plan = run.model.pipe, run.model.backbone, one.batch, one.batch.plan
    fixed = one.refines and not plan.switches
    lent = {**backbone.settings(pipe, *one.size), "scheduler": one.scheduler}
    own = None if fixed else backbone.draft_arguments(pipe, plan.schedule_steps)
    steps = own or {"num_inference_steps": plan.refine_steps}
    prompts = backbone.call_arguments(pipe, batch.rows, plan.guidance_scale, one.cfg)
    shares = one.begin, one.end, batch.part, batch.whole
    extra = fit_arguments(run.extra, one.size, *shares) if run.extra else {}
    arguments = {**prompts, **extra, **steps, **more, "width": one.size[0], "height": one.size[1]}
    loras, references = one.batch.jobs[0].loras, one.batch.jobs[0].references
    if references:
        arguments["image"] = [load_image(each.source) for each in references]
    tile = plan.cut(*one.size) if one.refines else None
    with (
        worn(pipe, loras, run.model.loras) if loras else nullcontext(),
        transformer_in_tiles(pipe.transformer, *one.size, backbone.patch(pipe), tile) if tile else nullcontext(),
    ):
        return run_pipeline(pipe, lent, arguments, run.clock.step, before=one.before, cached=not one.refines)
