"""How much nearer to the native picture of its seed a plan's picture is than another plan's.

    mrflow compare native 12+1 12+1:noise=own --no-equal-time --out compare-vista
    python -m benchmarks.same_seed compare-vista

Over the prompts of a comparison, with 95% intervals, the gain in pairs: PSNR in dB and SSIM to the pictures
of the first method, at full size and averaged down by two. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from mrflow.bench.ledger import picture_file, read_course
from mrflow.errors import RequestError
from mrflow.files import load_image
from mrflow.metrics.intervals import mean
from mrflow.metrics.pixels import psnr, ssim

FIGURES = ("psnr", "ssim", "psnr_averaged_down", "ssim_averaged_down")


def likeness(image: Image.Image, other: Image.Image) -> list[float]:
    """Return FIGURES of two pictures of one size."""
    pairs = [(image, other), (image.reduce(2), other.reduce(2))]
    return [float(figure(*pair) or np.nan) for pair in pairs for figure in (psnr, ssim)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print each method's likeness to the first one's pictures, and its gain on the other's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what mrflow compare wrote to")
    parser.add_argument("--method", default="12+1")
    parser.add_argument("--than", default="12+1:noise=own")
    options = parser.parse_args(arguments)
    names, folder = (read_course(options.folder) or {}).get("methods", []), options.folder
    wanted = [*names[:1], options.method, options.than]
    if missing := [name for name in wanted if name not in names]:
        raise RequestError(f"{folder} has no method {', '.join(missing)}. It has {', '.join(names) or 'none'}.")
    count = sum(1 for _ in picture_file(folder, names[0], 0).parent.glob("*.png"))
    there = [k for k in range(count) if all(picture_file(folder, name, k).is_file() for name in wanted)]
    found: dict[str, list[list[float]]] = {name: [] for name in wanted[1:]}
    for k in track(there, "comparing"):
        native, *others = (load_image(picture_file(folder, name, k)) for name in wanted)
        for name, image in zip(found, others, strict=True):
            found[name].append(likeness(image, native))
    rows = {name: np.array(each) for name, each in found.items()}
    rows["gain"] = rows[options.method] - rows[options.than]
    figures = {
        name: {figure: mean(each[:, [k]]).to_dict() for k, figure in enumerate(FIGURES)}
        for name, each in rows.items()
    }
    for name, each in figures.items():
        print(name, {figure: [round(value, 3) for value in values.values()] for figure, values in each.items()})
    print(json.dumps({"prompts": len(there), "figures": figures}))


if __name__ == "__main__":
    main()
