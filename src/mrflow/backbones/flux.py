"""FLUX.1: 2x2-packed latents of 16 channels, CLIP and T5 text encoders, guidance embedded or true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/flux/pipeline_flux.py: true classifier-free guidance
runs when true_cfg_scale > 1 and negative embeddings are there; `guidance_scale` reaches only transformers
with guidance embeddings (FLUX.1-dev has them, schnell has not).
"""

from __future__ import annotations

from typing import Literal

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, ScaledVae, read_text


class FluxBackbone(Backbone):
    """Drives diffusers' FluxPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Packed()
    autoencoder = ScaledVae()

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "guidance_scale" for guidance-embedded checkpoints, else "true_cfg_scale"."""
        return "guidance_scale" if pipe.transformer.config.guidance_embeds else "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 3.5, the pipeline's default, for guidance-embedded checkpoints, else 1: no guidance."""
        return 3.5 if pipe.transformer.config.guidance_embeds else 1.0

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale (left out if None) and true_cfg_scale."""
        arguments = {"true_cfg_scale": true_cfg_scale}
        return arguments if guidance_scale is None else {"guidance_scale": guidance_scale, **arguments}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what T5, which carries the prompt's detail, does not take in.

        CLIP's shorter limit of 77 tokens only shortens the pooled summary, so nothing is said about it.
        """
        return read_text(pipe.tokenizer_2, prompt, max_sequence_length or self.text_length)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and pooled_prompt_embeds (B, P)."""
        embeds, pooled, _ = pipe.encode_prompt(texts, max_sequence_length=length)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


class FluxControlBackbone(FluxBackbone):
    """Drives diffusers' FluxControlPipeline: FLUX.1 with a control image as further channels, without true CFG."""

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return False."""
        return False

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale."""
        return {} if guidance_scale is None else {"guidance_scale": guidance_scale}
