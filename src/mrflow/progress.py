"""News from a running call, and the seconds of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Stage = Literal["text", "draft", "decode_draft", "upscale", "encode", "refine", "decode"]


@dataclass(frozen=True)
class Progress:
    """One piece of news from a running call.

    stage: one of text, draft, decode_draft, upscale, encode, refine, decode; a native run has text, draft,
        decode.
    step, steps: 0 when the stage begins, then after each denoising step; a stage that is no loop has one.
    batch, batches: from 1. Drafting and finishing count their own batches.
    pixels: (B, 3, h, w) in [0, 1], float32, on the device, when a stage that makes pixels ends
        (decode_draft, upscale, decode), else None. A real preview arrives with decode_draft.
    """

    stage: Stage
    step: int
    steps: int
    batch: int
    batches: int
    pixels: Tensor | None = None


Callback = Callable[[Progress], None]


class Clock:
    """Times the stages of one call and tells its callback about them.

    device: where the call computes. seconds: stage to seconds so far, summed over batches. On CUDA and MPS the
    device is synchronized at a stage's ends, so that each stage is charged with its own work.
    """

    def __init__(self, device: torch.device, callback: Callback | None = None) -> None:
        """Start the clock of one call; `callback` gets a Progress at each step and may raise to stop it."""
        self.seconds: dict[str, float] = {}
        self.device = device
        self._callback = callback
        self._begin = self._now()

    @contextmanager
    def stage(self, name: Stage, steps: int = 1, batch: int = 1, batches: int = 1) -> Iterator[StageRun]:
        """Time the body as one stage: news before it and, unless it raises, after it."""
        run = StageRun(self._callback, Progress(name, 0, steps, batch, batches))
        run.step(0)
        begin = self._now()
        yield run
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin
        run.finish()

    def totals(self) -> dict[str, float]:
        """Return the seconds per stage, and as "total" those since the call began."""
        return {**self.seconds, "total": self._now() - self._begin}

    def _now(self) -> float:
        if self.device.type in ("cuda", "mps"):
            import torch

            (torch.cuda if self.device.type == "cuda" else torch.mps).synchronize()
        return time.perf_counter()


class StageRun:
    """A stage in progress; what it makes is put in `pixels` before it ends."""

    def __init__(self, callback: Callback | None, first: Progress) -> None:
        """Report steps of the stage that `first` describes."""
        self.pixels: Tensor | None = None
        self._callback = callback
        self._first = first
        self._last = -1

    def step(self, step: int) -> None:
        """Report that `step` steps are done, unless that is known: a step may call back more than once."""
        if step > self._last:
            self._tell(step, None)

    def finish(self) -> None:
        """Report the end, unless the last step already did and there are no pixels to show."""
        if self._last < self._first.steps or self.pixels is not None:
            self._tell(self._first.steps, self.pixels)

    def _tell(self, step: int, pixels: Tensor | None) -> None:
        self._last = step
        if self._callback is not None:
            first = self._first
            self._callback(Progress(first.stage, step, first.steps, first.batch, first.batches, pixels))
