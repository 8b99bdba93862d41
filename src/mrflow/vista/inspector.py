"""The inspector: a network that says what a picture of vista's world shows, to score samples."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mrflow.errors import ModelError
from mrflow.vista.grammar import ATTRIBUTES

SIDE = 64
"""Pixels to which the inspector brings a picture's sides before it looks."""
FILE = Path(__file__).parent / "inspector.safetensors"


class Inspector(nn.Module):
    """Logits for every value of every attribute, from pictures (B, 3, H, W) in [-1, 1] of any size.

    Pictures are first brought to SIDE x SIDE: what a scene shows can be read at that size, and neither
    a missing pixel texture nor an invented one sways the verdict. `features` (B, 256) feed a Frechet distance.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        channels = [3, width, 2 * width, 3 * width, 4 * width]
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(pairwise(channels)):
            layers += [
                nn.Conv2d(before, after, 3, 1 if k == 0 else 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()] if k else []
        self.body = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * width, 256), nn.ReLU())
        self.head = nn.Linear(256, sum(len(values) for values in ATTRIBUTES.values()))

    def features(self, images: Tensor) -> Tensor:
        """Return (B, 256) features."""
        small = interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        features: Tensor = self.pool(self.body(small.contiguous(memory_format=torch.channels_last)))
        return features

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.head(self.features(images)).split([len(v) for v in ATTRIBUTES.values()], 1))

    @torch.no_grad()
    def name(self, images: Tensor) -> Tensor:
        """Return the index of the most likely value of each attribute: (B, attributes)."""
        return torch.stack([logits.argmax(1) for logits in self(images)], 1)


def load(path: Path = FILE) -> Inspector:
    """Return the trained inspector, on the CPU in float32, in evaluation mode. Raises ModelError without it."""
    if not path.exists():
        raise ModelError(
            f"The inspector's weights {path} are missing from this installation. Install mrflow again."
        )
    inspector = Inspector().eval().requires_grad_(False)
    inspector.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return inspector.to(memory_format=torch.channels_last)
