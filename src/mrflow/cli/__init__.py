"""The command line, one file per command.

stdout is data (the paths of written files, or JSON with --json); progress, warnings and errors go to stderr.
Exit codes: 0 success, 1 failure, 2 wrong usage, 130 stopped with Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line with these arguments, or those of this process, and exit."""
    _settle()
    if arguments is None:
        _heed_signals()
    try:
        from mrflow.cli.app import run

        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before a command is in charge of its own
        code = 130
    if arguments is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy: a second Ctrl-C ends it at once
    sys.exit(code)


def _settle() -> None:
    """Make the standard streams safe: those that are closed, full, nobody's any more or short of letters."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # else the next file to be opened takes its place
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":  # a path need not be text
        unicode = sys.stdout.encoding.lower() == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
    for name in ("stdout", "stderr"):
        setattr(sys, name, _Stream(getattr(sys, name)))


def _heed_signals() -> None:
    """End at SIGTERM and SIGHUP as at Ctrl-C, nothing half-written, with the signal's own exit code."""
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows has no SIGHUP
        if signal.getsignal(number) == signal.SIG_DFL:  # and nohup ignores it
            signal.signal(number, lambda number, _: sys.exit(128 + number))


class _Stream:
    """stdout or stderr, whose loss stops no picture: what it can't take goes nowhere, and `lost` says why."""

    lost: OSError | None = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., Any], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            self.lost = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
