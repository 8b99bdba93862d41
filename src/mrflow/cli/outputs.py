"""What is written: pictures, in files whose names are found before anything is sampled; paths or JSON on stdout.

A pattern holds {prompt} (its first words, fit for a file name), {seed}, {index} (from 1) and {name} (of the
file read), each with a format where wanted: {index:03}. Without --out, or where it is a folder, names are
made up and kept free by a number: lake-7.png, lake-7-2.png. A folder that ends in / is made. A name that was
asked for is taken as it is.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any

import regex
from cyclopts import Parameter

from mrflow.cli.options import OUTPUT
from mrflow.cli.reporting import say
from mrflow.errors import RequestError
from mrflow.files import check_output, make_folder, save_image
from mrflow.jobs import Asked
from mrflow.progress import WORDS
from mrflow.recipe import Recipe

if TYPE_CHECKING:
    from mrflow import Result

_SLUG_LENGTH = 40  # characters; a name stays readable in a listing, and below the 255 bytes of most file systems
_LETTERS = rf"(?:\X(?<=^.{{1,{_SLUG_LENGTH}}}))*"  # as many as fit, whole with their marks
_FORMAT = re.compile(r"(.?[<>^])?0?\d{0,3}(\.\d{1,3})?[dsx]?")  # of a field: a name has no room for wider ones
_DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d")  # no file's name on Windows, whatever the suffix


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """Where pictures go.

    Args:
        force: Overwrite what --out names.
    """

    out: Annotated[
        str | None,
        Parameter(
            alias="-o",
            metavar="PATTERN",
            help="File (.png, .webp, .jpg) or folder. May hold {prompt}, {seed}, {index} and {name}, the last "
            "for commands that read files. Nothing is overwritten.",
            show_default="a free name in this folder",
        ),
    ] = None
    force: bool = False

    def paths(
        self,
        default: str,
        described: Sequence[Asked | Recipe],
        sources: Sequence[Path] = (),
        *,
        companions: Sequence[str] = (),
    ) -> list[Path]:
        """Return where the pictures of these jobs or recipes go; see `plan_outputs` and `subjects_of`."""
        subjects = subjects_of(described, sources)
        return plan_outputs(self.out, default, subjects, companions=companions, force=self.force)


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class StagedOutput(Output):
    """Where pictures and their stages go.

    Args:
        stages: Save the draft and the upscaled picture too.
    """

    stages: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a pattern can say of one picture. name: stem of the file that it comes from, if any."""

    prompt: str
    seed: int
    index: int
    name: str = "picture"


def subjects_of(described: Sequence[Asked | Recipe], sources: Sequence[Path] = ()) -> list[Subject]:
    """Return one subject per job or recipe; sources: the files they come from, if any."""
    names = [path.stem for path in sources] or ["picture"] * len(described)
    return [
        Subject(prompt=_slug(one.prompt), seed=one.seed, index=index, name=name)
        for index, (one, name) in enumerate(zip(described, names, strict=True), 1)
    ]


def plan_outputs(
    out: str | None,
    default: str,
    subjects: Sequence[Subject],
    *,
    companions: Sequence[str] = (),
    force: bool = False,
) -> list[Path]:
    """Return one path per subject to which `save_image` can write now.

    out: the pattern or folder that was asked for, or None. default: the pattern of made-up names.
    companions: labels of files saved beside each, see `companion`; they must be free too.
    Raises RequestError for a pattern that makes no sense, OutputError or OutputExistsError as check_output does.
    """
    folder = out is None or out.endswith(("/", os.sep)) or os.path.isdir(out)
    literal = out.replace("{", "{{").replace("}", "}}") if out and os.path.isdir(out) else out or ""
    asked, pattern = not folder, os.path.join(literal, default) if folder else literal
    paths: list[Path] = []
    taken: set[str] = set()
    for subject in subjects:
        path = _expand(pattern, subject)
        if not asked:
            path = _free(path, companions, taken)
        files = _with_companions(path, companions)
        if not taken.isdisjoint(map(_key, files)):
            raise RequestError(f"--out {out} gives {path} to two pictures. Add {{seed}} or {{index}} to it.")
        if out and out.endswith(("/", os.sep)):
            make_folder(path.parent)
        for each in files:
            check_output(each, overwrite=force and asked)
        taken.update(map(_key, files))
        paths.append(path)
    return paths


def companion(path: Path, label: str) -> Path:
    """Return the name of a file that belongs to `path`: lake.png and "draft" give lake-draft.png."""
    return path.with_name(f"{path.stem}-{label}{path.suffix}")


def _with_companions(path: Path, labels: Sequence[str]) -> list[Path]:
    return [path, *(companion(path, label) for label in labels)]


def _key(path: Path) -> str:
    """Return what two names share that are one file on some system: upper and lower case, composed and not."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _expand(pattern: str, subject: Subject) -> Path:
    fields = asdict(subject)
    try:
        for _, field, form, conversion in Formatter().parse(pattern):
            if field is not None and field not in fields:
                known = ", ".join(f"{{{name}}}" for name in fields)
                raise RequestError(f"--out {pattern} holds {{{field}}}; it may hold {known}.")
            if conversion or not _FORMAT.fullmatch(form or ""):
                raise RequestError(f"--out {pattern:.80} writes {{{field}}} as no name is. Try {{index:03}}.")
        return Path(pattern.format(**fields))
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"--out {pattern} is no pattern: {error}. Write a brace as {{{{ or }}}}.") from None


def _free(path: Path, companions: Sequence[str], taken: Container[str]) -> Path:
    """Return `path`, numbered if it or one of its companions exists or is taken."""
    candidate, number = path, 1
    while any(_key(each) in taken or os.path.lexists(each) for each in _with_companions(candidate, companions)):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _slug(text: str) -> str:
    """Return the first words in lower case, marks and joiners with their letters, in UTF-8 whatever the locale."""
    words = regex.findall(r"(?!\p{M})\w+", unicodedata.normalize("NFC", text.lower()))
    slug = ""
    for word in words:
        if slug and len(slug) + 1 + len(word) > _SLUG_LENGTH:
            break
        slug = f"{slug}-{word}" if slug else regex.match(_LETTERS, word)[0]
    return os.fsdecode((f"{slug}_" if _DEVICE.fullmatch(slug) else slug or "picture").encode())


class Written:
    """The pictures of one call, written as soon as each is finished; describes them as JSON.

    with Written(paths) as written:
        fast(prompt, on_picture=written)

    What ends the call before its last picture leaves those that are finished, and a line on stderr that says so.
    """

    def __init__(self, paths: Sequence[Path], *, stages: Sequence[str] = (), force: bool = False) -> None:
        """Prepare to write to these paths; stages, force: as `write_picture` has them."""
        self._paths, self._stages, self._force = paths, stages, force
        self._entries: dict[int, dict[str, Any]] = {}

    def __call__(self, number: int, result: Result) -> None:
        """Write one picture."""
        self._entries[number] = write_picture(result, self._paths[number], stages=self._stages, force=self._force)

    def __enter__(self) -> Written:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say what is kept if the call did not come to its end."""
        if kind is not None and self._entries:
            last = self.entries[-1]["path"]
            say(f"{len(self._entries)} of {len(self._paths)} pictures are finished and kept; the last is {last}")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What was written, in the order of the paths."""
        return [self._entries[number] for number in sorted(self._entries)]


def write_picture(
    result: Result, path: Path, *, stages: Sequence[str] = (), force: bool = False
) -> dict[str, Any]:
    """Write a result's only picture, beside it those of these stages (draft, upscaled); describe it as JSON."""
    (image,), (recipe,) = result.images, result.recipes
    save_image(image, path, recipe, overwrite=force)
    beside = {label: companion(path, label) for label in stages}
    if "draft" in beside:
        result.drafts[0].save(beside["draft"], overwrite=force)
    if "upscaled" in beside:
        save_image(result.upscaled[0], beside["upscaled"], overwrite=force)
    return describe(path, recipe, beside)


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
    parts = ", ".join(f"{WORDS[name]} {value:.2f}" for name, value in seconds.items() if name != "total")
    say(f"{count} in {seconds['total']:.2f} s ({parts})")


def tell_paths(paths: Sequence[Path | str]) -> None:
    """Print paths on stdout, one per line."""
    for path in paths:
        print(path)


def tell_json(data: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print one JSON object on stdout. indent: None puts it on one line."""
    print(json.dumps(data, indent=indent, allow_nan=False))
