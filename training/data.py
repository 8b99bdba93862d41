"""Paint the training pictures: `python -m training.data --count 24000`.

One folder per picture size under data/, each with pictures.npy (N, H, W, 3) uint8 and scenes.json
(captions and labels). Sizes are those of the finished pictures; half-size ones are averaged from
them when they are read, so that both sizes show the same scenes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from torch import Tensor
from torch.nn.functional import avg_pool2d

from training.world import ATTRIBUTES, caption, labels, paint, sample_scene

DATA = Path("data")
SHARES = {
    (256, 256): 0.62, (320, 192): 0.05, (192, 320): 0.05, (288, 224): 0.04, (224, 288): 0.04,
    (384, 256): 0.02, (256, 384): 0.02, (384, 384): 0.02, (512, 512): 0.14,
}  # fmt: skip
"""Share of the pictures painted at each (width, height)."""
CHUNK = 256


def folder(size: tuple[int, int], root: Path = DATA) -> Path:
    """Return where the pictures of one (width, height) are."""
    return root / f"{size[0]}x{size[1]}"


def write(size: tuple[int, int], count: int, seed: int, root: Path) -> None:
    """Paint `count` pictures of one size, with captions and labels; done ones are kept as they are."""
    path = folder(size, root)
    if (path / "scenes.json").exists():
        return
    path.mkdir(parents=True, exist_ok=True)
    width, height = size
    rng = np.random.default_rng([seed, width, height])
    shape = (count, height, width, 3)
    pictures = np.lib.format.open_memmap(path / "pictures.npy", "w+", np.uint8, shape)
    captions, targets = [], []
    for start in track(range(0, count, CHUNK), f"painting {width}x{height}"):
        scenes = [sample_scene(rng) for _ in range(min(CHUNK, count - start))]
        pictures[start : start + len(scenes)] = paint(scenes, width, height)
        captions += [caption(scene, rng) for scene in scenes]
        targets += [[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes]
    pictures.flush()
    (path / "scenes.json").write_text(json.dumps({"captions": captions, "labels": targets}))


def read(size: tuple[int, int], root: Path = DATA) -> tuple[np.ndarray, list[str], Tensor]:
    """Return pictures (N, H, W, 3) uint8 mapped from disk, captions, and labels (N, attributes) int64."""
    path = folder(size, root)
    scenes: dict[str, Any] = json.loads((path / "scenes.json").read_text())
    return np.load(path / "pictures.npy", mmap_mode="r"), scenes["captions"], torch.tensor(scenes["labels"])


def to_tensor(pictures: np.ndarray, half: bool = False) -> Tensor:
    """Return (N, 3, H, W) float32 in [-1, 1] from (N, H, W, 3) uint8; at half size if asked."""
    images = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return avg_pool2d(images, 2) if half else images


def crops(pictures: np.ndarray, rng: np.random.Generator, count: int, side: int, keep: int = 0) -> Tensor:
    """Return `count` random crops (count, 3, side, side) in [-1, 1], every other one from a half-size picture.

    keep: the last `keep` pictures are never used (validation).
    """
    out = []
    for k in range(count):
        half = k % 2 == 1
        size = side * (2 if half else 1)
        image = pictures[rng.integers(len(pictures) - keep)]
        y, x = rng.integers(image.shape[0] - size + 1), rng.integers(image.shape[1] - size + 1)
        out.append(to_tensor(image[None, y : y + size, x : x + size], half))
    return torch.cat(out)


def main(
    count: Annotated[int, typer.Option(help="Pictures in all.")] = 24_000,
    seed: Annotated[int, typer.Option(help="Other seeds give other scenes.")] = 0,
    root: Annotated[Path, typer.Option(help="Where to write.")] = DATA,
) -> None:
    """Paint the training pictures."""
    for size, share in SHARES.items():
        write(size, round(count * share), seed, root)


if __name__ == "__main__":
    typer.run(main)
