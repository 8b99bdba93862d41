"""Prompts with labels that `mrflow compare` and `mrflow tune` take by default: `python -m training.heldout`.

Captions that name every attribute of scenes nothing is trained on; the labels are those of the scenes. What plans
are tuned by is not what they are judged by.
"""

from __future__ import annotations

import json

from mrflow.bench.prompts import VISTA, VISTA_TUNING
from training.evaluate import prompts
from training.world import ATTRIBUTES

SETS = {VISTA: (256, 3 * 10**6), VISTA_TUNING: (64, 5 * 10**6)}
"""File: number of prompts, seed of their scenes."""


def lines(count: int, seed: int) -> list[str]:
    """Return one JSON object per prompt: its text, and a value for each attribute that applies."""
    captions, wanted = prompts(count, seed=seed)
    rows = []
    for text, indices in zip(captions, wanted.tolist(), strict=True):
        labels = {name: values[k] for (name, values), k in zip(ATTRIBUTES.items(), indices, strict=True) if k >= 0}
        rows.append(json.dumps({"prompt": text, "labels": labels}))
    return rows


def main() -> None:
    """Write the prompts into the package."""
    for path, (count, seed) in SETS.items():
        path.write_text("\n".join(lines(count, seed)) + "\n", encoding="utf-8")
        print(f"{path}: {count} prompts")


if __name__ == "__main__":
    main()
