"""Chroma: FLUX.1's latents, T5 alone with an attention mask, always true CFG, called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/chroma/pipeline_chroma.py: the mask leaves the first
padding token open; embeddings are refused without their mask; guidance runs above 1.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, ScaledVae, read_text


class ChromaBackbone(Backbone):
    """Drives diffusers' ChromaPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Packed()
    autoencoder = ScaledVae()
    usual_cfg = 5.0  # the pipeline's default

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what T5 does not take in."""
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and prompt_attention_mask (B, T)."""
        embeds, _, mask, *_ = pipe.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}
