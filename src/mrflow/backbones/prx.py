"""PRX: plain latents, or pixels, a T5-Gemma text encoder with a mask, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/prx/pipeline_prx.py: texts are cleaned and lowered first;
guidance runs above 1 and gives the transformer two timesteps whatever the batch, so that pictures go through it
one by one; sizes, unless told otherwise, are rounded to trained ones; the pipeline makes its own sigmas.
pipeline_prx_pixel.py: no autoencoder; noise has a deviation of `noise_scale` beside pixels in [-1, 1]; the
transformer says what the picture is, not its velocity.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from mrflow.backbones.family import (
    Autoencoder,
    Backbone,
    Embeds,
    Layout,
    Pipeline,
    Plain,
    Reading,
    ScaledVae,
    read_text,
    to_unit,
)


class _Plain(Plain):
    def multiple(self, pipe: Pipeline) -> int:
        return int(pipe.vae_scale_factor) * int(pipe.transformer.config.patch_size)


class PRXBackbone(Backbone):
    """Drives diffusers' PRXPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout: Layout = _Plain(cast=True)
    autoencoder: Autoencoder = ScaledVae()
    usual_cfg = 4.0  # the pipeline's default
    text_length = 0  # the tokenizer's own

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what the text encoder does not take in of the cleaned text."""
        text = pipe.text_preprocessor.clean_text(prompt)
        return read_text(pipe.tokenizer, text, max_sequence_length or pipe.tokenizer.model_max_length)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and prompt_attention_mask (B, T)."""
        embeds, mask, *_ = pipe.encode_prompt(
            texts, do_classifier_free_guidance=False, tokenizer_max_length=length or None
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def batch_key(self, row: Embeds) -> Hashable:
        """Return what no other row has, nor the same row again."""
        return object()

    def call_arguments(
        self,
        pipe: Pipeline,
        rows: Sequence[Embeds],
        guidance_scale: float | None,
        true_cfg_scale: float,
    ) -> dict[str, Any]:
        """Return the row and the guidance; sizes are taken as they are."""
        arguments = super().call_arguments(pipe, rows, guidance_scale, true_cfg_scale)
        return {**arguments, "use_resolution_binning": False}


class _Pixels(_Plain):
    about = "pixels"

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return super().pack(pipe, latents * float(pipe.config.noise_scale))  # its noise's deviation; ours is 1


class _NoVae:
    about = "none"

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        return pixels.float() * 2 - 1

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        return to_unit(latents)


class PRXPixelBackbone(PRXBackbone):
    """Drives diffusers' PRXPixelPipeline. See mrflow.backbones.family.Backbone for the methods.

    Latents are pixels here, counted in units of the noise's deviation, so that a sigma means what it says.
    """

    layout = _Pixels(cast=True)
    autoencoder = _NoVae()

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return pixels in [-1, 1] over the noise's deviation."""
        return self.autoencoder.encode(None, pixels) / float(pipe.config.noise_scale)

    def unpack(self, pipe: Pipeline, given: Tensor, width: int, height: int) -> Tensor:
        """Return the pipeline's pixels over the noise's deviation."""
        return given / float(pipe.config.noise_scale)

    def decode(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the pipeline's pixels in [0, 1]."""
        return self.autoencoder.decode(None, latents)

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what the text encoder does not take in; a call's limit has no part in it."""
        return read_text(pipe.tokenizer, prompt.strip(), pipe.config.prompt_max_tokens)
