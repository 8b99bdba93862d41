"""Score the shipped model: `python -m training.check --count 256`.

Prompts of scenes not trained on, the same prompts and seeds for every method, 256x256:
native 50 steps; native with fewer steps; staged 12+1; staged without refinement; staged with bicubic
upscaling. For each: the share of asked attributes that the inspector finds, sharpness relative to
native, and the Frechet distances of inspector features to fresh renders. Writes benchmarks/vista.json
and benchmarks/vista.md. A quick look; `mrflow compare` has more methods, paired intervals and speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from PIL.Image import Image
from rich.progress import track
from torch import Tensor

from mrflow import MrFlow
from mrflow.images import to_tensor
from mrflow.metrics.attributes import GROUPS, columns, features, found, hits, patch_features
from mrflow.metrics.frechet import Reference, Renders, read_renders
from mrflow.metrics.intervals import mean
from mrflow.metrics.spectrum import fine_energy
from mrflow.vista import inspector
from training.evaluate import prompts
from training.renders import fresh_renders
from training.world import ATTRIBUTES

OUT = Path("benchmarks")
Pictures = dict[str, list[Image]]


def methods(fast: MrFlow, bicubic: MrFlow) -> dict[str, Callable[[list[str], list[int]], Pictures]]:
    """Return what is compared: each takes prompts and seeds, and gives the pictures of one method or more."""

    def native(steps: int) -> Callable[[list[str], list[int]], Pictures]:
        return lambda p, s: {f"native {steps}": fast.native(p, seed=s, steps=steps).images}

    def staged(p: list[str], s: list[int]) -> Pictures:
        drafts = fast.draft(p, seed=s)  # which all three finish
        refined = fast.finish(drafts, stages=True)
        return {
            "staged 12+1": refined.images,
            "12, not refined": list(refined.upscaled),
            "12+1, bicubic": bicubic.finish(drafts).images,
        }

    return {"staged": staged, **{f"native {steps}": native(steps) for steps in (50, 12, 6)}}


def judge(images: Tensor, wanted: Tensor, network: inspector.Inspector, renders: Renders) -> dict[str, object]:
    """Return the scores of one method's pictures (B, 3, H, W) in [0, 1] for labels (B, attributes)."""
    right = hits(found(network, images), wanted.numpy())
    shares = {group: mean(right[:, columns(group)]).to_dict() for group in GROUPS}
    patches = patch_features(network, images)
    return {
        "found": shares,
        "sharpness": fine_energy(images).mean().item(),
        "frechet": Reference(renders.pictures).distance(features(network, images)),
        "patch_frechet": Reference(renders.patches).distance(patches.reshape(-1, patches.shape[-1])),
    }


def main(
    count: Annotated[int, typer.Option(help="Prompts.")] = 256,
    batch: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="staged, native 50, native 12, native 6: what to run; the others keep their last scores."
        ),
    ] = None,
) -> None:
    """Run every method and write the table."""
    captions, wanted = prompts(count, seed=3 * 10**6)
    network = inspector.load()
    renders = read_renders(inspector.FILE)
    fast = MrFlow.from_pretrained("vista", batch_size=batch)
    bicubic = MrFlow.from_pretrained("vista", upscaler="bicubic", batch_size=batch)
    file = OUT / "vista.json"
    results = json.loads(file.read_text()) if only and file.exists() else {}
    results["inspector"] = dict(renders.accuracy)
    results["renders"] = {"sharpness": fine_energy(fresh_renders(256)).mean().item()}
    OUT.mkdir(exist_ok=True)
    for name, method in methods(fast, bicubic).items():
        if only and name not in only:
            continue
        pictures: Pictures = {}
        for start in track(range(0, count, batch), name):
            part = captions[start : start + batch]
            for one, made in method(part, list(range(start, start + len(part)))).items():
                pictures.setdefault(one, []).extend(made)
        for one, made in pictures.items():
            results[one] = judge(to_tensor(made), wanted, network, renders) | {"count": count}
        file.write_text(json.dumps(results, indent=1))
    (OUT / "vista.md").write_text(table(results))


def table(results: dict[str, dict[str, object]]) -> str:
    """Return the scores as a Markdown table, a row a method."""
    names = tuple(GROUPS)
    lines = [
        "| method | " + " | ".join(names) + " | sharpness | Fréchet | of patches |",
        "|---" * (len(names) + 4) + "|",
    ]
    own = [f"{results['inspector'][name]:.3f}" for name in ATTRIBUTES]
    lines.append(f"| *inspector on fresh renders* | {' | '.join(own)} | | | | | | |")
    base = results["native 50"]["sharpness"] if "native 50" in results else 1.0
    for method, scores in results.items():
        if "found" not in scores:
            continue
        cells = [f"{scores['found'][n]['value']:.3f}" for n in ATTRIBUTES]
        cells += [
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**scores["found"][n]) for n in names[len(ATTRIBUTES) :]
        ]
        figures = (scores["sharpness"] / base, scores["frechet"], scores["patch_frechet"])
        cells += [f"{figure:.2f}" for figure in figures]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
