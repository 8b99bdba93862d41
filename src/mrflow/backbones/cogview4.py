"""CogView4: plain latents of 16 channels in float32, a GLM text encoder, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/cogview4/pipeline_cogview4.py: texts are padded on the left,
to a multiple of 16 and to the longest of their batch, without a mask; guidance runs above 1; the decoder's input
is scaled, not shifted; the transformer's timestep counts to 1000.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text


class CogView4Backbone(Backbone):
    """Drives diffusers' CogView4Pipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2)
    autoencoder = ScaledVae()
    usual_cfg = 5.0  # the pipeline's default
    text_length = 1024

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what the text encoder does not take in."""
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length)

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) of each text by itself: a longer one beside it would pad it."""
        return [
            {"prompt_embeds": pipe.encode_prompt(text, None, False, max_sequence_length=length)[0]}
            for text in texts
        ]
