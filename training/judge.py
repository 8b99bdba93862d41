"""How far are pictures from their world? A classifier tries to tell them from fresh renders.

    python -m training.judge --count 256 --methods "native 50,native 6 UniPC,12+1"
    python -m training.judge --folder runs/flow/export
    python -m training.judge --compared compare-vista

A classifier two-sample test (Lopez-Paz and Oquab, arXiv 1610.06545): it learns on one half of the pictures, is
asked about the other, and the other way round. Its AUC is how often, of a picture and a render, it takes the
right one for the render: .5 where it cannot tell, 1 where it always can. Asked twice: of whole pictures,
brought to WHOLE pixels, where forms show and texture hardly, and of patches at full resolution. Pictures and
renders show the same scenes and lie in the same half, so that what is shown gives nothing away. The classifier
is a ridge regression on what every layer of the guide sees (it knows this world, and is not the inspector by
which "found" is judged) and on the detail of the pixels. Of 24 small pictures it tells patches blurred by a
pixel from sharp ones in .97 of the pairs; without the pixels' detail in .79, and a training of the whole
network, minutes long, in .61.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, pad

from mrflow.bench.ledger import picture_file, read_course
from mrflow.bench.prompts import VISTA
from mrflow.files import load_image
from mrflow.images import to_tensor as read_images
from mrflow.vista import inspector
from training import guide, samples
from training.data import to_tensor
from training.evaluate import prompts, scenes
from training.flow_model import WEIGHTS
from training.heldout import SETS
from training.world import Scene, paint

SEED = 9_400_000  # of scenes that nothing else uses
WHOLE, PATCH = 128, 64
_BATCH = 64
_RESAMPLES = 400
ROUND_TRIP = "round trip"


@dataclass(frozen=True)
class Verdict:
    """How well pictures and renders can be told apart: the AUC and its 95% interval over the pictures."""

    auc: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.auc:.3f} ({self.low:.3f} to {self.high:.3f})"


def auc(made: np.ndarray, real: np.ndarray) -> float:
    """Return how often a made picture scores above a real one, ties counting for half."""
    both = np.concatenate([made, real])
    _, places, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[: len(made)].sum() - len(made) * (len(made) + 1) / 2) / (len(made) * len(real)))


def views(images: Tensor, patches: bool) -> Tensor:
    """Return (N, views, 3, side, side) of images (N, 3, H, W): all that is seen of each."""
    if not patches:
        return interpolate(images, (WHOLE, WHOLE), mode="bilinear", antialias=True)[:, None]
    tiles = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (N, 3, down, across, PATCH, PATCH)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def bands(images: Tensor, grid: int) -> list[Tensor]:
    """Return the energy (N, 3 * grid * grid) of each of three octaves of detail, the finest first."""
    found = []
    for _ in range(3):
        detail = images - avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        found.append(adaptive_avg_pool2d(detail.square(), grid).flatten(1))
        images = avg_pool2d(images, 2)
    return found


@torch.no_grad()
def describe(body: nn.Sequential, images: Tensor, patches: bool) -> Tensor:
    """Return (N, D) float64, of whole pictures by quarters: logarithms, since texture is lost by factors.

    Of mean and spread of each channel of each layer, and of what detail the pixels have, octave by octave.
    """
    grid, found = (1 if patches else 2), []
    for part in images.split(_BATCH):
        seen, parts = part.contiguous(memory_format=torch.channels_last), []
        for layer in body:
            seen = layer(seen)
            if isinstance(layer, nn.ReLU):
                mean = adaptive_avg_pool2d(seen, grid)
                spread = (adaptive_avg_pool2d(seen.square(), grid) - mean.square()).clamp_min(0).sqrt()
                parts += [(mean + 1e-2).log().flatten(1), (spread + 1e-2).log().flatten(1)]
        found.append(torch.cat([*parts, *((energy + 1e-6).log() for energy in bands(part, grid))], 1))
    return torch.cat(found).double()


def fit(features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (D,) and offset of the ridge regression of wanted (N,) on features (N, D), both float64.

    Of the ridges tried, the one with the least error where each row is foretold by all others.
    """
    mean, std = features.mean(0), features.std(0) + 1e-4
    u, s, v = torch.linalg.svd((features - mean) / std, full_matrices=False)
    target, best = u.T @ wanted, (float("inf"), torch.zeros(()))
    for ridge in len(features) * 10.0 ** torch.arange(-4, 2.5, 0.5, dtype=torch.float64):
        kept = s.square() / (s.square() + ridge)
        errors = (wanted - u @ (kept * target)) / (1 - u.square() @ kept).clamp_min(1e-9)
        best = min(best, (errors.square().mean().item(), ridge), key=lambda pair: pair[0])
    weights = v.T @ (s / (s.square() + best[1]) * target) / std
    return weights, mean @ weights


def tell(made: Tensor, real: Tensor, patches: bool, seed: int = 0) -> Verdict:
    """Return how well made (N, 3, H, W) can be told from real ones of the same scenes, both in [-1, 1].

    patches: look at patches of PATCH pixels, not at whole pictures.
    """
    body, count = inspector.load(guide.FILE).body, len(made)
    seen = [views(images, patches) for images in (made, real)]
    rows = torch.stack([describe(body, each.flatten(0, 1), patches).unflatten(0, each.shape[:2]) for each in seen])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    scores = torch.empty(rows.shape[:3])
    for known, asked in ((order[: count // 2], order[count // 2 :]), (order[count // 2 :], order[: count // 2])):
        features = rows[:, known].flatten(1, 2)
        wanted = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(features.shape[1])
        weights, offset = fit(features.flatten(0, 1), wanted)
        scores[:, asked] = (rows[:, asked] @ weights - offset).float()
    pairs, draws = scores.numpy(), np.random.default_rng(seed)
    drawn = [draws.integers(count, size=count) for _ in range(_RESAMPLES)]
    spread = [auc(pairs[0, chosen].ravel(), pairs[1, chosen].ravel()) for chosen in drawn]
    low, high = np.quantile(spread, (0.025, 0.975)).tolist()
    return Verdict(auc(pairs[0].ravel(), pairs[1].ravel()), low, high)


@torch.no_grad()
def round_trip(fast: samples.MrFlow, images: Tensor) -> Tensor:
    """Return images (N, 3, H, W) in [-1, 1] after the autoencoder."""
    vae = fast.pipe.vae
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(16)]
    return torch.cat(parts).clamp(-1, 1)


def read_compared(folder: Path, count: int) -> tuple[list[Scene], dict[str, Iterator[Image.Image]]]:
    """Return scenes of vista's own prompts and each method's pictures of them, from what `mrflow compare` wrote.

    Those of which every method has its picture, the first `count` of them; read one by one, as they are wanted.
    """
    names = (read_course(folder) or {}).get("methods", [])
    world = scenes(*SETS[VISTA])
    whole = (k for k in range(len(world)) if all(picture_file(folder, name, k).is_file() for name in names))
    there = list(islice(whole, count))
    return [world[k] for k in there], {
        name: map(load_image, [picture_file(folder, name, k) for k in there]) for name in names
    }


def main(
    folder: Annotated[Path, typer.Option(help="A pipeline's folder.")] = WEIGHTS,
    methods: Annotated[
        str, typer.Option(help="What paints, of training.samples.")
    ] = "native 50,native 6 UniPC,12+1",
    count: Annotated[int, typer.Option(help="Scenes.")] = 256,
    side: Annotated[int, typer.Option(help="Pixels of a side.")] = 256,
    compared: Annotated[
        Path | None, typer.Option(help="Judge the pictures that mrflow compare left here, a seed a prompt.")
    ] = None,
) -> None:
    """Print a line a method: AUC against renders, and against renders that went through the autoencoder."""
    fast = samples.load(folder)
    if compared:
        world, painted = read_compared(compared, count)
        if not world or not painted:
            raise typer.BadParameter(f"{compared} has no prompt of which every method has its picture.")
        side = (read_course(compared) or {})["size"][0]
    else:
        world, (captions, _) = scenes(count, SEED), prompts(count, seed=SEED)
        painted = {name: samples.paint(fast, name, captions, side) for name in methods.split(",")}
    real = torch.cat([to_tensor(paint(world[i : i + 32], side, side)) for i in range(0, len(world), 32)])
    coded = round_trip(fast, real)
    for name in (ROUND_TRIP, *painted):
        made = coded
        if name in painted:  # a method at a time: all of them would take gigabytes
            made = read_images(list(track(painted[name], name, total=len(world)))) * 2 - 1
        row = {}
        for against, others in (("renders", real), (ROUND_TRIP, coded)):
            if made is not others:
                row |= {
                    f"{view}, {against}": str(tell(made, others, patches))
                    for view, patches in (("whole", False), ("patches", True))
                }
        print(json.dumps({"method": name, **row}), flush=True)


if __name__ == "__main__":
    typer.run(main)
