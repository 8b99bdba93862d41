"""Ovis-Image: FLUX.1's latents, a Qwen3 text encoder of fixed length, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/ovis_image/pipeline_ovis_image.py: guidance runs above 1; the
call's default negative prompt is a text, which must be taken back where negative embeddings are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrflow.backbones.family import (
    Backbone,
    Embeds,
    Packed,
    Pipeline,
    Reading,
    ScaledVae,
    chat_template,
    read_text,
)


class OvisImageBackbone(Backbone):
    """Drives diffusers' OvisImagePipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Packed()
    autoencoder = ScaledVae()
    usual_cfg = 5.0  # the pipeline's default
    text_length = 256

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off inside the chat template, whose head is not counted."""
        before, after = chat_template(pipe.tokenizer, pipe.system_prompt + prompt, enable_thinking=False)
        limit = (max_sequence_length or self.text_length) + pipe.user_prompt_begin_id
        return read_text(pipe.tokenizer, prompt, limit, before + pipe.system_prompt, after, special=False)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D)."""
        embeds, *_ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": embeds}

    def stack(self, rows: Sequence[Embeds]) -> dict[str, Any]:
        """Return rows as a batch, and no negative text beside them."""
        return {**super().stack(rows), "negative_prompt": None}
