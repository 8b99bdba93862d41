"""`mrflow replay`: a picture made again from its own recipe, and what differs if it differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrflow.cli import options
from mrflow.cli.loading import ModelOptions
from mrflow.cli.outputs import plan_outputs, subjects_of
from mrflow.cli.progress import StageBars
from mrflow.cli.reporting import FAILURE, reporting, say
from mrflow.cli.writing import tell_json, tell_paths, write_result
from mrflow.errors import RequestError
from mrflow.files import load_image, read_recipe
from mrflow.known_upscalers import KNOWN
from mrflow.recipe import Recipe

Differences = dict[str, tuple[object, object]]

_INTERPOLATIONS = ("bicubic", "bilinear")


def replay(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A file that mrflow wrote.", show_default=False)
    ],
    original: Annotated[
        Path | None,
        typer.Option("--original", help="The image that an enhanced picture began with.", rich_help_panel="What"),
    ] = None,
    model: options.RecordedModel = None,
    upscaler: options.RecordedUpscaler = None,
    device: options.RecordedDevice = None,
    dtype: options.RecordedDtype = None,
    out: options.Out = None,
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make a picture again from the recipe inside it, and say what differs.

    The same pixels come out on the same machine with the same versions of the libraries. Exits with 1 if they
    differ.

    Examples:
      mrflow replay a-lake-at-dawn-7.png
      mrflow replay photo-enhanced.png --original photo.jpg --json
    """
    with reporting(debug):
        recipe = read_recipe(picture)
        before = load_image(picture)
        start = load_image(original) if original is not None else None
        if recipe.mode == "enhance" and start is None:
            raise RequestError(f"{picture} was made by enhancing an image. Give that image as --original.")
        path = plan_outputs(out, "{name}-replay.png", subjects_of([recipe], [picture]), force=force)[0]
        fast = _model_options(recipe, model, upscaler, device, dtype).load()
        with StageBars() as bars:
            result = fast.replay(recipe, start, callback=bars)
        written = write_result(result, [path], force=force)[0]

        from mrflow.images import pixels_sha256

        expected = recipe.pixels_sha256 or pixels_sha256(before)
        same = result.recipes[0].pixels_sha256 == expected
        differences = recipe.differences(result.recipes[0])
        differences.pop("pixels_sha256", None)
        if as_json:
            shown = {name: {"recorded": old, "here": new} for name, (old, new) in differences.items()}
            tell_json({"picture": written, "same_pixels": same, "differences": shown})
        else:
            tell_paths([path])
        _tell_verdict(same, differences)
        if not same:
            raise typer.Exit(FAILURE)


def _model_options(
    recipe: Recipe, model: str | None, upscaler: str | None, device: str | None, dtype: str | None
) -> ModelOptions:
    """Return what the recipe was made with, where the options do not say otherwise."""
    if upscaler is None:
        upscaler = _recorded_upscaler(recipe)
    return ModelOptions(
        model=model or recipe.model,
        recorded=model is None,
        upscaler=upscaler,
        device=device or recipe.device,
        dtype=dtype or recipe.dtype,
    )


def _recorded_upscaler(recipe: Recipe) -> str | None:
    if recipe.upscaler is None or recipe.upscaler in (*_INTERPOLATIONS, *KNOWN):
        return recipe.upscaler or "bicubic"  # drafts and native pictures are not upscaled: any will do
    if recipe.model == "vista":
        return None  # its own
    raise RequestError(f"The picture was upscaled with {recipe.upscaler}. Give that file as --upscaler.")


def _tell_verdict(same: bool, differences: Differences) -> None:
    if same:
        say("same pixels")
    else:
        reasons = differences or {"pixels": ("recorded", "another, though nothing recorded differs: the machine?")}
        say("the pixels differ", "Different", "red")
        for name, (old, new) in reasons.items():
            say(f"  {name}: {old} -> {new}")
