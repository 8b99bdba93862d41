"""Bria 3.2: FLUX.1's packed latents, T5 padded with zeros, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/bria/pipeline_bria.py: `vae_scale_factor` counts the packing;
an absent or empty negative prompt is zeros; guidance runs above 1; the pipeline makes its own sigmas; the
transformer's timestep counts to 1000.
"""

from __future__ import annotations

import torch

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, ScaledVae, read_text


class BriaBackbone(Backbone):
    """Drives diffusers' BriaPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Packed()
    autoencoder = ScaledVae()
    usual_cfg = 5.0  # the pipeline's default
    text_length = 128

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what T5 does not take in."""
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length)

    def patch(self, pipe: Pipeline) -> int:
        """Return 16: half of what sides must be multiples of."""
        return int(pipe.vae_scale_factor)

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) and, if asked for, negative ones: zeros for an empty text."""
        rows = super().encode_prompts(pipe, prompts, negative_prompts, max_sequence_length)
        for row, text in zip(rows, negative_prompts or (), strict=False):
            if not text:
                row["negative_prompt_embeds"] = torch.zeros_like(row["prompt_embeds"])
        return rows

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D)."""
        embeds, *_ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": embeds}
