"""A network of latents with weights that anybody can make again."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mrflow.latent_upscaler import LatentNetwork


def make_weights(channels: int = 16) -> dict[str, Tensor]:
    """Return weights that anybody can make again: waves of unit variance over the root of what they sum."""
    like = LatentNetwork(channels).state_dict()
    weights = {}
    for k, (name, value) in enumerate(like.items()):
        fan = value[0].numel() if value.ndim > 1 else 1
        waves = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.7 + k) * (1.5 / fan) ** 0.5
        weights[name] = waves.reshape(value.shape).float()
    weights["upsample.pe.freqs"] = 2.0 ** torch.linspace(0, 2, 4)
    return weights


def write_network(path: Path, channels: int = 16) -> Path:
    save_file(make_weights(channels), path)
    return path
