"""Pictures in tiles against the same whole, on vista: colours, seams, memory and seconds.

    python -m benchmarks.tiles > benchmarks/tiles-vista-cpu.json

At 2 and 4 times its size held against the whole, at 8 times in tiles alone. From 4 on in levels and with the
colours kept, as `4k` has it: far beyond its own size the whole paints a grid, and shifts colours with it. Each
way runs in a process of its own, whose memory is counted from after loading to the first picture's peak;
`reckoned` is what mrflow.costs says of it before. Seams are sought in COUNT pictures together: what a single
one shows at a line is chance. The last line on stdout is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrflow.tiles import spans

SIDES, TILE, SEED = (1024, 2048), 512, 11
LARGEST = 4096
COUNT = {1024: 16, 2048: 4}  # pictures of a size, else one
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**22)}
"""Has glibc give back blocks from 4 MB on; left to itself it keeps up to .2 GB that nothing uses any more."""


def seam(pixels: Tensor, whole: Tensor, lines: Sequence[int]) -> float:
    """Return by how much the gradients across lines differ from the whole's, more than those elsewhere do.

    pixels, whole: (B, 3, h, w) of one size. lines: rows and columns, in pixels. The larger of both directions of
    |(on / on of the whole) / (off / off of the whole) - 1|, mean squared steps between neighbouring pixels, on the
    lines and beside them, and elsewhere.
    """
    found = []
    for dim in (-1, -2):
        steps = [
            each.transpose(-1, dim).double().diff(dim=-1).square().mean((0, 1, 2)) for each in (pixels, whole)
        ]
        on = torch.zeros(steps[0].numel(), dtype=torch.bool)
        for line in lines:
            on[max(line - 2, 0) : line + 1] = True
        ratio = [float(each[on].mean() / each[~on].mean()) for each in steps]
        found.append(abs(ratio[0] / ratio[1] - 1))
    return max(found)


def borders(side: int, tile: int) -> list[int]:
    """Return where vista's tiles begin and end in a picture."""
    cuts = spans(side // 16, tile // 16, max(tile // 64, 2))
    return sorted({16 * edge for cut in cuts for edge in cut} - {0, side})


def elsewhere(pixels: Tensor, whole: Tensor, lines: Sequence[int]) -> list[float]:
    """Return the same of other lines, shifted by 24 to 104 pixels: what chance makes of it, least and most."""
    side = pixels.shape[-1]
    found = [seam(pixels, whole, [(line + shift) % side for line in lines]) for shift in range(24, 105, 16)]
    return [min(found), max(found)]


def make(side: int, tile: int | str, where: str) -> dict[str, Any]:
    """Return seconds and memory of a picture, which is saved to the file `where`."""
    from mrflow import MrFlow
    from mrflow.bench.prompts import read_questions
    from mrflow.costs import estimate
    from mrflow.memory import PeakMemory
    from mrflow.plan import named_plan

    torch.set_num_threads(1)
    fast = MrFlow.from_pretrained("vista")
    doublings = (side // TILE).bit_length() - 1
    plan = replace(fast.model.resolve_plan(), tile=tile)
    if doublings > 1:
        plan = replace(plan, scales=(2,) * doublings, color_guard=named_plan("4k").color_guard)
    costs = estimate("vista", width=side, height=side, plans={"": plan}, dtype=torch.float32)
    needed = max(costs.memory(costs.ways[-1], device="cpu").values())
    reckoned = needed - sum(map(costs.weights, costs.parameters))
    fast.pipe.set_progress_bar_config(disable=True)
    gauge = PeakMemory(fast.model.device)
    gauge.reset()
    idle, seconds, memory, pictures = gauge.read() or 0, {}, {}, []
    for seed, question in enumerate(read_questions(None, COUNT.get(side, 1)), SEED):
        made = fast(question.prompt, seed=seed, width=side, height=side, plan=plan, output_type="pt")
        memory = memory or {"peak": (gauge.read() or 0) - idle, "reckoned": reckoned}
        seconds = seconds or {name: round(value, 2) for name, value in made.seconds.items()}
        pictures.append(made.images)
    torch.save(torch.cat(pictures), where)
    return {"side": side, "tile": tile, **memory, "seconds": seconds}


def main() -> None:
    """Make the pictures, compare them, and print what was found."""
    found: list[dict[str, Any]] = []
    folder = Path(tempfile.mkdtemp())
    ways = *product(SIDES, ("whole", TILE, TILE * 5 // 4)), (LARGEST, SIDES[0])
    for side, tile in ((TILE, "whole"), *ways):
        where = str(folder / f"{side}-{tile}.pt")
        call = [sys.executable, "-m", "benchmarks.tiles", str(side), str(tile), where]
        ended = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ALLOCATOR)
        found.append(json.loads(ended.stdout.splitlines()[-1]))
        if side == LARGEST:
            continue
        made, whole = torch.load(where), torch.load(folder / f"{side}-whole.pt")
        change = made - whole
        found[-1]["mean levels"] = float(change.mean((-1, -2)).abs().max() * 255)
        found[-1]["rms levels"] = float(change.square().mean().sqrt() * 255)
        found[-1]["seam"] = 0.0 if tile == "whole" else seam(made, whole, borders(side, int(tile)))
        found[-1]["elsewhere"] = [] if tile == "whole" else elsewhere(made, whole, borders(side, int(tile)))
        print(json.dumps(found[-1]), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        tile = sys.argv[2]
        print(json.dumps(make(int(sys.argv[1]), int(tile) if tile.isdigit() else tile, sys.argv[3])))
    else:
        main()
