"""What a person is told, on stderr: warnings, errors in one line, and the exit code that goes with them."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from rich.console import Console
from rich.text import Text

from mrflow.errors import MrFlowError, MrFlowWarning, RequestError

FAILURE, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def stderr_console() -> Console:
    """Return a console on stderr; it knows about terminals, their width and NO_COLOR."""
    return Console(stderr=True, highlight=False)


def say(text: str, label: str = "", style: str = "") -> None:
    """Print a line on stderr; it is never broken in the middle, so that it can be searched and copied."""
    line = Text.assemble((f"{label}: ", f"bold {style}") if label else "", text)
    stderr_console().print(line, soft_wrap=True)


@contextmanager
def reporting(debug: bool = False) -> Iterator[None]:
    """Run a command's body: warnings become lines, errors a line and an exit code.

    debug: print the traceback above the line, and let the libraries' own warnings and logs through.
    Raises typer.Exit with 2 for what cannot be done as asked, 1 for other failures, 130 for Ctrl-C.
    """
    try:
        with _warnings_as_lines(debug):
            yield
    except KeyboardInterrupt:
        say("stopped; no half-written file is left.", "Interrupted", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    except MrFlowError as error:
        _explain(str(error), debug)
        raise typer.Exit(WRONG_USAGE if isinstance(error, RequestError) else FAILURE) from None
    except typer.Exit:
        raise
    except Exception as error:  # a bug, or a library that ran out of memory
        hint = "" if debug else " Run again with --debug for the traceback."
        _explain(f"{type(error).__name__}: {str(error).strip() or 'no message'}{hint}", debug)
        raise typer.Exit(FAILURE) from None


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Say what is repeated in every run of the body a single time."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", MrFlowWarning)
        warnings.onceregistry.clear()  # type: ignore[attr-defined]
        yield


def _explain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc(file=sys.stderr)
    say(" ".join(message.split()), "Error", "red")


@contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    if not debug:  # read by the libraries when they are imported, which happens inside
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        warnings.simplefilter("always", MrFlowWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    own = issubclass(category, MrFlowWarning)
    say(str(message) if own else f"{message} ({category.__name__}, {filename}:{lineno})", "Warning", "yellow")
