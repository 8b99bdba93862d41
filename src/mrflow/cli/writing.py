"""Writing pictures, and saying on stdout what was written: paths, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from mrflow.cli.outputs import companion
from mrflow.cli.progress import STAGE_NAMES
from mrflow.cli.reporting import say
from mrflow.files import save_image

if TYPE_CHECKING:
    from mrflow import Recipe, Result


class Written:
    """The pictures of one call, written as soon as each is finished; describes them as JSON.

    with Written(paths) as written:
        fast(prompt, on_picture=written)

    What ends the call before its last picture leaves those that are finished, and a line on stderr that says so.
    """

    def __init__(self, paths: Sequence[Path], *, stages: Sequence[str] = (), force: bool = False) -> None:
        """Prepare to write to these paths; stages, force: as `write_result` has them."""
        self._paths, self._stages, self._force = paths, stages, force
        self._entries: dict[int, dict[str, Any]] = {}

    def __call__(self, number: int, result: Result) -> None:
        """Write one picture."""
        path = self._paths[number]
        self._entries[number] = write_result(result, [path], stages=self._stages, force=self._force)[0]

    def __enter__(self) -> Written:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say what is kept if the call did not come to its end."""
        if kind is not None and self._entries:
            last = self.entries[-1]["path"]
            say(f"{len(self._entries)} of {len(self._paths)} pictures are finished and kept; the last is {last}")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What was written, in the order of the paths."""
        return [self._entries[number] for number in sorted(self._entries)]


def write_result(
    result: Result, paths: Sequence[Path], *, stages: Sequence[str] = (), force: bool = False
) -> list[dict[str, Any]]:
    """Write the pictures, and those of the named stages (draft, upscaled) beside them; describe each as JSON."""
    entries = []
    for k, (image, recipe, path) in enumerate(zip(result.images, result.recipes, paths, strict=True)):
        save_image(image, path, recipe, overwrite=force)
        beside = {label: companion(path, label) for label in stages}
        if "draft" in beside:
            result.drafts[k].save(beside["draft"], overwrite=force)
        if "upscaled" in beside:
            save_image(result.upscaled[k], beside["upscaled"], overwrite=force)
        entries.append(describe(path, recipe, beside))
    return entries


def describe(path: Path, recipe: Recipe, stages: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Return a written picture as JSON: path, stages (label to path) and recipe."""
    return {
        "path": str(path),
        "stages": {label: str(each) for label, each in (stages or {}).items()},
        "recipe": json.loads(recipe.to_json()),
    }


def tell_pictures(pictures: Sequence[dict[str, Any]], seconds: Mapping[str, float], *, as_json: bool) -> None:
    """Say which pictures were written on stdout, and on stderr how long it took."""
    if as_json:
        tell_json({"pictures": list(pictures), "seconds": dict(seconds)})
    else:
        for picture in pictures:
            tell_paths([picture["path"], *picture["stages"].values()])
    count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    parts = ", ".join(f"{STAGE_NAMES[name]} {value:.2f}" for name, value in seconds.items() if name != "total")
    say(f"{count} in {seconds['total']:.2f} s ({parts})")


def tell_paths(paths: Sequence[Path | str]) -> None:
    """Print paths on stdout, one per line."""
    for path in paths:
        typer.echo(path)


def tell_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))
