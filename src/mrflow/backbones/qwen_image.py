"""Qwen-Image: 2x2-packed latents of a video autoencoder, a vision-language text encoder, true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/qwenimage/pipeline_qwenimage.py: true_cfg_scale above 1
runs guidance with the length of the conditional prediction kept; texts of a batch are padded at the end and
masked, a mask of ones is dropped.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import Tensor

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, StandardisedVae, read_text, trim


class QwenImageBackbone(Backbone):
    """Drives diffusers' QwenImagePipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Packed()
    autoencoder = StandardisedVae()
    usual_cfg = 4.0  # the pipeline's default

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "true_cfg_scale", but for a guidance-distilled transformer; none is published yet."""
        return "guidance_scale" if pipe.transformer.config.guidance_embeds else "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 4; for a guidance-distilled transformer 1, since its pipeline names no default."""
        return 1.0 if pipe.transformer.config.guidance_embeds else self.usual_cfg

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale (left out if None) and true_cfg_scale."""
        arguments = {"true_cfg_scale": true_cfg_scale}
        return arguments if guidance_scale is None else {"guidance_scale": guidance_scale, **arguments}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off: the pipeline keeps `max_sequence_length` tokens after its template's head."""
        before, after = pipe.prompt_template_encode.split("{}")
        limit = (max_sequence_length or self.text_length) + pipe.prompt_template_encode_start_idx
        return read_text(pipe.tokenizer, prompt, limit, before, after, special=False)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and prompt_embeds_mask (B, T), also where it is all ones."""
        embeds, mask = pipe.encode_prompt(texts, max_sequence_length=length)
        return _masked(embeds, mask)

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return one row per text, without the padding that its batch brought."""
        rows = super().encode_rows(pipe, texts, length)
        return [trim(row, "prompt_embeds_mask", "prompt_embeds") for row in rows]

    def batch_key(self, row: Embeds) -> Hashable:
        """Return the names: texts of any length share a batch, padded and masked."""
        return tuple(sorted(row))


class _Tokens(Packed):
    about = "tokens, unpatched"


class _Times(StandardisedVae):
    def scaled(self, latents: Tensor, std: Tensor) -> Tensor:
        return latents * std


class QwenImage21Backbone(QwenImageBackbone):
    """Drives diffusers' QwenImage21Pipeline: unpatched latents, an RGBA autoencoder, perhaps sigmas of its own.

    Facts from diffusers 0.42.1, src/diffusers/pipelines/qwenimage21/pipeline_qwenimage21.py: sizes are multiples
    of 32; no limit on the text; a checkpoint's `sample_sigmas` win over num_inference_steps; the picture's place
    in the joint sequence counts the text's padding.
    """

    layout = _Tokens()
    autoencoder = _Times()
    usual_cfg = 1.0  # the pipeline's default

    def uncut(self, pipe: Pipeline) -> str:
        """Return that text and picture are one sequence."""
        return "its transformer counts the picture's tokens in groups behind the text's, and may keep them"

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "true_cfg_scale"."""
        return "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 1."""
        return self.usual_cfg

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return true_cfg_scale."""
        return {"true_cfg_scale": true_cfg_scale}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return that nothing is lost: the pipeline cuts no text."""
        return Reading()

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and prompt_embeds_mask (B, T); `length` has no part in it."""
        embeds, mask, _ = pipe.encode_prompt(texts)
        return _masked(embeds, mask)

    def batch_key(self, row: Embeds) -> Hashable:
        """Return the shapes too: padding would move the picture that follows a text, and so change it."""
        return tuple(sorted((name, tuple(value.shape)) for name, value in row.items()))

    def draft_arguments(self, pipe: Pipeline, steps: int) -> dict[str, Any]:
        """Return the steps, and the pipeline's plain sigmas where the checkpoint's are of another number."""
        arguments = super().draft_arguments(pipe, steps)
        own = pipe.config.sample_sigmas
        if own is not None and len(own) != steps:
            arguments["sigmas"] = [1 - k / steps for k in range(steps)]
        return arguments

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return pixels as latents: opaque, for this autoencoder sees a fourth channel."""
        return super().encode(pipe, torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1))

    def decode(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the colours of the pipeline's picture; its alpha is left out."""
        return super().decode(pipe, latents, width, height)[:, :3]


def _masked(embeds: Tensor, mask: Tensor | None) -> Embeds:
    if mask is None:
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    return {"prompt_embeds": embeds, "prompt_embeds_mask": mask}
