"""Names of the files to write, found and checked before anything is sampled.

A pattern holds {prompt} (its first words, fit for a file name), {seed}, {index} (from 1) and {name} (of the
file read), each with a format where wanted: {index:03}. Without --out, or where it is a folder, names are
made up and kept free by a number: lake-7.png, lake-7-2.png. A name that was asked for is taken as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter

from mrflow.errors import RequestError
from mrflow.files import check_output
from mrflow.jobs import Job
from mrflow.recipe import Recipe

_SLUG_LENGTH = 40  # characters; a name stays readable in a listing


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a pattern can say of one picture. name: stem of the file that it comes from, if any."""

    prompt: str
    seed: int
    index: int
    name: str = "picture"


def subjects_of(described: Sequence[Job | Recipe], sources: Sequence[Path] = ()) -> list[Subject]:
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
    asked = out is not None and not _is_folder(out)
    pattern = str(out) if asked else os.path.join(out or "", default)
    paths: list[Path] = []
    for subject in subjects:
        path = _expand(pattern, subject)
        if not asked:
            path = _free(path, companions, taken=paths)
        elif path in paths:
            raise RequestError(f"--out {out} gives {path} to two pictures. Add {{seed}} or {{index}} to it.")
        for each in (path, *(companion(path, label) for label in companions)):
            check_output(each, overwrite=force and asked)
        paths.append(path)
    return paths


def companion(path: Path, label: str) -> Path:
    """Return the name of a file that belongs to `path`: lake.png and "draft" give lake-draft.png."""
    return path.with_name(f"{path.stem}-{label}{path.suffix}")


def _is_folder(out: str) -> bool:
    return out.endswith(("/", os.sep)) or Path(out).is_dir()


def _expand(pattern: str, subject: Subject) -> Path:
    fields = asdict(subject)
    try:
        for _, field, _, _ in Formatter().parse(pattern):
            if field is not None and field not in fields:
                known = ", ".join(f"{{{name}}}" for name in fields)
                raise RequestError(f"--out {pattern} holds {{{field}}}; it may hold {known}.")
        return Path(pattern.format(**fields))
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"--out {pattern} is no pattern: {error}. Write a brace as {{{{ or }}}}.") from None


def _free(path: Path, companions: Sequence[str], taken: Sequence[Path]) -> Path:
    """Return `path`, numbered if it or one of its companions exists or is taken."""
    candidate, number = path, 1
    while candidate in taken or any(
        os.path.lexists(each) for each in (candidate, *(companion(candidate, label) for label in companions))
    ):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _slug(text: str) -> str:
    words = re.findall(r"\w+", text.lower())
    slug = ""
    for word in words:
        if slug and len(slug) + 1 + len(word) > _SLUG_LENGTH:
            break
        slug = f"{slug}-{word}" if slug else word[:_SLUG_LENGTH]
    return slug or "picture"
