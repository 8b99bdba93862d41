"""Put pictures of a comparison side by side, a row a method: for pages that show them.

python -m tools.picture_grid compare-vista native 12+1 --items 0,3,7 --side 256 --out docs/images/same-seed.png

The method "render" is the scene that vista's own prompt is the caption of, as its world paints it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from mrflow.bench.ledger import picture_file
from mrflow.bench.prompts import VISTA
from mrflow.files import load_image, save_image

GAP = 4  # pixels between pictures


def main() -> None:
    """Write the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what mrflow compare wrote")
    parser.add_argument("methods", nargs="+", help="a row each")
    parser.add_argument("--items", default="0,1,2", help="numbers of the pictures, a column each")
    parser.add_argument("--side", type=int, default=256, help="pixels of the longer side of each")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    items = [int(number) for number in asked.items.split(",")]
    rows = [
        renders(items, asked.side)
        if method == "render"
        else [load_image(picture_file(asked.folder, method, item)) for item in items]
        for method in asked.methods
    ]
    save_image(grid(rows, asked.side), asked.out, overwrite=True)


def renders(items: list[int], side: int) -> list[Image.Image]:
    """Return the scenes of vista's own prompts by number, painted by the renderer, square."""
    from training.evaluate import scenes
    from training.heldout import SETS
    from training.world import paint

    world = scenes(*SETS[VISTA])
    return [Image.fromarray(each) for each in paint([world[item] for item in items], side, side)]


def grid(rows: list[list[Image.Image]], side: int) -> Image.Image:
    """Return pictures of one size in rows, each made smaller to `side`, on white."""
    rows = [[image.copy() for image in row] for row in rows]
    for image in (image for row in rows for image in row):
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    width, height = (length + GAP for length in rows[0][0].size)
    page = Image.new("RGB", (width * len(rows[0]) - GAP, height * len(rows) - GAP), "white")
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            page.paste(image, (width * across, height * down))
    return page


if __name__ == "__main__":
    main()
