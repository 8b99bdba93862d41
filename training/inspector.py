"""The inspector's training: a network learns to say what a picture shows.

python -m training.inspector --minutes 5
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from mrflow.vista.inspector import FILE, SIDE, Inspector
from training.data import read, to_tensor
from training.optim import Average, make_optimizers, set_lr
from training.track import Log
from training.world import ATTRIBUTES, labels, paint, sample_scene


def worsen(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return pictures (B, 3, SIDE, SIDE) with the flaws of a generated one: blur, noise, a wrong exposure."""
    count = len(images)
    small = interpolate(interpolate(images, scale_factor=0.5, mode="area"), (SIDE, SIDE), mode="bilinear")
    blur = torch.rand(count, 1, 1, 1, generator=rng) * 0.8
    gain = 1 + 0.15 * torch.randn(count, 1, 1, 1, generator=rng)
    shift = 0.05 * torch.randn(count, 3, 1, 1, generator=rng)
    noise = 0.06 * torch.rand(count, 1, 1, 1, generator=rng) * torch.randn(images.shape, generator=rng)
    return (((1 - blur) * images + blur * small) * gain + shift + noise).clamp(-1, 1)


@torch.no_grad()
def accuracy(
    inspector: Inspector, count: int = 1000, seed: int = 10**6, size: tuple[int, int] = (256, 256)
) -> dict[str, float]:
    """Return the share of fresh renders named rightly, attribute by attribute (only where it applies)."""
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for start in range(0, count, 100):
        scenes = [sample_scene(rng) for _ in range(min(100, count - start))]
        names = inspector.name(to_tensor(paint(scenes, *size)))
        for scene, found in zip(scenes, names, strict=True):
            for k, (name, wanted) in enumerate(labels(scene).items()):
                if wanted >= 0:
                    right[name].append(int(found[k]) == wanted)
    return {name: sum(values) / len(values) for name, values in right.items()}


def main(
    minutes: Annotated[float, typer.Option(help="Training time.")] = 5,
    count: Annotated[int, typer.Option(help="Pictures to learn from.")] = 8000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option(help="Where to write it.")] = FILE,
) -> None:
    """Train the inspector on painted pictures and write it."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    pictures, _, targets = read((256, 256))
    pictures = pictures[:count]
    small = torch.cat(
        [interpolate(to_tensor(pictures[i : i + 64]), (SIDE, SIDE), mode="bilinear", antialias=True).half()
         for i in range(0, len(pictures), 64)]
    )  # fmt: skip
    inspector = Inspector().to(memory_format=torch.channels_last)
    kernels = [p for p in inspector.body.parameters() if p.ndim == 4]
    optimizers = make_optimizers(inspector, kernels, 1e-3, 2e-3, 0.01)
    average = Average(inspector, 0.99)
    log = Log("inspector")
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (minutes * 60)) < 1:
        set_lr(optimizers, step, progress, 50, 0.7)
        chosen = torch.randint(len(small), (64,), generator=rng)
        logits = inspector(worsen(small[chosen].float(), rng))
        loss = sum(
            cross_entropy(x, targets[chosen, k], ignore_index=-1, label_smoothing=0.02)
            for k, x in enumerate(logits)
        )
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        average.update(inspector)
        step += 1
        log.mean({"loss": loss.item()})
        if step % 200 == 0:
            log.write(step, {})
    found = accuracy(average.model)
    log.write(step, found)
    state = average.model.to(memory_format=torch.contiguous_format).state_dict()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, out)


if __name__ == "__main__":
    typer.run(main)
