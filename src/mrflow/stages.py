"""The eight steps of staged sampling, from prompts to pictures, each timed and reported.

    1 encode the prompt      2 draft      3 decode
    4 upscale      5 encode      6 add noise      7 refine      8 decode

Steps 1 to 3 make drafts, 4 to 8 finish them. Tensors stay on the device throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Generator, Tensor

from mrflow.arguments import Arguments, fit_arguments, text_lora_scale
from mrflow.backbones import Conditioning
from mrflow.caches import without_caches
from mrflow.conditions import describe
from mrflow.model import Model
from mrflow.passes import denoise, denoise_head, settings, tail
from mrflow.plan import Plan
from mrflow.progress import Clock
from mrflow.request import Job
from mrflow.sampling import add_noise, draft_generators, make_noise, refine_generators, refine_sigmas
from mrflow.schedulers import draft_scheduler, exact_scheduler
from mrflow.sizes import Size


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The steps over one borrowed pipeline.

    extra: checked arguments of the pipeline's call from the caller, for both passes.
    batch: (number, of how many), told to the callback.
    """

    model: Model
    clock: Clock
    extra: Arguments = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, str]:
        """What shapes a picture besides checkpoint, plan and prompt, for recipes."""
        return describe(self.model.pipe, self.extra)

    def encode_prompts(self, jobs: Sequence[Job], *, guided: bool, batch_size: int) -> list[Conditioning]:
        """Return each job's row of conditioning; equal prompts are encoded once and shared.

        guided: encode negative prompts too; a job without one gets the empty text.
        """
        texts = list(dict.fromkeys((job.prompt, job.negative_prompt or "") for job in jobs))
        rows: dict[tuple[str, str], Conditioning] = {}
        with self.clock.stage("text"), text_lora_scale(self.model.pipe, self.extra):
            for start in range(0, len(texts), batch_size):
                part = texts[start : start + batch_size]
                prompts, negatives = [text[0] for text in part], [text[1] for text in part]
                encoded = self.model.backbone.encode_prompts(
                    self.model.pipe,
                    prompts,
                    negatives if guided else None,
                    self.model.defaults.max_sequence_length,
                )
                rows |= zip(part, encoded, strict=True)
        return [rows[job.prompt, job.negative_prompt or ""] for job in jobs]

    def sample(
        self,
        rows: Sequence[Conditioning],
        seeds: Sequence[int],
        plan: Plan,
        size: Size,
        decode: Literal["decode", "decode_draft"],
        batch: tuple[int, int] = (1, 1),
    ) -> Tensor:
        """Return pixels (B, 3, h, w) drawn from noise in `plan.steps` steps on the model's own schedule."""
        own = self.model.backbone.settings(self.model.pipe, *size)
        with self.clock.stage("draft", plan.steps, *batch) as stage, settings(self.model.pipe, own):
            latents = self.draft_latents(rows, seeds, plan, size, stage.step)
        with self.clock.stage(decode, 1, *batch) as stage:
            stage.pixels = self.model.backbone.decode(self.model.pipe, latents, *size)
        return stage.pixels

    def draft_latents(
        self,
        rows: Sequence[Conditioning],
        seeds: Sequence[int],
        plan: Plan,
        size: Size,
        on_step: Callable[[int], None],
    ) -> Tensor:
        """Return latents drawn from noise: in one run, or in two of which only the first is guided."""
        backbone, pipe = self.model.backbone, self.model.pipe
        scheduler, generators = draft_scheduler(pipe, plan.solver), draft_generators(seeds)
        cfg, guided = plan.true_cfg_scale or 1.0, plan.guided_steps

        def arguments(cfg: float) -> dict[str, Any]:
            return {
                **backbone.call_arguments(pipe, rows, plan.guidance_scale, cfg),
                **backbone.draft_arguments(pipe, plan.steps),
                "width": size[0],
                "height": size[1],
                "generator": generators,
                **fit_arguments(self.extra, size),
            }

        if cfg <= 1 or guided == plan.steps:
            return denoise(pipe, scheduler, arguments(cfg), on_step)
        held = denoise_head(pipe, scheduler, guided, arguments(cfg), on_step)
        latents = backbone.resume(pipe, held, *size)
        rest = {**arguments(1.0), "latents": latents}
        return denoise(pipe, tail(scheduler), rest, on_step, before=guided)

    def finish(
        self,
        pixels: Tensor,
        rows: Sequence[Conditioning],
        seeds: Sequence[int],
        plan: Plan,
        size: Size,
        batch: tuple[int, int] = (1, 1),
    ) -> tuple[Tensor, Tensor]:
        """Return (upscaled, finished) pixels, both (B, 3, height, width), from draft pixels (B, 3, h, w)."""
        with self.clock.stage("upscale", 1, *batch) as stage:
            upscaled = stage.pixels = self.model.upscaler.upscale(pixels, *size)
        backbone, pipe = self.model.backbone, self.model.pipe
        with self.clock.stage("encode", 1, *batch):
            latents, generators = backbone.encode(pipe, upscaled), refine_generators(seeds)
            noise = make_noise(latents.shape[1:], generators, latents.device)
            noised = add_noise(latents, plan.refine_sigma, noise)
        return upscaled, self.refine(noised, rows, plan, size, generators, batch)

    def refine(
        self,
        noised: Tensor,
        rows: Sequence[Conditioning],
        plan: Plan,
        size: Size,
        generators: Sequence[Generator],
        batch: tuple[int, int] = (1, 1),
    ) -> Tensor:
        """Return finished pixels (B, 3, height, width) from latents (B, C, H, W) with noise at `refine_sigma`.

        generators: of the refine stream, after that noise; some pipelines want them.
        """
        backbone, pipe = self.model.backbone, self.model.pipe
        with self.clock.stage("refine", plan.refine_steps, *batch) as stage, without_caches(pipe):
            arguments = {**self._refine_arguments(noised, rows, plan, size), "generator": list(generators)}
            sigmas = refine_sigmas(plan.refine_sigma, plan.refine_steps)
            scheduler = exact_scheduler(pipe, sigmas, backbone.timesteps(pipe, sigmas[:-1], *size))
            with settings(pipe, backbone.settings(pipe, *size)):
                refined = denoise(pipe, scheduler, arguments, stage.step)
        with self.clock.stage("decode", 1, *batch) as stage:
            stage.pixels = backbone.decode(pipe, refined, *size)
        return stage.pixels

    def _refine_arguments(
        self, noised: Tensor, rows: Sequence[Conditioning], plan: Plan, size: Size
    ) -> dict[str, Any]:
        backbone, pipe = self.model.backbone, self.model.pipe
        cfg = plan.true_cfg_scale if plan.refine_true_cfg_scale is None else plan.refine_true_cfg_scale
        return {
            **backbone.call_arguments(pipe, rows, plan.guidance_scale, cfg or 1.0),
            "width": size[0],
            "height": size[1],
            "latents": backbone.pack(pipe, noised),
            "num_inference_steps": plan.refine_steps,
            **fit_arguments(self.extra, size),
        }


@dataclass(frozen=True, kw_only=True)
class EncodedStages(Stages):
    """Stages whose prompts are encoded already: rows, one for each job of the batch."""

    rows: Sequence[Conditioning]

    def encode_prompts(self, jobs: Sequence[Job], *, guided: bool, batch_size: int) -> list[Conditioning]:
        """Return the rows."""
        return list(self.rows)
