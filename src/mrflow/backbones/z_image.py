"""Z-Image: plain latents of 16 channels in float32, texts as a list of their own lengths, CFG in another scale.

Facts from diffusers 0.42.1, src/diffusers/pipelines/z_image/pipeline_z_image.py: guidance_scale g means
cond + g (cond - uncond) and runs above 0, so true_cfg_scale is g + 1; the transformer's timestep is 1 - sigma;
`latents=` must be float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, chat_template, read_text


class ZImageBackbone(Backbone):
    """Drives diffusers' ZImagePipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = Plain(patches=2)
    autoencoder = ScaledVae()
    usual_cfg = 6.0  # the pipeline's default, 5, in our scale

    def uncut(self, pipe: Pipeline) -> str:
        """Return that a ControlNet's answers are of the whole picture's patches."""
        return (
            "its ControlNet's answers are padded lists for whole pictures" if hasattr(pipe, "controlnet") else ""
        )

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale in Z-Image's scale."""
        return {"guidance_scale": true_cfg_scale - 1}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off inside the chat template."""
        before, after = chat_template(pipe.tokenizer, prompt, enable_thinking=True)
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length, before, after)

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) of each text, T its own length."""
        texts = list(texts)  # the pipeline writes its template into the list
        embeds, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)
        return [{"prompt_embeds": each[None].clone()} for each in embeds]

    def batch_key(self, row: Embeds) -> Hashable:
        """Return the names: texts of any length share a batch."""
        return tuple(sorted(row))

    def stack(self, rows: Sequence[Embeds]) -> dict[str, Any]:
        """Return lists of (T, D) texts."""
        return {name: [row[name][0] for row in rows] for name in rows[0]}
