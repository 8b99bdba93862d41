"""FLUX.1: 2x2-packed latents of 16 channels, CLIP and T5 text encoders, guidance embedded or true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/flux/pipeline_flux.py: true classifier-free guidance
runs when true_cfg_scale > 1 and negative embeddings are there; `guidance_scale` reaches only transformers
with guidance embeddings (FLUX.1-dev has them, schnell has not).
"""

from __future__ import annotations

import string
from typing import Any, Literal, cast

from torch import Tensor

from mrflow.backbones import Conditioning, Pipeline, Reading

_MAX_SEQUENCE_LENGTH = 512  # FluxPipeline.__call__'s default
_GUIDANCE_SCALE = 3.5  # likewise; FLUX.1-dev's model card gives the same
_PUNCTUATION = string.punctuation + string.whitespace  # too little meaning to warn of its loss


class FluxBackbone:
    """Drives diffusers' FluxPipeline. See mrflow.backbones.Backbone for the methods."""

    def multiple(self, pipe: Pipeline) -> int:
        """Return 16 for FLUX.1: the autoencoder's factor of 8 times the 2x2 packing."""
        return int(pipe.vae_scale_factor) * 2

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "guidance_scale" for guidance-embedded checkpoints, else "true_cfg_scale"."""
        return "guidance_scale" if pipe.transformer.config.guidance_embeds else "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 3.5 for guidance-embedded checkpoints, else 1: no guidance."""
        return _GUIDANCE_SCALE if pipe.transformer.config.guidance_embeds else 1.0

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what T5, which carries the prompt's detail, does not take in.

        CLIP's shorter limit of 77 tokens only shortens the pooled summary, so nothing is said about it.
        """
        tokenizer = pipe.tokenizer_2
        if tokenizer is None or not tokenizer.is_fast:  # only fast tokenizers say where a token stands
            return Reading()
        room = (max_sequence_length or _MAX_SEQUENCE_LENGTH) - tokenizer.num_special_tokens_to_add()
        tokens = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans, ids = tokens["offset_mapping"], tokens["input_ids"]
        cut = prompt[spans[room][0] :] if len(ids) > room else ""
        missed = (prompt[a:b] for (a, b), i in zip(spans, ids, strict=True) if i == tokenizer.unk_token_id)
        unknown = dict.fromkeys(word.strip() for word in missed if word.strip(_PUNCTUATION))
        return Reading(cut.strip(), tuple(unknown))

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> Conditioning:
        """Return prompt_embeds (B, T, D) and pooled_prompt_embeds (B, P), and negative_ ones if asked for."""
        conditioning = self._encode(pipe, prompts, max_sequence_length)
        if negative_prompts is not None:
            negative = self._encode(pipe, negative_prompts, max_sequence_length)
            conditioning |= {f"negative_{name}": value for name, value in negative.items()}
        return conditioning

    def guidance_arguments(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale (left out if None) and true_cfg_scale."""
        arguments = {"true_cfg_scale": true_cfg_scale}
        return arguments if guidance_scale is None else {"guidance_scale": guidance_scale, **arguments}

    def latent_shape(self, pipe: Pipeline, width: int, height: int) -> tuple[int, int, int]:
        """Return (16, height / 8, width / 8) for FLUX.1."""
        factor = int(pipe.vae_scale_factor)
        return int(pipe.transformer.config.in_channels) // 4, height // factor, width // factor

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents as (B, H/2 * W/2, 4C) tokens."""
        return cast("Tensor", pipe._pack_latents(latents, *latents.shape))

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return (B, tokens, 4C) as (B, C, H, W) latents of a width x height picture."""
        return cast("Tensor", pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor))

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1] as normalised float32 latents: (mode - shift) * scale."""
        vae = pipe.vae
        mode = vae.encode((pixels * 2 - 1).to(vae.dtype)).latent_dist.mode()
        return cast("Tensor", (mode.float() - _shift(vae)) * vae.config.scaling_factor)

    def decode(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return normalised latents as float32 pixels in [0, 1]."""
        vae = pipe.vae
        pixels = vae.decode((latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)).sample
        return cast("Tensor", (pixels.float() / 2 + 0.5).clamp(0, 1))

    def _encode(self, pipe: Pipeline, prompts: list[str], max_sequence_length: int | None) -> Conditioning:
        length = max_sequence_length or _MAX_SEQUENCE_LENGTH
        embeds, pooled, _ = pipe.encode_prompt(prompts, device=pipe._execution_device, max_sequence_length=length)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _shift(vae: Any) -> float:
    return float(vae.config.shift_factor or 0.0)
