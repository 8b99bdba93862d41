"""The eight steps of staged sampling, from prompts to pictures, each timed and reported.

    1 encode the prompt      2 draft      3 decode
    4 upscale      5 encode      6 add noise      7 refine      8 decode

Steps 1 to 3 make drafts, 4 to 8 finish them. Tensors stay on the device throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mrflow.backbones import Conditioning
from mrflow.model import Model
from mrflow.passes import denoise, exact_scheduler, own_scheduler
from mrflow.plan import Plan
from mrflow.progress import Clock
from mrflow.request import Job
from mrflow.sampling import add_noise, draft_generators, make_noise, refine_generators, refine_sigmas
from mrflow.sizes import Size


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The steps over one borrowed pipeline.

    batch: (number, of how many), told to the callback.
    """

    model: Model
    clock: Clock

    def encode_prompts(self, jobs: Sequence[Job], *, guided: bool, batch_size: int) -> list[Conditioning]:
        """Return each job's conditioning, one row of tensors; equal prompts are encoded once and shared.

        guided: encode negative prompts too; a job without one gets the empty text.
        """
        texts = list(dict.fromkeys((job.prompt, job.negative_prompt or "") for job in jobs))
        rows: dict[tuple[str, str], Conditioning] = {}
        with self.clock.stage("text"):
            for start in range(0, len(texts), batch_size):
                part = texts[start : start + batch_size]
                prompts, negatives = [text[0] for text in part], [text[1] for text in part]
                encoded = self.model.backbone.encode_prompts(
                    self.model.pipe,
                    prompts,
                    negatives if guided else None,
                    self.model.defaults.max_sequence_length,
                )
                rows |= {text: _row(encoded, k) for k, text in enumerate(part)}
        return [rows[job.prompt, job.negative_prompt or ""] for job in jobs]

    def sample(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        plan: Plan,
        size: Size,
        decode: Literal["decode", "decode_draft"],
        batch: tuple[int, int] = (1, 1),
    ) -> Tensor:
        """Return pixels (B, 3, h, w) drawn from noise in `plan.steps` steps on the model's own schedule."""
        width, height = size
        guidance = self.model.backbone.guidance_arguments(plan.guidance_scale, plan.true_cfg_scale or 1.0)
        arguments: dict[str, Any] = {
            **conditioning,
            **guidance,
            "width": width,
            "height": height,
            "num_inference_steps": plan.steps,
            "generator": draft_generators(seeds),
        }
        with self.clock.stage("draft", plan.steps, *batch) as stage:
            packed = denoise(self.model.pipe, own_scheduler(self.model.pipe), arguments, stage.step)
        with self.clock.stage(decode, 1, *batch) as stage:
            stage.pixels = self._decode(packed, size)
        return stage.pixels

    def finish(
        self,
        pixels: Tensor,
        conditioning: Conditioning,
        seeds: Sequence[int],
        plan: Plan,
        size: Size,
        batch: tuple[int, int] = (1, 1),
    ) -> tuple[Tensor, Tensor]:
        """Return (upscaled, finished) pixels, both (B, 3, height, width), from draft pixels (B, 3, h, w)."""
        with self.clock.stage("upscale", 1, *batch) as stage:
            upscaled = stage.pixels = self.model.upscaler.upscale(pixels, *size)
        with self.clock.stage("encode", 1, *batch):
            latents = self.model.backbone.encode(self.model.pipe, upscaled)
            noise = make_noise(latents.shape[1:], refine_generators(seeds), latents.device)
            noised = add_noise(latents, plan.refine_sigma, noise)
        with self.clock.stage("refine", plan.refine_steps, *batch) as stage:
            arguments = self._refine_arguments(noised, conditioning, plan, size)
            packed = denoise(self.model.pipe, exact_scheduler(self.model.pipe), arguments, stage.step)
        with self.clock.stage("decode", 1, *batch) as stage:
            stage.pixels = self._decode(packed, size)
        return upscaled, stage.pixels

    def _refine_arguments(
        self, noised: Tensor, conditioning: Conditioning, plan: Plan, size: Size
    ) -> dict[str, Any]:
        cfg = plan.true_cfg_scale if plan.refine_true_cfg_scale is None else plan.refine_true_cfg_scale
        return {
            **conditioning,
            **self.model.backbone.guidance_arguments(plan.guidance_scale, cfg or 1.0),
            "width": size[0],
            "height": size[1],
            "latents": self.model.backbone.pack(self.model.pipe, noised),
            # the scheduler appends the final 0 itself
            "sigmas": refine_sigmas(plan.refine_sigma, plan.refine_steps)[:-1],
            "num_inference_steps": plan.refine_steps,
        }

    def _decode(self, packed: Tensor, size: Size) -> Tensor:
        latents = self.model.backbone.unpack(self.model.pipe, packed, *size)
        return self.model.backbone.decode(self.model.pipe, latents)


def stack(rows: Sequence[Conditioning]) -> Conditioning:
    """Return the conditioning of a batch from that of its pictures, which must have the same names."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _row(conditioning: Conditioning, index: int) -> Conditioning:
    # clone: a draft keeps its own row, not the whole batch it was encoded in
    return {name: value[index : index + 1].clone() for name, value in conditioning.items()}
