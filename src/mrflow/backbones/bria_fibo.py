"""Bria FIBO: tokens of a video autoencoder without patches, every layer of SmolLM 3, true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/bria_fibo/pipeline_bria_fibo.py: the call takes texts and no
embeddings, so that each pass encodes them again; the longer of a text and its negative says how far both are
padded, with a mask, but an empty text, alone or beside others, is one token or as many as theirs; guidance runs
above 1 and is called `guidance_scale`; the pipeline makes its own sigmas; the transformer's timestep counts to
1000. Checkpoints expect a caption in JSON.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

from torch import Tensor

from mrflow.backbones.family import Backbone, Embeds, Packed, Pipeline, Reading, StandardisedVae, read_text


class _Tokens(Packed):
    about = "tokens, unpatched"

    def multiple(self, pipe: Pipeline) -> int:
        return int(pipe.vae_scale_factor)

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        return cast("Tensor", pipe._pack_latents_no_patch(latents, *latents.shape))

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        return cast(
            "Tensor", pipe._unpack_latents_no_patch(latents, height, width, pipe.vae_scale_factor)[:, :, None]
        )


class BriaFiboBackbone(Backbone):
    """Drives diffusers' BriaFiboPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = _Tokens()
    autoencoder = StandardisedVae()
    usual_cfg = 5.0  # the pipeline's default
    text_length = 3000

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what SmolLM does not take in."""
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length)

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return each text as it is, and how many tokens of it count."""
        return [{"prompt": text, "max_sequence_length": length} for text in texts]

    def batch_key(self, row: Embeds) -> Hashable:
        """Return the names, and which texts are empty: texts of any other length share a batch."""
        return tuple(sorted((name, value == "") for name, value in row.items()))

    def stack(self, rows: Sequence[Embeds]) -> dict[str, Any]:
        """Return lists of texts, and the one limit."""
        return {
            "max_sequence_length": rows[0]["max_sequence_length"],
            **{name: [row[name] for row in rows] for name in rows[0] if name.endswith("prompt")},
        }
