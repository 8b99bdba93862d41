"""Sana and Sana 1.5: plain latents of a deep-compression autoencoder, Gemma 2 with a mask, true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/sana/pipeline_sana.py: an instruction of many lines goes
before prompts, not before negative ones; texts are lowered; guidance runs above 1; sizes are multiples of 32 and,
unless told otherwise, are rounded to trained ones, which would end the two passes' common size; the transformer's
timestep counts to 1000; the usual scheduler is DPM-Solver++ with flow sigmas.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text, split_masked


class _Plain32(Plain):
    def multiple(self, pipe: Pipeline) -> int:
        return math.lcm(32, int(pipe.vae_scale_factor) * int(pipe.transformer.config.patch_size))


class SanaBackbone(Backbone):
    """Drives diffusers' SanaPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = _Plain32()
    autoencoder = ScaledVae()
    usual_cfg = 4.5  # the pipeline's default
    text_length = 300

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off after the instruction."""
        before = "\n".join(_instruction(pipe))
        room = len(pipe.tokenizer.encode(before)) + (max_sequence_length or self.text_length) - 2
        return read_text(pipe.tokenizer, prompt.lower().strip(), room, before)

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) and prompt_attention_mask (1, T), and negative_ ones if asked for."""
        encoded = pipe.encode_prompt(
            list(prompts),
            negative_prompts is not None,
            negative_prompt=negative_prompts,
            max_sequence_length=max_sequence_length or self.text_length,
            complex_human_instruction=_instruction(pipe),
        )
        return split_masked(encoded)

    def call_arguments(
        self,
        pipe: Pipeline,
        rows: Sequence[Embeds],
        guidance_scale: float | None,
        true_cfg_scale: float,
    ) -> dict[str, Any]:
        """Return the rows as a batch, no negative text beside them, and the guidance; sizes as they are."""
        arguments = super().call_arguments(pipe, rows, guidance_scale, true_cfg_scale)
        return {**arguments, "negative_prompt": None, "use_resolution_binning": False}


def _instruction(pipe: Pipeline) -> list[str]:
    default = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    return list(default)
