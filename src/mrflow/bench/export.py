"""Pictures for other people's benchmarks, written one by one and taken up again where a run was stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.bench.layouts import Item, Layout
from mrflow.bench.records import differing, read_record, write_record
from mrflow.errors import RequestError, SizeError
from mrflow.files import load_image, make_folder, save_image, write_text
from mrflow.images import make_grid
from mrflow.jobs import Size
from mrflow.plan import ABOUT

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.drafts import Result

MAX_SHEET = 16383  # pixels a side of a WebP file

Make = Callable[[str, list[int]], "Result"]
"""Makes the pictures of a prompt, one per seed."""


@dataclass(frozen=True)
class Exported:
    """What a run did. pictures: made now; kept: items that were there already; made: items written now."""

    made: int
    kept: int
    pictures: int


def check_sheet(layout: Layout, size: Size, num_images: int) -> None:
    """Raise SizeError if pictures of this size cannot go onto the layout's sheet."""
    width, height = size
    if layout.square and width != height:
        raise SizeError(f"The size is {width}x{height}; the scorer of {layout.name} cuts squares. Try {width}.")
    if layout.on_grid and num_images > 1 and 2 * max(size) > MAX_SHEET:
        raise SizeError(f"2 x 2 pictures of {width}x{height} make too large a sheet. Try a smaller --size.")


def claim(record: Path, settings: Mapping[str, Any]) -> None:
    """Write down how the pictures beside `record` are made, or check that those there were made the same way.

    Raises RequestError if they were not, OutputError if the record cannot be read or written.
    """
    before = read_record(record, "cannot be read as a record. Choose another --name.")
    if before is None:
        write_record(record, settings)
    elif names := differing(_as_meant(before), _as_meant(settings)):
        raise RequestError(f"{record} says that its pictures differ in {names}. Choose another --name.")


def _as_meant(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose plan leaves out what says nothing, as later versions write it."""
    plan = record.get("plan")
    if not isinstance(plan, Mapping):
        return dict(record)
    said = {name: value for name, value in plan.items() if name not in ABOUT or value != ABOUT[name].absent}
    return {**record, "plan": said}


def export(
    items: Sequence[Item], folder: Path, make: Make, seeds: Sequence[int], on_item: Callable[[int], None]
) -> Exported:
    """Make and write the pictures of all items that are not there yet, in order.

    folder: of all runs; the items' paths are relative to it. seeds: one per picture of an item, the same for
    each, as the benchmarks' own scripts have it. on_item: called with the number of items done, from 0.
    Files appear whole or not at all, and none is overwritten: what is there was made by an earlier run.
    """
    made = kept = pictures = 0
    for done, item in enumerate(items):
        on_item(done)
        if all(os.path.isfile(folder / path) for path in item.files):
            kept += 1
            continue
        pictures += _make_item(item, folder, make, seeds)
        made += 1
    on_item(len(items))
    return Exported(made, kept, pictures)


def hash_items(items: Sequence[Item]) -> str:
    """Return a hash of the prompts and of the files that they go to."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.prompt, *map(str, item.files)]).encode())
    return digest.hexdigest()


def _make_item(item: Item, folder: Path, make: Make, seeds: Sequence[int]) -> int:
    """Write what is missing of one item and return the number of pictures made for it."""
    wanted = [folder / path for path in item.pictures]
    missing = [k for k in range(len(seeds)) if not (wanted and os.path.isfile(wanted[k]))]
    images: dict[int, Image.Image] = {}
    if missing:
        result = make(item.prompt, [seeds[k] for k in missing])
        for k, image, recipe in zip(missing, result.images, result.recipes, strict=True):
            images[k] = image
            if wanted:
                make_folder(wanted[k].parent)
                save_image(image, wanted[k], recipe)
    if item.grid is not None and not os.path.isfile(folder / item.grid):
        panels = [images[k] if k in images else load_image(wanted[k]) for k in range(len(seeds))]
        make_folder((folder / item.grid).parent)
        save_image(make_grid(panels, columns=2, gap=0), folder / item.grid)
    if item.note is not None:
        write_text(folder / item.note[0], item.note[1])
    return len(missing)
