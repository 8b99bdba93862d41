"""Stable Diffusion 3 and 3.5: plain latents of 16 channels, two CLIPs and T5, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py:
guidance runs above 1; the transformer's timestep counts to 1000 where other families' goes to 1.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text, split_rows

_NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


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

    def encode_prompts(
        self, pipe: Pipeline, prompts: list[str], negatives: list[str] | None, max_sequence_length: int | None
    ) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) and pooled_prompt_embeds (1, P), and negative_ ones if asked for.

        In one go: the pipeline's clip_skip is for the prompt alone.
        """
        guided, length = negatives is not None, max_sequence_length or self.text_length
        texts = {"prompt": list(prompts), "prompt_2": None, "prompt_3": None, "negative_prompt": negatives}
        encoded = pipe.encode_prompt(**texts, do_classifier_free_guidance=guided, max_sequence_length=length)
        return split_rows({name: rows for name, rows in zip(_NAMES, encoded, strict=True) if rows is not None})
