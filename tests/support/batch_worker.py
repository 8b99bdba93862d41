"""A process that runs `mrflow batch` in children of its own, for tests that kill them.

Its argument is "tiny" or "vista". Each line on stdin is a JSON list of arguments; a child is forked for it, so
that importing torch is paid for once. On stdout comes the child's process id, then how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow
from mrflow.cli import main as command
from mrflow.cli.loading import ModelOptions


def tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)  # no pools of threads, which a fork would lose
    fast = MrFlow.from_pretrained("vista") if sys.argv[1] == "vista" else make_fast(make_pipe())
    ModelOptions.load = lambda self: fast  # type: ignore[method-assign]
    tell("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(0)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
            os.dup2(2, 1)
            command(json.loads(line))
        tell(child)
        tell(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
