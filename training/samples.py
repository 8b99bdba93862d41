"""Pictures of a pipeline's folder, to look at: six fixed prompts and seeds, natively and staged.

python -m training.samples runs/flow/export --sheet runs/flow/sheet.png
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import FluxPipeline
from PIL import Image

from mrflow import MrFlow, Plan, vista
from mrflow.upscaler import Upscaler
from training.flow_model import WEIGHTS

_STUDENT = Plan(steps=4, true_cfg_scale=1.0, solver="own")
METHODS: dict[str, tuple[int | None, Plan | str | None]] = {
    "native 50": (50, None),
    "native 25 UniPC": (25, Plan(solver="unipc")),
    "native 6 UniPC": (6, Plan(solver="unipc")),
    "12+1": (None, "12+1"),
    "student 4": (4, _STUDENT),
    "student 4+1": (None, _STUDENT),
}
"""What can be painted: steps of a native picture, None for a staged one, and a plan."""
PROMPTS = (
    "a green meadow at noon with mountains, a few round trees and a red house on the left under a clear sky",
    "a snowy lake at night with hills, many pine trees and a white house on the right under a clear sky",
    "a sandy beach at sunset with a blue sailing boat on the left under a cloudy sky",
    "an autumn lake at dawn with jagged mountains, many round trees and a purple sailing boat on the right",
    "desert dunes at night with hills and a yellow hot air balloon on the left under a clear sky",
    "a green field at dawn with many round trees and a green balloon on the right under clouds",
)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> MrFlow:
    """Return vista with the weights of another folder."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return MrFlow(pipe, Upscaler.load(str(vista.upscaler())), defaults=vista.DEFAULTS["vista"])


def paint(fast: MrFlow, method: str, captions: list[str], side: int = 256) -> Iterator[Image.Image]:
    """Yield a picture of each caption by one of METHODS; the seed is its place in the list."""
    steps, plan = METHODS[method]
    for seed, caption in enumerate(captions):
        if steps is not None:
            result = fast.native(caption, seed=seed, steps=steps, plan=plan, width=side, height=side)
        else:
            result = fast(caption, seed=seed, plan=plan, width=side, height=side)
        yield result.images[0]


def main(
    folder: Annotated[Path, typer.Argument(help="A pipeline's folder.")] = WEIGHTS,
    methods: Annotated[str, typer.Option(help="Rows of the sheet, of METHODS.")] = "native 25 UniPC,12+1",
    side: Annotated[int, typer.Option(help="Pixels of a side.")] = 256,
    sheet: Annotated[Path, typer.Option(help="Where to draw the pictures.")] = Path("runs/samples.png"),
) -> None:
    """Draw a contact sheet, a row a method."""
    fast, names = load(folder), methods.split(",")
    page = Image.new("RGB", (side * len(PROMPTS), side * len(names)))
    for row, name in enumerate(names):
        for column, image in enumerate(paint(fast, name, list(PROMPTS), side)):
            page.paste(image, (side * column, side * row))
    page.save(sheet)
    print(sheet)


if __name__ == "__main__":
    typer.run(main)
