"""Score the shipped model: `python -m training.check --count 256`.

Prompts of scenes not trained on, the same prompts and seeds for every method, 256x256:
native 50 steps; native with fewer steps; staged 12+1; staged without refinement; staged with bicubic
upscaling. For each: the share of asked attributes that the inspector finds, sharpness relative to
native, and the Frechet distance of inspector features to fresh renders. Writes benchmarks/vista.json
and benchmarks/vista.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL.Image import Image
from rich.progress import track
from torch import Tensor

from mrflow import MrFlow
from mrflow.vista import inspector
from training.data import to_tensor
from training.evaluate import prompts
from training.inspector import accuracy
from training.world import ATTRIBUTES, paint, sample_scene

OUT = Path("benchmarks")
SCENE = ("time", "season", "mountains", "foreground", "trees", "clouds")
OBJECT = ("object", "color", "side")
Method = Callable[[list[str], list[int]], list[Image]]


def methods(fast: MrFlow, bicubic: MrFlow) -> dict[str, Method]:
    """Return what is compared: each takes prompts and seeds and gives pictures."""
    return {
        "native 50": lambda p, s: fast.native(p, seed=s, steps=50).images,
        "native 12": lambda p, s: fast.native(p, seed=s, steps=12).images,
        "native 6": lambda p, s: fast.native(p, seed=s, steps=6).images,
        "staged 12+1": lambda p, s: fast(p, seed=s).images,
        "12, not refined": lambda p, s: fast(p, seed=s, stages=True).upscaled or [],
        "12+1, bicubic": lambda p, s: bicubic(p, seed=s).images,
    }


def sharpness(images: Tensor) -> float:
    """Return the mean power above an eighth of the sampling rate of pictures (B, 3, H, W), brightness alone."""
    spectrum = torch.fft.rfft2(images.mean(1)).abs().square()
    rows, columns = torch.fft.fftfreq(images.shape[2])[:, None], torch.fft.rfftfreq(images.shape[3])[None]
    high = (rows.square() + columns.square()).sqrt() > 1 / 8
    return spectrum[:, high].mean().item()


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the Frechet distance of two sets of features (N, D), each taken as Gaussian.

    |mean gap|^2 + tr(A) + tr(B) - 2 tr(sqrt(A B)), the last by the eigenvalues of sqrt(A) B sqrt(A).
    """
    gap = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def interval(hits: NDArray[np.float64], seed: int = 0, rounds: int = 2000) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean over pictures; hits may hold NaN where nothing was asked."""
    rng = np.random.default_rng(seed)
    means = [np.nanmean(hits[rng.integers(len(hits), size=len(hits))]) for _ in range(rounds)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def judge(
    images: Tensor, wanted: Tensor, network: inspector.Inspector, reference: NDArray[np.float64]
) -> dict[str, object]:
    """Return the scores of one method's pictures (B, 3, H, W) in [-1, 1] for labels (B, attributes)."""
    found = torch.cat([network.name(part) for part in images.split(64)])
    hits = (found == wanted).double().numpy()
    hits[(wanted < 0).numpy()] = np.nan
    names = list(ATTRIBUTES)
    groups = {name: [k] for k, name in enumerate(names)}
    groups |= {"scene": [names.index(n) for n in SCENE], "object, color, side": [names.index(n) for n in OBJECT]}
    groups |= {"all": list(range(len(names)))}
    found_shares = {}
    for name, columns in groups.items():
        chosen = hits[:, columns]
        low, high = interval(chosen)
        found_shares[name] = {"mean": float(np.nanmean(chosen)), "low": low, "high": high}
    with torch.no_grad():
        features = torch.cat([network.features(part) for part in images.split(64)]).double().numpy()
    return {"found": found_shares, "sharpness": sharpness(images), "frechet": frechet(features, reference)}


def main(
    count: Annotated[int, typer.Option(help="Prompts.")] = 256,
    batch: Annotated[int, typer.Option(help="Pictures at a time.")] = 8,
    only: Annotated[
        list[str] | None, typer.Option(help="Methods to run; the others keep their last scores.")
    ] = None,
    fresh: Annotated[
        int, typer.Option(help="Fresh renders for the Frechet distance and the inspector's accuracy.")
    ] = 1000,
) -> None:
    """Run every method and write the table."""
    captions, wanted = prompts(count, seed=3 * 10**6)
    network = inspector.load()
    rng = np.random.default_rng(4 * 10**6)
    renders = torch.cat([to_tensor(paint([sample_scene(rng) for _ in range(100)])) for _ in range(fresh // 100)])
    with torch.no_grad():
        reference = torch.cat([network.features(part) for part in renders.split(64)]).double().numpy()
    fast, bicubic = MrFlow.from_pretrained("vista"), MrFlow.from_pretrained("vista", upscaler="bicubic")
    file = OUT / "vista.json"
    results = json.loads(file.read_text()) if only and file.exists() else {}
    results["inspector"] = accuracy(network, fresh)
    results["renders"] = {"sharpness": sharpness(renders)}
    OUT.mkdir(exist_ok=True)
    for name, method in methods(fast, bicubic).items():
        if only and name not in only:
            continue
        pictures = []
        for start in track(range(0, count, batch), name):
            part = captions[start : start + batch]
            pictures += method(part, list(range(start, start + len(part))))
        images = to_tensor(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        results[name] = judge(images, wanted, network, reference)
        results[name]["count"] = count
        file.write_text(json.dumps(results, indent=1))
    (OUT / "vista.md").write_text(table(results))


def table(results: dict[str, dict[str, object]]) -> str:
    """Return the scores as a Markdown table, a row a method."""
    names = (*ATTRIBUTES, "scene", "object, color, side", "all")
    lines = ["| method | " + " | ".join(names) + " | sharpness | Fréchet |", "|---" * (len(names) + 3) + "|"]
    own = [f"{results['inspector'][name]:.3f}" for name in ATTRIBUTES]
    lines.append(f"| *inspector on fresh renders* | {' | '.join(own)} | | | | | |")
    base = results["native 50"]["sharpness"] if "native 50" in results else 1.0
    for method, scores in results.items():
        if "found" not in scores:
            continue
        cells = [f"{scores['found'][n]['mean']:.3f}" for n in ATTRIBUTES]
        cells += [
            "{mean:.3f} ({low:.3f} to {high:.3f})".format(**scores["found"][n]) for n in names[len(ATTRIBUTES) :]
        ]
        lines.append(
            f"| {method} | {' | '.join(cells)} | {scores['sharpness'] / base:.2f} | {scores['frechet']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
