"""ERNIE-Image: FLUX.2's autoencoder and patchified latents, texts as a list of their own lengths, true CFG.

Facts from diffusers 0.42.1, src/diffusers/pipelines/ernie_image/pipeline_ernie_image.py: `latents=` is (B, 4C,
H/2, W/2) in the transformer's dtype and comes back so; a batch norm's epsilon of 1e-5, whatever the configuration
says; guidance runs above 1; the pipeline makes its own sigmas, without a shift for the size; the transformer's
timestep counts to 1000. Its prompt enhancer, which rewrites texts, has no part: a prompt is taken as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain
from mrflow.backbones.flux2 import BatchNormVae


class _Patchified(Plain):
    about = "patchified 2x2"


class _BatchNormVae(BatchNormVae):
    def deviation(self, vae: Any) -> Tensor:
        """Return the standard deviation of each channel."""
        return torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + 1e-5)


class ErnieImageBackbone(Backbone):
    """Drives diffusers' ErnieImagePipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = _Patchified(cast=True)
    autoencoder = _BatchNormVae()
    usual_cfg = 4.0  # the pipeline's default

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) of each text, T its own length; the tokenizer alone cuts it."""
        embeds = pipe.encode_prompt(list(texts), pipe._execution_device)
        return [{"prompt_embeds": each[None].clone()} for each in embeds]

    def batch_key(self, row: Embeds) -> Hashable:
        """Return the names: texts of any length share a batch."""
        return tuple(sorted(row))

    def stack(self, rows: Sequence[Embeds]) -> dict[str, Any]:
        """Return lists of (T, D) texts."""
        return {name: [row[name][0] for row in rows] for name in rows[0]}
