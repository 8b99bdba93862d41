"""What each place of a picture shows, for the flow's middle layers to agree with.

The flow learns faster when its inner states are pulled towards the features of a network that knows what
pictures show (representation alignment, Yu et al., arXiv 2410.06940): mountains in haze are little of the
squared error and much of a prompt. The features are those of an inspector of another seed than the one that
judges, so that the judge is not who teaches:

    python -m training.inspector --seed 1 --out training/guide.safetensors
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from mrflow.vista.inspector import SIDE, Inspector, load
from training.data import DATA, folder, read, to_tensor

FILE = Path("training/guide.safetensors")
CHANNELS = 128
LAYER = 1
"""The single-stream block whose output is aligned: the middle of the transformer."""


@torch.no_grad()
def feature_maps(inspector: Inspector, images: Tensor) -> Tensor:
    """Return (B, CHANNELS, 8, 8) features of pictures (B, 3, H, W) in [-1, 1]."""
    features: Tensor = inspector.body(interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True))
    return features


def read_maps(size: tuple[int, int], root: Path = DATA) -> Tensor:
    """Return standardised features (N, CHANNELS, 8, 8) fp16 of all pictures of a size (once: kept on disk)."""
    file = folder(size, root) / "guide.pt"
    if not file.exists():
        inspector = load(FILE)
        pictures, _, _ = read(size, root)
        parts = [feature_maps(inspector, to_tensor(pictures[i : i + 64])) for i in range(0, len(pictures), 64)]
        features = torch.cat([part.half() for part in parts])
        some = features[:500].float()
        mean, std = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True) + 1e-3
        for part in features.split(500):  # in place: the whole in float32 would take gigabytes
            part.copy_((part.float() - mean) / std)
        torch.save(features, file)
    return torch.load(file, weights_only=True)


class Alignment(nn.Module):
    """A projection of a block's image tokens into the guide's features, and how far they are apart."""

    def __init__(self, block: nn.Module, width: int = 256):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, CHANNELS))
        self._seen: list[Tensor] = []
        block.register_forward_hook(lambda _block, _inputs, output: self._seen.append(output[1]))

    def forward(self, maps: Tensor, rows: int, columns: int) -> Tensor:
        """Return 1 - cosine, averaged, for the tokens (B, rows * columns, width) that the block last gave."""
        tokens = self.project(self._seen.pop().float())
        self.forget()
        wanted = interpolate(maps.float(), (rows, columns), mode="bilinear").flatten(2).mT
        return 1 - cosine_similarity(tokens, wanted, dim=2).mean()

    def forget(self) -> None:
        """Drop what the block gave without a look at it."""
        self._seen.clear()
