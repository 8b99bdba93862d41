"""What a training leaves behind: a log of its numbers, and its state to go on from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")
LOGS = Path("training/logs")
PAUSE = 60.0
"""Seconds between two ticks of which no more count: a training may be stopped (SIGSTOP) while others measure."""


class Clock:
    """Seconds of work since the start: long gaps between ticks, which are pauses, count for PAUSE seconds."""

    def __init__(self) -> None:
        self.seconds, self.last = 0.0, time.monotonic()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.monotonic()
        self.seconds += min(now - self.last, PAUSE)
        self.last = now


class Log:
    """Append a line of JSON a report to training/logs/NAME.jsonl, and the same to stderr.

    The logs are kept in the repository; steps and seconds go on over all runs of that name.
    """

    def __init__(self, name: str):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.path = LOGS / f"{name}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        last = json.loads(lines[-1]) if lines else {"seconds": 0.0, "step": 0}
        self.before, self.steps_before, self.clock = last["seconds"], last["step"], Clock()
        self.sums: dict[str, list[float]] = {}

    def mean(self, values: dict[str, float]) -> None:
        """Remember values of one step; the next report gives their means."""
        self.clock.tick()
        for name, value in values.items():
            self.sums.setdefault(name, []).append(value)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Report the means since the last report, and `values`."""
        means = {name: sum(v) / len(v) for name, v in self.sums.items()}
        self.sums = {}
        self.clock.tick()
        seconds = self.before + self.clock.seconds
        line = {"step": self.steps_before + step, "seconds": round(seconds, 1)}
        line |= {name: round(value, 5) for name, value in (means | values).items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)


def by_side(look: Callable[[T], dict[str, float]], held_out: Mapping[int, T]) -> dict[str, float]:
    """Return what `look` says of pictures of each side; the side stands behind the names of all but the first."""
    first = next(iter(held_out))
    return {
        name if side == first else f"{name}_{side}": value
        for side, pictures in held_out.items()
        for name, value in look(pictures).items()
    }


def save_state(folder: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
    """Write everything needed to go on to FOLDER/state.pt; a crash leaves the earlier one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "modules": {k: m.state_dict() for k, m in modules.items()},
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = folder / "state.pt.partial"
    torch.save(state, partial)
    partial.replace(folder / "state.pt")


def load_state(folder: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> bool:
    """Read FOLDER/state.pt back, if there is one; say whether there was."""
    path = folder / "state.pt"
    if not path.exists():
        return False
    state = torch.load(path, weights_only=True, map_location="cpu")  # a GPU may have written it
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        # this run's learning rates with that run's momentum
        optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
    return True
