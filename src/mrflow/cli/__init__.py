"""The command line: `mrflow generate`, `draft`, `finish`, `enhance`, `replay` and `models`.

One file per command. stdout is data (the paths of written files, or JSON with --json); progress, warnings and
errors go to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line with the arguments of this process."""
    try:
        from mrflow.cli.app import app

        app(prog_name="mrflow")
    except KeyboardInterrupt:  # before a command is in charge of its own
        sys.exit(130)
