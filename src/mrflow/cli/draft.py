"""`mrflow draft`: many cheap drafts, to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from PIL import Image, ImageDraw, ImageFont

from mrflow.cli.loading import DraftModel
from mrflow.cli.options import OUTPUT, Drafts, Prompt, Streams
from mrflow.cli.outputs import Output, describe, tell_paths, tell_pictures
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import StageBars
from mrflow.errors import RequestError
from mrflow.files import check_output, save_image
from mrflow.images import make_grid

_CAPTION = 16  # pixels below each draft of a contact sheet


def draft(
    *prompt: Prompt,
    drafts: Drafts = Drafts(),
    plans: PlanOptions = PlanOptions(),
    model: DraftModel = DraftModel(),
    output: Output = Output(),
    grid: Annotated[Path | None, Parameter(metavar="FILE.png", group=OUTPUT)] = None,
    streams: Streams = Streams(),
) -> None:
    """Make many cheap drafts to choose from; 'mrflow finish' makes the chosen ones large.

    A draft carries its recipe, the finished size and the refine pass included.

    Args:
        grid: Put all drafts on a contact sheet, too, each with its seed below.

    Examples:
      mrflow draft "a snowy lake at sunset with a red hot air balloon" -n 8 --grid sheet.png
      mrflow draft "a meadow at dawn" "a beach at night" --size 320x192 --out drafts/
      mrflow finish a-meadow-at-dawn-7-draft.png
    """
    wanted = drafts.of(prompt)
    paths = output.paths("{prompt}-{seed}-draft.png", wanted.jobs)
    if grid is not None:
        if grid in paths:
            raise RequestError(f"--grid and --out both name {grid}. Give the sheet a name of its own.")
        check_output(grid, overwrite=output.force)
    fast = model.load()
    with StageBars() as bars:
        made = fast.draft(**wanted.arguments, plan=plans.resolve(fast), callback=bars)
    pictures = [
        describe(each.save(path, overwrite=output.force), each.recipe)
        for each, path in zip(made, paths, strict=True)
    ]
    if grid is not None:
        sheet = make_grid([_captioned(each.image, f"seed {each.recipe.seed}") for each in made])
        save_image(sheet, grid, overwrite=output.force)
    tell_pictures(pictures, made.seconds, as_json=streams.json)
    if grid is not None and not streams.json:
        tell_paths([grid])


def _captioned(image: Image.Image, text: str) -> Image.Image:
    """Return the picture with a white strip below that holds the text."""
    sheet = Image.new("RGB", (image.width, image.height + _CAPTION), "white")
    sheet.paste(image, (0, 0))
    ImageDraw.Draw(sheet).text((2, image.height + 1), text, "black", ImageFont.load_default(_CAPTION - 4))
    return sheet
