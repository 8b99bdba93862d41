"""Which upscaler file, which blend of two, with which refine sigma? Asked of prompts that nothing else uses.

    python -m training.choose old.safetensors new.safetensors --blends 0.25,0.5 --sigmas 0.12,0.2
    python -m training.choose src/mrflow/vista/upscaler/vista-x2.safetensors --count 2000 --no-native

The same drafts go through all of them, and through bicubic. Distances are to fresh renders, their changes to the
first file with the first sigma, in pairs. Fine energy is relative to that, too, or to native pictures of the same
prompts and seeds if they are painted.
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
_BATCH = 256


class Judge:
    """The inspector with the statistics of fresh renders."""

    def __init__(self) -> None:
        """Load both."""
        self._network = inspector.load()
        renders = read_renders(inspector.FILE)
        self._references = Reference(renders.pictures), Reference(renders.patches)

    def __call__(self, images: list[Image.Image]) -> tuple[np.ndarray, Distance, Distance]:
        """Return fine energy (N,) and the distances of whole pictures and of patches."""
        found = []
        for start in range(0, len(images), _BATCH):
            pixels = to_tensor(images[start : start + _BATCH])
            whole, patches = features(self._network, pixels), patch_features(self._network, pixels)
            found.append((fine_energy(pixels).numpy(), whole, patches))
        fine, *seen = map(np.concatenate, zip(*found, strict=True))
        pictures, parts = (Distance.of(*pair) for pair in zip(seen, self._references, strict=True))
        return fine, pictures, parts


def shown(figure: Estimate) -> str:
    """Return a figure with its interval."""
    return "{value:.3f}, {low:.3f} to {high:.3f}".format(**figure.to_dict())


def candidates(first: Path, second: Path | None, shares: list[float]) -> dict[str, Upscaler]:
    """Return the files, networks between them (arXiv 1809.00219) with `shares` of the second, and bicubic."""
    found = {str(first): Upscaler.load(first)}
    if second is not None:
        found[str(second)] = Upscaler.load(second)
        one, two = load_file(first), load_file(second)
        for share in shares:
            path = RUN / f"{first.stem}-{second.stem}-{share:g}.safetensors"
            save_file({k: v.float().lerp(two[k].float(), share).half().contiguous() for k, v in one.items()}, path)
            found[str(path)] = Upscaler.load(path)
    return found | {"bicubic": Upscaler.load("bicubic")}


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
    second: Annotated[Path | None, typer.Argument()] = None,
    blends: Annotated[str, typer.Option(help="Shares of the second file in networks between the two.")] = "0.5",
    sigmas: Annotated[str, typer.Option(help="Noise levels of the refine pass.")] = "0.12",
    count: Annotated[int, typer.Option(help="Prompts.")] = 192,
    native: Annotated[bool, typer.Option(help="Paint native pictures, too, seconds each.")] = True,
) -> None:
    """Print a line per upscaler, not refined, and one for each sigma."""
    RUN.mkdir(parents=True, exist_ok=True)
    captions, judge, fast = prompts(count, seed=SEED)[0], Judge(), MrFlow.from_pretrained("vista")
    fast.pipe.set_progress_bar_config(disable=True)
    plan = fast.model.resolve_plan("12+1")
    drafts = [fast.draft(caption, seed=k, plan=plan)[0] for k, caption in enumerate(track(captions, "drafts"))]
    judged = {"native": judge(natives(fast, captions))} if native else {}
    base = ""
    for name, upscaler in candidates(first, second, [float(share) for share in blends.split(",")]).items():
        fast.model = replace(fast.model, upscaler=upscaler)
        for k, sigma in enumerate(sigmas.split(",")):
            result = fast.finish(drafts, plan=replace(plan, refine_sigma=float(sigma)), stages=k == 0)
            if k == 0:
                judged[f"{name}, not refined"] = judge(result.upscaled)
            judged[f"{name}, refined from {sigma}"] = judge(result.images)
            base = base or f"{name}, refined from {sigma}"
    energy, *distances = judged[base]
    reference = judged["native"][0] if native else energy
    for name, (fine, *found) in judged.items():
        ratio = estimate(np.stack([fine, reference], 1), lambda sums: sums[..., 0] / sums[..., 1])
        changes = [each.less(to) for each, to in zip(found, distances, strict=True)]
        parts = [f"{each.value:.2f} ({shown(by)})" for each, by in zip(found, changes, strict=True)]
        print(f"{name}: fine {shown(ratio)}; pictures {parts[0]}; patches {parts[1]}", flush=True)


if __name__ == "__main__":
    typer.run(main)
