"""Lumina-Image 2.0: plain latents of 16 channels, Gemma 2 with a mask, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/lumina2/pipeline_lumina2.py: a system prompt goes before
prompts, not before negative ones; guidance runs above 1; the transformer's timestep is 1 - sigma.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text, split_masked


class Lumina2Backbone(Backbone):
    """Drives diffusers' Lumina2Pipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2, cast=True)
    autoencoder = ScaledVae()
    usual_cfg = 4.0  # the pipeline's default
    text_length = 256

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off after the system prompt."""
        before = pipe.system_prompt + " <Prompt Start> "
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length, before)

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) and prompt_attention_mask (1, T), and negative_ ones if asked for."""
        encoded = pipe.encode_prompt(
            list(prompts),
            negative_prompts is not None,
            negative_prompt=negative_prompts,
            max_sequence_length=max_sequence_length or self.text_length,
        )
        return split_masked(encoded)
