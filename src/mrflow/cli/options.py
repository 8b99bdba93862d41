"""The options that many commands share. A name means the same as in Python.

Options are plain text and numbers here; what they may be is checked by the code that Python callers meet too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from mrflow.cli.reporting import warn
from mrflow.files import load_image
from mrflow.jobs import Asked, ask, parse_size

TARGET, WHAT, HOW, MODEL, WHERE, SHARING, RAY, OUTPUT = (
    Group.create_ordered(name)
    for name in ("Target", "What", "How", "Model", "Where and for whom", "Sharing the machine", "Ray", "Output")
)


def _to_whole(_kind: type, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    try:
        return int(text)  # cyclopts by itself would round 12.6
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no whole number.") from None


def _to_text(_kind: type, tokens: Sequence[Token]) -> str:
    text = tokens[0].value
    try:
        return os.fsencode(text).decode()  # UTF-8 also where the locale is another
    except UnicodeError:
        return text  # in the locale's own letters, or refused by whoever takes prompts


Text = Annotated[str, Parameter(converter=_to_text)]
Whole = Annotated[int, Parameter(converter=_to_whole)]
Count = Annotated[int, Parameter(converter=_to_whole, validator=Number(gte=1))]

Prompt = Annotated[Text, Parameter(required=True, help="What the picture shows; quote each prompt.")]
Negative = Annotated[
    Text | None,
    Parameter(
        alias="--negative-prompt",
        help="What it should not show. Needs classifier-free guidance.",
        group=WHAT,
        show_default="the model's",
        allow_leading_hyphen=True,
    ),
]
Size = Annotated[
    str | None,
    Parameter(
        alias="-s",
        metavar="SIZE",
        help="Pixels of the finished picture: 256, or width and height such as 320x192.",
        group=WHAT,
        show_default="the model's",
    ),
]
Seed = Annotated[
    Whole | None,
    Parameter(
        help="Of the first picture; the others take seed + 1, seed + 2, ...", group=WHAT, show_default="drawn"
    ),
]
References = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--reference",
        metavar="FILE",
        help="A picture for the model to see, such as one whose boat is meant; several times for several. FLUX.2.",
        group=WHAT,
        show_default="none",
    ),
]
NumImages = Annotated[Whole, Parameter(alias="-n", metavar="N", help="Pictures per prompt.", group=WHAT)]
# read by `app.run`, before any command
Debug = Annotated[bool, Parameter(help="Show tracebacks and the libraries' own warnings.", group=OUTPUT)]


@dataclass(frozen=True)
class Wanted:
    """The pictures that are asked for. arguments: what MrFlow's verbs take of them."""

    jobs: list[Asked]
    arguments: dict[str, Any]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What pictures to make."""

    negative: Negative = None
    size: Size = None
    seed: Seed = None
    num_images: NumImages = 1
    references: References = ()

    def of(self, prompts: Sequence[str]) -> Wanted:
        """Return the pictures of these prompts. Raises RequestError and its kin, before a model is loaded.

        Seeds are drawn here rather than by the model, so that they can stand in the names of files.
        """
        jobs = ask(list(prompts), self.negative, self.seed, self.num_images)
        width, height = parse_size(self.size)
        if len(prompts) > 1 and not any(" " in prompt.strip() for prompt in prompts):
            warn(f"{len(prompts)} prompts of one word each are taken. Quote a longer one.")
        arguments = {
            "prompt": list(prompts),
            "negative_prompt": self.negative,
            "width": width,
            "height": height,
            "seed": [job.seed for job in jobs],
            "num_images": self.num_images,
            "references": [load_image(path) for path in self.references],
        }
        return Wanted(jobs, arguments)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Drafts(Pictures):
    """What drafts to make: several, for the choice."""

    num_images: NumImages = 4


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Streams:
    """What goes to stdout and stderr.

    Args:
        json: Print one JSON object instead of paths.
    """

    json: Annotated[bool, Parameter(group=OUTPUT)] = False
    debug: Debug = False
