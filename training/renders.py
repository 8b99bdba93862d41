"""Statistics of fresh renders for the Frechet distance: `python -m training.renders`, and with `--side 512`.

The package cannot paint, so it ships mean and covariance of the inspector's features of renders, how well the
inspector reads them, and its hash. To be run again whenever the inspector changes; takes minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track
from safetensors.numpy import save
from torch import Tensor

from mrflow.files import save_bytes
from mrflow.metrics.attributes import features, found, hits, patch_features
from mrflow.metrics.frechet import VIEWS, Gaussian, Renders, file_sha256, renders_of
from mrflow.vista import inspector
from training.data import to_tensor
from training.world import ATTRIBUTES, labels, paint, sample_scene

SEED = 4 * 10**6  # of scenes that nothing is trained on and no prompt asks for
_BATCH = 50


def measure(network: inspector.Inspector, count: int, side: int = 256, seed: int = SEED) -> Renders:
    """Return the statistics of their features, and how well the inspector reads them."""
    pictures, patches, rows = [], [], []
    for images, wanted in track(_batches(count, side, seed), "renders", total=-(-count // _BATCH)):
        pictures.append(features(network, images))
        patches.append(np.concatenate(patch_features(network, images)))
        rows.append(hits(found(network, images), wanted))
    shares = np.nanmean(np.concatenate(rows), 0)
    accuracy = {name: round(float(share), 4) for name, share in zip(ATTRIBUTES, shares, strict=True)}
    return Renders(Gaussian.of(np.concatenate(pictures)), Gaussian.of(np.concatenate(patches)), accuracy)


def write_renders(renders: Renders, inspector: Path, path: Path) -> None:
    """Write the statistics, with the hash of the inspector that gave the features."""
    gaussians = {name: getattr(renders, name) for name in VIEWS}
    arrays = {
        f"{name}.{part}": getattr(gaussian, part).astype(np.float32)
        for name, gaussian in gaussians.items()
        for part in ("mean", "covariance")
    }
    notes = {
        "inspector_sha256": file_sha256(inspector),
        "accuracy": json.dumps(dict(renders.accuracy)),
        **{f"{name}.count": str(gaussian.count) for name, gaussian in gaussians.items()},
    }
    save_bytes(save(arrays, metadata=notes), path, overwrite=True)


def _batches(count: int, side: int, seed: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield renders and what they show, as indices, -1 where an attribute does not apply."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, _BATCH):
        scenes = [sample_scene(rng) for _ in range(min(_BATCH, count - start))]
        wanted = np.array([[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes])
        yield (to_tensor(paint(scenes, side, side)) + 1) / 2, wanted


def main(
    count: Annotated[int, typer.Option(help="Renders.")] = 2000,
    side: Annotated[int, typer.Option(help="Pixels of a side.")] = 256,
) -> None:
    """Write the statistics into the package."""
    renders, file = measure(inspector.load(), count, side), renders_of(side)
    write_renders(renders, inspector.FILE, file)
    print(f"{file}: {count} renders, named rightly {renders.accuracy}")


if __name__ == "__main__":
    typer.run(main)
