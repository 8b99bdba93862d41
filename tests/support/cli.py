"""The command line run in this process, as a user's shell would run it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from mrflow.cli import main


@dataclass(frozen=True)
class Result:
    """What a command left. output: both streams, in the order in which they were written."""

    exit_code: int
    stdout: str
    stderr: str
    output: str


class _Tee(io.StringIO):
    """A stream that is also written into another."""

    def __init__(self, other: io.StringIO) -> None:
        super().__init__()
        self._other = other

    def write(self, text: str) -> int:
        self._other.write(text)
        return super().write(text)


def invoke(
    arguments: Sequence[str | Path], input: str | None = None, env: Mapping[str, str] | None = None
) -> Result:
    """Run `mrflow` with these arguments. input: what stands on stdin. env: variables set meanwhile."""
    both = io.StringIO()
    stdout, stderr = _Tee(both), _Tee(both)
    stdin = io.TextIOWrapper(io.BytesIO((input or "").encode()), encoding="utf-8")
    with (
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        mock.patch.object(sys, "stdin", stdin),
        mock.patch.dict(os.environ, env or {}),
    ):
        try:
            main([str(each) for each in arguments])
        except SystemExit as ended:
            code = ended.code
    return Result(int(code or 0), stdout.getvalue(), stderr.getvalue(), both.getvalue())
