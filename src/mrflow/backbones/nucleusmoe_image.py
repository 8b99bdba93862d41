"""NucleusMoE-Image: Qwen-Image's autoencoder, packed latents, a vision-language text encoder, normed true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/nucleusmoe_image/pipeline_nucleusmoe_image.py: texts are
padded to the longest of their batch, in steps of 8, with a mask, a mask of ones being dropped; guidance runs
above 1 and keeps the norm of the conditional prediction; the transformer's prediction points the other way.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, StandardisedVae, read_text


class _Packed(Packed):
    def multiple(self, pipe: Pipeline) -> int:
        return int(pipe.vae_scale_factor) * int(pipe.transformer.config.patch_size)

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return cast("Tensor", pipe._pack_latents(latents, *latents.shape, pipe.transformer.config.patch_size))

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        patch = pipe.transformer.config.patch_size
        return cast("Tensor", pipe._unpack_latents(latents, height, width, patch, pipe.vae_scale_factor))


class NucleusMoEImageBackbone(Backbone):
    """Drives diffusers' NucleusMoEImagePipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = _Packed()
    autoencoder = StandardisedVae()
    usual_cfg = 4.0  # the pipeline's default
    text_length = 1024

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off inside the chat template."""
        before, _, after = pipe._format_prompt(prompt).rpartition(prompt)
        tokenizer = getattr(pipe.processor, "tokenizer", pipe.processor)
        return read_text(tokenizer, prompt, max_sequence_length or self.text_length, before, after)

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) and prompt_embeds_mask (1, T) of each text by itself."""
        return [self._encode(pipe, text, length) for text in texts]

    def _encode(self, pipe: Pipeline, text: str, length: int) -> dict[str, Any]:
        embeds, mask = pipe.encode_prompt(text, max_sequence_length=length)
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}
