"""The command line, one file per command.

stdout is data (the paths of written files, or JSON with --json); progress, warnings and errors go to stderr.
Exit codes: 0 success, 1 failure, 2 wrong usage, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line with these arguments, or those of this process, and exit."""
    try:
        from mrflow.cli.app import run

        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before a command is in charge of its own
        code = 130
    sys.exit(code)
