"""Which upscaler file, which blend of two, with which refine sigma? Asked of prompts that nothing else uses.

    python -m training.choose old.safetensors new.safetensors --blends 0.25,0.5 --sigmas 0.12,0.2
    python -m training.choose src/mrflow/vista/upscaler/vista-x2.safetensors --count 2000 --no-native

The same drafts go through all of them, and through bicubic. Distances are to fresh renders, and to native pictures
of the same prompts and seeds if they are painted; their changes to the first file with the first sigma, in pairs.
Fine energy is relative to native's, or to that one's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from mrflow.metrics.frechet import Distance, Gaussian, Reference, read_renders, renders_of
from mrflow.metrics.intervals import Estimate, estimate
from mrflow.metrics.pixels import fine_energy
from mrflow.upscaler import Upscaler
from mrflow.vista import inspector
from training.evaluate import prompts

RUN = Path("runs/choose")
SEED = 7_100_000  # of scenes that are neither trained on, nor tuned by, nor compared by
_BATCH = 256
_VIEWS = ("pictures", "patches")


@dataclass(frozen=True)
class Seen:
    """What N pictures show: fine energy (N,), features of the whole (N, D) and of patches (N, patches, D)."""

    fine: np.ndarray
    whole: np.ndarray
    patches: np.ndarray

    @classmethod
    def of(cls, network: inspector.Inspector, images: list[Image.Image]) -> Seen:
        """Look at pictures."""
        parts = []
        for start in range(0, len(images), _BATCH):
            pixels = to_tensor(images[start : start + _BATCH])
            seen = features(network, pixels), patch_features(network, pixels)
            parts.append((fine_energy(pixels).numpy(), *seen))
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def references(self) -> tuple[Reference, Reference]:
        """Return what pictures and patches of others are held against."""
        patches = self.patches.reshape(-1, self.patches.shape[-1])
        return Reference(Gaussian.of(self.whole)), Reference(Gaussian.of(patches))

    def distances(self, references: tuple[Reference, Reference]) -> tuple[Distance, Distance]:
        """Return how far pictures and patches are from others'."""
        pictures, patches = references
        return Distance.of(self.whole, pictures), Distance.of(self.patches, patches)


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
    captions, network, fast = prompts(count, seed=SEED)[0], inspector.load(), MrFlow.from_pretrained("vista")
    fast.pipe.set_progress_bar_config(disable=True)
    plan = fast.model.resolve_plan("12+1")
    renders = read_renders(inspector.FILE, renders_of(256))
    references = {"renders": (Reference(renders.pictures), Reference(renders.patches))}
    seen: dict[str, Seen] = {}
    if native:
        seen["native"] = Seen.of(network, natives(fast, captions))
        references["native"] = seen["native"].references()
    drafts = [fast.draft(caption, seed=k, plan=plan)[0] for k, caption in enumerate(track(captions, "drafts"))]
    base = ""
    for name, upscaler in candidates(first, second, [float(share) for share in blends.split(",")]).items():
        fast.model = replace(fast.model, upscaler=upscaler)
        for k, sigma in enumerate(sigmas.split(",")):
            result = fast.finish(drafts, plan=replace(plan, refine_sigma=float(sigma)), keep_upscaled=k == 0)
            if k == 0:
                seen[f"{name}, not refined"] = Seen.of(network, result.upscaled)
            refined = f"{name}, refined from {sigma}"
            seen[refined], base = Seen.of(network, result.images), base or refined
    energy = seen["native" if native else base].fine
    held = {
        to: {name: one.distances(those) for name, one in seen.items() if name != to}
        for to, those in references.items()
    }
    for name, one in seen.items():
        ratio = estimate(np.stack([one.fine, energy], 1), lambda sums: sums[..., 0] / sums[..., 1])
        print(f"{name}: fine {shown(ratio)}")
        for to, distances in held.items():
            if name == to:
                continue
            for view, each, other in zip(_VIEWS, distances[name], distances[base], strict=True):
                print(f"    {view} to {to} {each.value:.2f} ({shown(each.less(other))})")


if __name__ == "__main__":
    typer.run(main)
