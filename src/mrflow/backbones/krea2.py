"""Krea 2: Qwen-Image's autoencoder, 2x2-packed, hidden states of several text layers, CFG in another scale.

Facts from diffusers 0.42.1, src/diffusers/pipelines/krea2/pipeline_krea2.py: the pipeline's guidance_scale g
means cond + g (cond - uncond) and runs above 0, so true_cfg_scale is g + 1; texts have a fixed length, padded
in the middle, with a mask; the distilled checkpoint says `is_distilled` and shifts by a fixed mu.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, StandardisedVae, read_text


class _KreaPacked(Packed):
    def multiple(self, pipe: Pipeline) -> int:
        return int(pipe.vae_scale_factor) * int(pipe.patch_size)

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        return cast("Tensor", pipe._unpack_latents(latents, height, width))


class Krea2Backbone(Backbone):
    """Drives diffusers' Krea2Pipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = _KreaPacked()
    autoencoder = StandardisedVae()
    usual_cfg = 5.5  # the pipeline's default, 4.5, in our scale

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 5.5, for the distilled checkpoint 1: no guidance."""
        return 1.0 if pipe.config.is_distilled else self.usual_cfg

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale in Krea's scale."""
        return {"guidance_scale": true_cfg_scale - 1}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off between the template's head and tail."""
        length = max_sequence_length or self.text_length
        room = length + pipe.prompt_template_encode_start_idx - pipe.prompt_template_encode_num_suffix_tokens
        return read_text(pipe.tokenizer, prompt, room, pipe.prompt_template_encode_prefix)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, layers, D) and prompt_embeds_mask (B, T)."""
        embeds, mask = pipe.encode_prompt(texts, max_sequence_length=length)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}
