"""Stable Diffusion 3 and 3.5: plain latents of 16 channels, two CLIPs and T5, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py:
guidance runs above 1; the transformer's timestep counts to 1000 where other families' goes to 1.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text


class StableDiffusion3Backbone(Backbone):
    """Drives diffusers' StableDiffusion3Pipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2)
    autoencoder = ScaledVae()
    usual_cfg = 7.0  # the pipeline's default
    text_length = 256
    spare = ("text_encoder_3", "tokenizer_3")  # zeros stand in for T5

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what T5 does not take in; nothing is said where it was left out to save memory."""
        return read_text(pipe.tokenizer_3, prompt, max_sequence_length or self.text_length)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and pooled_prompt_embeds (B, P)."""
        embeds, _, pooled, _ = pipe.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
