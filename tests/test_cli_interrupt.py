"""Ctrl-C in the middle of sampling: a real process on a real terminal, a real signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_pipe

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")

_RUN = [sys.executable, "-c", "from mrflow.cli import main; main()"]
_SAMPLE = ["generate", "lake", "--model", "tiny", "--size", "64", "--steps", "1000"]
_QUIETLY = ["--upscaler", "bicubic", "--out", "out/"]


def test_ctrl_c_stops_and_leaves_no_file(tmp_path):
    make_pipe().save_pretrained(tmp_path / "tiny")
    Path(tmp_path / "out").mkdir()
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        [*_RUN, *_SAMPLE, *_QUIETLY],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(stderr)
    try:
        read_until(terminal, b"/1000")  # the bar of the draft stage
        process.send_signal(signal.SIGINT)
        shown = read_until(terminal, b"Interrupted")
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
        os.close(terminal)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in shown
    assert list((tmp_path / "out").iterdir()) == []


def read_until(terminal: int, mark: bytes) -> bytes:
    """Return what the terminal shows up to `mark`; fails if the process ends before."""
    shown = b""
    while mark not in shown:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            pytest.fail(f"{mark!r} never came:\n{shown.decode(errors='replace')}")
    return shown
