"""What a person is told, on stderr above all: lines, warnings among them. And the exit codes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import TextWrapper
from typing import Any

from rich.console import Console
from rich.text import Text

from mrflow.errors import MrFlowWarning

FAILURE, WRONG_USAGE, INTERRUPTED = 1, 2, 130
_FILE_WIDTH = 1000


def stderr_console() -> Console:
    """Return a console on stderr; it knows about terminals, their width and NO_COLOR."""
    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """Return one on stdout. In a file or a pipe its lines are long, for names are looked for there."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


def hang(console: Console, head: str, text: str) -> str:
    """Return both in lines of the console's width, further ones below the text; no word or number is broken."""
    lines = TextWrapper(
        max(console.width, 40), subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines.wrap(head + text))


def say(text: str, label: str = "", style: str = "") -> None:
    """Print a line on stderr; it is never broken in the middle, so that it can be searched and copied."""
    line = Text.assemble((f"{label}: ", f"bold {style}") if label else "", text)
    stderr_console().print(line, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning as a line on stderr."""
    say(text, "Warning", "yellow")


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Say what is repeated in every run of the body a single time."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", MrFlowWarning)
        warnings.onceregistry.clear()  # type: ignore[attr-defined]
        yield


@contextmanager
def warnings_as_lines(debug: bool) -> Iterator[None]:
    """Turn the warnings of the body into lines. debug: also those of the libraries, and their logs."""
    if not debug:  # read by the libraries when they are imported, which happens inside
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which wants another package on a CPU
        os.environ.setdefault("TORCH_LOGS", "-all")  # torch 2.14 has words for torchao's enumerations
    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        warnings.simplefilter("always", MrFlowWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    own = issubclass(category, MrFlowWarning)
    warn(str(message) if own else f"{message} ({category.__name__}, {filename}:{lineno})")
