"""News from a running call, and the seconds of its stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Stage = Literal["text", "draft", "decode_draft", "upscale", "encode", "refine", "decode"]
_TALKERS = ("diffusers", "transformers", "bitsandbytes", "torch.utils._pytree")  # the last when it meets torchao
_SHOWN = ("decode_draft", "upscale", "decode")  # stages that make pixels
WORDS: Mapping[str, str] = {  # by the stages' names
    "text": "encode the prompt",
    "draft": "draft",
    "decode_draft": "decode the draft",
    "upscale": "upscale",
    "encode": "encode",
    "refine": "refine",
    "decode": "decode",
}


@dataclass(frozen=True)
class Progress:
    """One piece of news from a running call.

    stage: one of text, draft, decode_draft, upscale, encode, refine, decode; a native run has text, draft,
        decode.
    step, steps: 0 when the stage begins, then after each denoising step; a stage that is no loop has one.
    batch, batches: from 1. Drafting and finishing count their own batches.
    level, levels: from 1, of a plan that lifts and refines more than once.
    pixels: (B, 3, h, w) in [0, 1], float32, on the device, when a stage that makes pixels ends
        (decode_draft, upscale, decode), else None. A real preview arrives with decode_draft.
    """

    stage: Stage
    step: int
    steps: int
    batch: int
    batches: int
    pixels: Tensor | None = None
    level: int = 1
    levels: int = 1

    @property
    def words(self) -> str:
        """The stage, and the level where there are several."""
        return WORDS[self.stage] + (f" (level {self.level} of {self.levels})" if self.levels > 1 else "")


Callback = Callable[[Progress], None]


class Clock:
    """Times the stages of one call and tells its callback about them.

    device: where the call computes. seconds: stage to seconds so far, summed over batches. On CUDA and MPS the
    device is synchronized at a stage's ends, so that each stage is charged with its own work.
    """

    def __init__(
        self, device: torch.device, callback: Callback | None = None, bar: Mapping[str, Any] | None = None
    ) -> None:
        """Start the clock of one call; `callback` gets a Progress at each step and may raise to stop it.

        bar: without a callback, draw a bar set to look like this; None draws none.
        """
        self.seconds: dict[str, float] = {}
        self.device = device
        self._bar = Bar(bar) if callback is None and bar is not None else None
        self._callback = callback or self._bar
        self._stage = StageRun(None, Progress("text", 0, 1, 1, 1))
        self._begin = self._now()

    @contextmanager
    def stage(
        self, name: Stage, steps: int = 1, batch: int = 1, batches: int = 1, level: int = 1, levels: int = 1
    ) -> Iterator[StageRun]:
        """Time the body as one stage: news before it and, unless it raises, after it."""
        run = self._stage = StageRun(self._callback, Progress(name, 0, steps, batch, batches, None, level, levels))
        run.step(0)
        begin = self._now()
        yield run
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin
        run.finish()

    def step(self, step: int) -> None:
        """Report that `step` steps of the stage at work are done."""
        self._stage.step(step)

    @property
    def at(self) -> str:
        """The stage at work, in words."""
        return WORDS[self._stage.name]

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def totals(self) -> dict[str, float]:
        """Return the seconds per stage, and as "total" those since the call began."""
        return {**self.seconds, "total": self._now() - self._begin}

    def _now(self) -> float:
        if self.device.type in ("cuda", "mps"):
            import torch

            torch.cuda.synchronize(self.device) if self.device.type == "cuda" else torch.mps.synchronize()
        return time.perf_counter()


P = ParamSpec("P")
Made = TypeVar("Made")
Step = Callable[Concatenate[Any, Any, P], Made]


def timed(name: Stage, loop: str = "", *, shown: bool = True) -> Callable[[Step[P, Made]], Step[P, Made]]:
    """Return a decorator that makes a step of the method, step(run, batch, ...), a stage of its run's clock.

    loop: the plan's field with the number of its denoising steps, which it reports by `run.clock.step`. shown: it
        makes pixels, if its stage does.
    """

    def decorate(step: Step[P, Made]) -> Step[P, Made]:
        @wraps(step)
        def timed_step(run: Any, batch: Any, *args: P.args, **kwargs: P.kwargs) -> Made:
            steps = getattr(batch.jobs[0].plan, loop) if loop else 1
            which = batch.number, batch.of, batch.level, batch.levels
            with run.clock.stage(name, steps, *which) as stage:
                made = step(run, batch, *args, **kwargs)
                if shown and name in _SHOWN:
                    stage.pixels = made
            return made

        return cast("Step[P, Made]", timed_step)

    return decorate


class Bar:
    """A callback that draws one bar for a call, which names the stage at work; to be closed in the end."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: what a pipeline's own bar is set to (`set_progress_bar_config`); its text stands in front."""
        from tqdm.auto import tqdm

        self._prefix = f"{config['desc']} " if config.get("desc") else ""
        self._bar = tqdm(**{**config, "total": 1, "desc": self._prefix})

    def __call__(self, news: Progress) -> None:
        """Show where the call is."""
        if news.step == 0:
            number = f" {news.batch}/{news.batches}" if news.batches > 1 else ""
            self._bar.reset(total=news.steps)
            self._bar.set_description_str(f"{self._prefix}{news.words}{number}")
        self._bar.update(news.step - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class StageRun:
    """A stage in progress; what it makes is put in `pixels` before it ends."""

    def __init__(self, callback: Callback | None, first: Progress) -> None:
        """Report steps of the stage that `first` describes."""
        self.name = first.stage
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
            self._callback(replace(self._first, step=step, pixels=pixels))


@contextmanager
def libraries_silent(*, logs: bool = False) -> Iterator[None]:
    """Silence the libraries' bars over files on the disk meanwhile; the hub's over downloads stay.

    logs: their warnings, too.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    shown = [log for log in libraries if log.is_progress_bar_enabled()]
    loggers = {log: log.level for log in map(logging.getLogger, _TALKERS if logs else ())}
    for log in shown:
        log.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
        for logger, level in loggers.items():
            logger.setLevel(level)
