"""Which timestep a family's transformer is given at which sigma, read off a run of the pipeline's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.families import Case


class Seen:
    """What the transformer is called with, and what it gives."""

    def __init__(self, pipe: Any) -> None:
        self.timesteps: list[float] = []
        self.hidden: list[Tensor] = []
        self.given: list[Tensor] = []
        self._hook = pipe.transformer.register_forward_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        timestep = next((kwargs[key] for key in ("timestep", "timesteps") if key in kwargs), None)
        timestep = args[1] if timestep is None else timestep
        given = output[0]
        self.timesteps.append(float(timestep[0]))
        self.hidden.append(torch.stack(hidden)[:, :, 0] if isinstance(hidden, list) else hidden)
        self.given.append(torch.stack(given)[:, :, 0] if isinstance(given, list) else given)

    @property
    def steps(self) -> list[float]:
        """The timesteps, one for each step: guided ones are calls with the same."""
        return list(dict.fromkeys(self.timesteps))

    def stop(self) -> None:
        self._hook.remove()


@dataclass(frozen=True)
class Pairing:
    """Timesteps and the sigmas of the same steps, both as a native run has them."""

    sigmas: list[float]
    timesteps: list[float]

    def timestep(self, sigma: float) -> float:
        """Return the timestep on the line through the two steps that are nearest around `sigma`, or before it."""
        k = int(np.clip(sum(each > sigma for each in self.sigmas), 1, len(self.sigmas) - 1))
        (above, below), (first, second) = self.sigmas[k - 1 : k + 1], self.timesteps[k - 1 : k + 1]
        return second + (first - second) * (sigma - below) / (above - below)

    @property
    def slack(self) -> float:
        """How far off such lines are at most where a step is left out; all but none for a law that is a line."""
        inner = range(1, len(self.sigmas) - 1)
        left_out = [Pairing(drop(self.sigmas, k), drop(self.timesteps, k)) for k in inner]
        errors = [
            abs(each.timestep(self.sigmas[k]) - self.timesteps[k]) for k, each in zip(inner, left_out, strict=True)
        ]
        return max(1e-6 * max(self.timesteps), *errors)


def drop(values: list[float], k: int) -> list[float]:
    return values[:k] + values[k + 1 :]


def native_pairing(case: Case, pipe: Any, size: tuple[int, int], steps: int) -> Pairing:
    """Return what the pipeline's own run pairs; its scheduler is asked, at each step, which sigma it takes."""
    seen, scheduler, sigmas, timesteps = Seen(pipe), pipe.scheduler, list[float](), list[float]()
    step = scheduler.step

    @wraps(step)  # pipelines look its arguments up
    def watched(*args: Any, **kwargs: Any) -> Any:
        made = step(*args, **kwargs)
        sigmas.append(float(scheduler.sigmas[scheduler.step_index - 1]))
        timesteps.append(seen.timesteps[-1])
        return made

    scheduler.step = watched
    try:
        case.run(pipe, size, steps)
    finally:
        del scheduler.step
        seen.stop()
    assert len(sigmas) == steps
    return Pairing(sigmas, timesteps)
