"""AuraFlow: plain latents of 4 channels, a T5 text encoder of fixed length, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/aura_flow/pipeline_aura_flow.py: guidance runs above 1;
embeddings are refused without their masks, which are already multiplied in.
"""

from __future__ import annotations

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text


class AuraFlowBackbone(Backbone):
    """Drives diffusers' AuraFlowPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2)
    autoencoder = ScaledVae()
    usual_cfg = 3.5  # the pipeline's default
    text_length = 256

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what T5 does not take in."""
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D) and prompt_attention_mask."""
        embeds, mask, *_ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}
