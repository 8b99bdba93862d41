"""Which upscaler file, which blend of two, with which refine sigma? Asked of prompts that nothing else uses.

    python -m training.choose old.safetensors new.safetensors --blends 0,0.25,0.5 --sigmas 0.12,0.2

The same drafts go through all of them. Fine energy is relative to native pictures of the same prompts and seeds
(with --no-native to pictures not refined), distances are to fresh renders, with changes to pictures not refined.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file

from mrflow import MrFlow
from mrflow.files import load_image, save_image
from mrflow.images import to_tensor
from mrflow.metrics.attributes import features, patch_features
from mrflow.metrics.frechet import Distance, Reference, read_renders
from mrflow.metrics.intervals import Estimate, estimate
from mrflow.metrics.spectrum import fine_energy
from mrflow.upscaler import Upscaler
from mrflow.vista import inspector
from training.evaluate import prompts

RUN = Path("runs/choose")
SEED = 7_100_000  # of scenes that are neither trained on, nor tuned by, nor compared by


class Judge:
    """The inspector with the statistics of fresh renders."""

    def __init__(self) -> None:
        """Load both."""
        self._network = inspector.load()
        renders = read_renders(inspector.FILE)
        self._references = Reference(renders.pictures), Reference(renders.patches)

    def __call__(self, images: list[Image.Image]) -> tuple[np.ndarray, Distance, Distance]:
        """Return fine energy (N,) and the distances of whole pictures and of patches."""
        pixels = to_tensor(images)
        whole, patches = features(self._network, pixels), patch_features(self._network, pixels)
        pictures, parts = self._references
        return fine_energy(pixels).numpy(), Distance.of(whole, pictures), Distance.of(patches, parts)


def shown(figure: Estimate) -> str:
    """Return a figure with its interval."""
    return "{value:.3f}, {low:.3f} to {high:.3f}".format(**figure.to_dict())


def blend(first: Path, second: Path, share: float) -> Path:
    """Write a network between two (arXiv 1809.00219) with `share` of the second. Returns its file."""
    one, two = load_file(first), load_file(second)
    path = RUN / f"{first.stem}-{second.stem}-{share:g}.safetensors"
    save_file({k: v.float().lerp(two[k].float(), share).half().contiguous() for k, v in one.items()}, path)
    return path


def natives(fast: MrFlow, captions: list[str]) -> list[Image.Image]:
    """Return native pictures, kept between calls of equal weights and count; another count has other prompts."""
    images = []
    for k, caption in enumerate(track(captions, "native")):
        path = RUN / f"native-{fast.model.revision}-{len(captions)}-{k}.png"
        if not path.exists():
            result = fast.native(caption, seed=k)
            save_image(result.images[0], path, result.recipes[0])
        images.append(load_image(path))
    return images


def main(
    first: Path,
    second: Path,
    blends: Annotated[str, typer.Option(help="Shares of the second file.")] = "0,0.5,1",
    sigmas: Annotated[str, typer.Option(help="Noise levels of the refine pass.")] = "0.12,0.2",
    count: Annotated[int, typer.Option(help="Prompts.")] = 192,
    native: Annotated[bool, typer.Option(help="Paint native pictures, too, seconds each.")] = True,
) -> None:
    """Print a line per blend, not refined, and one for each sigma."""
    RUN.mkdir(parents=True, exist_ok=True)
    captions, judge, fast = prompts(count, seed=SEED)[0], Judge(), MrFlow.from_pretrained("vista")
    fast.pipe.set_progress_bar_config(disable=True)
    plan = fast.model.resolve_plan("12+1")
    drafts = [fast.draft(caption, seed=k, plan=plan)[0] for k, caption in enumerate(track(captions, "drafts"))]
    whole = None
    if native:
        whole, *distances = judge(natives(fast, captions))
        print("native", *(f"{each.value:.2f}" for each in distances), flush=True)
    for share in map(float, blends.split(",")):
        fast.model = replace(fast.model, upscaler=Upscaler.load(blend(first, second, share)))
        judged = {}
        for sigma in sigmas.split(","):
            result = fast.finish(drafts, plan=replace(plan, refine_sigma=float(sigma)), stages=True)
            if not judged:
                judged["not refined"] = judge(result.upscaled)
            judged[sigma] = judge(result.images)
        before = judged["not refined"]
        for name, (fine, *distances) in judged.items():
            rows = np.stack([fine, before[0] if whole is None else whole], 1)
            ratio = estimate(rows, lambda sums: sums[..., 0] / sums[..., 1])
            changes = [each.less(base) for each, base in zip(distances, before[1:], strict=True)]
            parts = [f"{each.value:.2f} ({shown(by)})" for each, by in zip(distances, changes, strict=True)]
            print(f"{share:g}", name, f"fine {shown(ratio)}", *parts, sep="  ", flush=True)


if __name__ == "__main__":
    typer.run(main)
