"""How far a finished picture's colours are from its draft's, with and without the colour guard.

    python benchmarks/color_guard.py                              # vista, 256 prompts
    python benchmarks/color_guard.py --prompts 32 --size 256 --share 0.0625 --share 0.25

In levels of 255, over prompts, with 95% intervals: the mean of each channel; the contrast, which is the deviation
of the brightness, of pictures as they are, at the draft's size, and of 16 x 16 cells. Fine energy (above 1/8 cycle
per pixel) is over that of the picture without the guard. Each draft is finished with every share.
The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mrflow import MrFlow
from mrflow.bench.environment import describe_environment
from mrflow.bench.prompts import VISTA, read_questions
from mrflow.metrics.intervals import mean
from mrflow.metrics.pixels import fine_energy, moments

COLUMNS = ("red", "green", "blue", "contrast", "contrast_at_draft_size", "contrast_of_cells")
CELLS = (16, 16)


def describe(pixels: Tensor, size: torch.Size) -> np.ndarray:
    """Return COLUMNS of one picture (1, 3, H, W) in [0, 1]. size: of its draft, (h, w)."""
    reduced = [adaptive_avg_pool2d(pixels, side) for side in (size, CELLS)]
    return np.array([*moments(pixels[0]), *(moments(each[0])[3] for each in reduced)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Finish each draft with every share, and print how its colours moved."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--size", type=int, help="pixels a side; the model's own unless given")
    parser.add_argument("--share", type=float, action="append", help="0.0625 unless given; may be repeated")
    parser.add_argument("--lift", default="upscaler")
    options = parser.parse_args(arguments)
    fast = MrFlow.from_pretrained("vista")
    shares = [0.0, *(options.share or [0.0625])]
    moved: dict[float, list[np.ndarray]] = {share: [] for share in shares}
    fine: dict[float, list[float]] = {share: [] for share in shares}
    for seed, question in enumerate(read_questions(VISTA, options.prompts)):
        (draft,) = fast.draft(question.prompt, seed=seed, width=options.size, height=options.size)
        size = draft.pixels.shape[-2:]
        for share in shares:
            made = fast.finish(draft, color_guard=share, lift=options.lift, output_type="pt").images
            moved[share].append(describe(made, size) - describe(draft.pixels, size))
            fine[share].append(float(fine_energy(made)[0]))
    rows = []
    for share in shares:
        change, ratio = np.array(moved[share]), np.divide(fine[share], fine[0.0])
        figures = {name: change[:, k] for k, name in enumerate(COLUMNS)}
        figures |= {f"{name}_absolute": np.abs(change[:, k]) for k, name in enumerate(COLUMNS)} | {"fine": ratio}
        estimates = {name: mean(values[:, None]).to_dict() for name, values in figures.items()}
        rows.append({"share": share, **estimates})
        print(f"{share:g}", {name: round(float(values.mean()), 3) for name, values in figures.items()})
    environment = describe_environment(fast.model.device, fast.model.dtype)
    print(
        json.dumps({"prompts": len(fine[0.0]), "lift": options.lift, "environment": environment, "shares": rows})
    )


if __name__ == "__main__":
    main()
