"""`mrflow replay`: a picture made again from its own recipe, and what differs if it differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mrflow.cli.loading import ReplayModel
from mrflow.cli.options import WHAT, References, Streams
from mrflow.cli.outputs import Output, tell_json, tell_paths, write_picture
from mrflow.cli.progress import StageBars
from mrflow.cli.reporting import FAILURE, say
from mrflow.errors import RequestError
from mrflow.files import load_image, read_recipe

Differences = dict[str, tuple[object, object]]


def replay(
    picture: Path,
    /,
    *,
    original: Annotated[Path | None, Parameter(group=WHAT)] = None,
    references: References = (),
    model: ReplayModel = ReplayModel(),
    output: Output = Output(),
    streams: Streams = Streams(),
) -> int | None:
    """Make a picture again from the recipe inside it, and say what differs.

    The same pixels come out on the same machine with the same versions of the libraries. Exits with 1 if they
    differ.

    Args:
        picture: A file that mrflow wrote.
        original: The image that an enhanced picture began with.
        references: Those that it was made with.

    Examples:
      mrflow replay a-lake-at-dawn-7.png
      mrflow replay photo-enhanced.png --original photo.jpg --json
    """
    recipe = read_recipe(picture)
    before = load_image(picture)
    if original is not None:
        load_image(original)  # refused before the model is loaded
    if recipe.mode == "enhance" and original is None:
        raise RequestError(f"{picture} was made by enhancing an image. Give that image as --original.")
    from mrflow.arguments import read_references

    recipe = recipe.seeing(read_references(list(references)))
    model.check_loras([recipe])
    path = output.paths("{name}-replay.png", [recipe], [picture])[0]
    fast = model.of(recipe).load()
    with StageBars() as bars:
        result = fast.replay(recipe, original, callback=bars)
    written = write_picture(result, path, force=output.force)

    from mrflow.images import pixels_sha256

    expected = recipe.pixels_sha256 or pixels_sha256(before)
    same = result.recipes[0].pixels_sha256 == expected
    differences = recipe.differences(result.recipes[0])
    differences.pop("pixels_sha256", None)
    if streams.json:
        shown = {name: {"recorded": old, "here": new} for name, (old, new) in differences.items()}
        tell_json({"picture": written, "same_pixels": same, "differences": shown})
    else:
        tell_paths([path])
    _tell_verdict(same, differences)
    return None if same else FAILURE


def _tell_verdict(same: bool, differences: Differences) -> None:
    if same:
        say("same pixels")
        return
    say("the pixels differ", "Different", "red")
    reasons = differences or {"pixels": ("recorded", "another, though nothing recorded differs: the machine?")}
    for name, (old, new) in reasons.items():
        say(f"  {name}: {old} -> {new}")
