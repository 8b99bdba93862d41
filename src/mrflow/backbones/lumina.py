"""Lumina-Next: plain latents of 4 channels, scaled and not shifted, Gemma with a mask, true CFG of three channels.

Facts from diffusers 0.42.1, src/diffusers/pipelines/lumina/pipeline_lumina.py: texts are cleaned, which needs
further libraries, unless told otherwise, and cut at 256 tokens whatever a call says; a negative text is cut to the
length of the prompt's, itself a multiple of 8; guidance runs above 1; the transformer's timestep is 1 - sigma, and
its prediction points the other way.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text, split_masked


class LuminaBackbone(Backbone):
    """Drives diffusers' LuminaPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2, cast=True)
    autoencoder = ScaledVae()
    usual_cfg = 4.0  # the pipeline's default

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what Gemma does not take in."""
        return read_text(pipe.tokenizer, prompt.lower().strip(), pipe.max_sequence_length)

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) and prompt_attention_mask (1, T), and negative_ ones if asked for."""
        rows = []
        for k, prompt in enumerate(prompts):  # one by one: a batch would change where a negative text is cut
            encoded = pipe.encode_prompt(
                [prompt],
                negative_prompts is not None,
                negative_prompt=None if negative_prompts is None else [negative_prompts[k]],
            )
            rows += split_masked(encoded)
        return rows
