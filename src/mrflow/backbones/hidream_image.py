"""HiDream-I1: plain latents of 16 channels, two CLIPs, T5 and every layer of Llama 3, true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/hidream_image/pipeline_hidream_image.py: Llama's embeddings
are (layers, B, T, D), the batch second; guidance runs above 1 and is called `guidance_scale`; the transformer's
timestep counts to 1000 and its prediction points the other way; whatever size is asked for, the picture has
about the area of `default_sample_size`, an attribute of the pipeline that each pass therefore sets.
transformer_hidream_image.py: a picture that is no square has as many patches as `max_resolution` at most, the
rest being padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text

_LAYERED = ("prompt_embeds_llama3", "negative_prompt_embeds_llama3")


class HiDreamImageBackbone(Backbone):
    """Drives diffusers' HiDreamImagePipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2, cast=True)
    autoencoder = ScaledVae()
    usual_cfg = 5.0  # the pipeline's default
    text_length = 128

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what neither T5 nor Llama takes in."""
        length = max_sequence_length or self.text_length
        readings = [read_text(each, prompt, length) for each in (pipe.tokenizer_3, pipe.tokenizer_4)]
        return min(readings, key=lambda reading: len(reading.cut))

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds_t5 (B, T, D), prompt_embeds_llama3 (B, L, T, D) and pooled_prompt_embeds (B, P)."""
        t5, _, llama, _, pooled, _ = pipe.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {
            "prompt_embeds_t5": t5,
            "prompt_embeds_llama3": llama.transpose(0, 1),
            "pooled_prompt_embeds": pooled,
        }

    def settings(self, pipe: Pipeline, width: int, height: int) -> dict[str, Any]:
        """Return the `default_sample_size` with which the pipeline paints width x height, not its usual area."""
        side = math.sqrt(width * height) / pipe.vae_scale_factor
        return {"default_sample_size": side * (1 + 1e-9)}  # it rounds down

    def stack(self, rows: Sequence[Embeds]) -> dict[str, Any]:
        """Return rows as a batch, Llama's with the layers first."""
        batch = super().stack(rows)
        return {k: v.transpose(0, 1) if k in _LAYERED else v for k, v in batch.items()}
