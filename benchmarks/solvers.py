"""How near a draft of few steps comes to one of many, with each solver, and what the inspector finds in it.

    python benchmarks/solvers.py                 # vista, 16 prompts that nothing is judged by, drafts of 256x256
    python benchmarks/solvers.py --prompts 64 --steps 4 --steps 6

Guided in every step, so that all drafts of a seed follow one path: a draft of many steps of the pipeline's own
scheduler stands for its end. The distance is the root mean square over pixels in [0, 1].
The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrflow import MrFlow, Plan
from mrflow.bench.environment import describe_environment
from mrflow.bench.prompts import VISTA_TUNING, Question, read_questions
from mrflow.metrics.attributes import as_indices, asked, found, hits
from mrflow.plan import ABOUT, OWN
from mrflow.vista import inspector

BATCH = 16


def draw(fast: MrFlow, questions: Sequence[Question], steps: int, solver: str) -> Tensor:
    """Return the drafts' pixels (B, 3, h, w), guided throughout."""
    plan = Plan(steps=steps, guidance_stop=1.0, solver=solver)
    made = fast.draft([each.prompt for each in questions], seed=range(len(questions)), plan=plan)
    return torch.cat([draft.pixels for draft in made])


def judge(pixels: Tensor, end: Tensor, questions: Sequence[Question]) -> dict[str, Any]:
    """Return how far the drafts are from `end`, and how many of the attributes asked for are found."""
    wanted = as_indices([asked(each.prompt, each.labels) for each in questions])
    marks = hits(found(inspector.load(), pixels), wanted)
    distance = float((pixels - end).square().mean().sqrt())
    return {"distance": round(distance, 4), "found": int(np.nansum(marks)), "of": int((wanted >= 0).sum())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw with each solver and number of steps, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, action="append", help="6, 8 and 12 unless given; may be repeated")
    parser.add_argument("--many", type=int, default=60, help="steps of the draft that stands for the path's end")
    options = parser.parse_args(arguments)
    fast = MrFlow.from_pretrained("vista", batch_size=BATCH)
    questions = read_questions(VISTA_TUNING, options.prompts)
    end = draw(fast, questions, options.many, OWN)
    rows = [{"steps": options.many, "solver": OWN, **judge(end, end, questions)}]
    for steps in options.steps or (6, 8, 12):
        for solver in ABOUT["solver"].choices:
            rows.append(
                {"steps": steps, "solver": solver, **judge(draw(fast, questions, steps, solver), end, questions)}
            )
            print(rows[-1], flush=True)
    environment = describe_environment(fast.model.device, fast.model.dtype)
    print(json.dumps({"environment": environment, "prompts": len(questions), "drafts": rows}))


if __name__ == "__main__":
    main()
