"""A worker: one thread that owns one model and takes batches of tickets through its stages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from mrflow.backbones import Conditioning
from mrflow.fitting import BatchSizes, in_batches
from mrflow.model import Model
from mrflow.passes import borrowed
from mrflow.production import conditioning_of, cut_batches, finish_drafts, finish_key, make_drafts, make_natives
from mrflow.progress import Clock, Progress
from mrflow.results import Draft, Result
from mrflow.server import errors
from mrflow.server.metrics import Metrics
from mrflow.server.settings import Settings
from mrflow.server.tickets import Kind, Ticket
from mrflow.sharing import Cores
from mrflow.stages import EncodedStages, Stages

log = logging.getLogger("mrflow.server")


class _NobodyWaits(Exception):
    """All pictures of the batch at hand are over; raised between steps to free the worker."""


class Worker:
    """Makes the batches that `take` gives, until it gives None, and says after each how long it took.

    tickets: those at hand; the scheduler, whose lock guards them, sets them.
    reading: held while the model's tokenizers are in use, which do not bear two threads at once; workers with one
        set of weights share it. cores: the CPU threads, divided between workers; those of other devices have none.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        metrics: Metrics,
        take: Callable[[Worker], list[Ticket] | None],
        done: Callable[[Worker, float], None],
        reading: threading.Lock,
        cores: Cores,
    ) -> None:
        """Own `model`; nothing runs before `start`."""
        self.model = model
        self.reading = reading
        self.tickets: list[Ticket] = []
        self._metrics, self._take, self._done = metrics, take, done
        cpu = model.device.type == "cpu"
        self._cores = cores if cpu else None
        self._sizes: dict[Kind, BatchSizes] = {
            "draft": BatchSizes(settings.draft_batch or 8, grow=False),
            "finish": BatchSizes(settings.finish_batch or (1 if cpu else 4), grow=False),
            "native": BatchSizes(1, grow=False),
        }
        self._hang_after = settings.hang_after
        self._beat: float | None = None  # the last sign of life; None while it waits for work
        self._thread = threading.Thread(target=self._run, name=f"worker-{model.device}", daemon=True)
        self._work = {"draft": self._draft, "finish": self._finish, "native": self._native}

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for its end, which comes when `take` gives None."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def hung(self) -> bool:
        """Whether it has shown no sign of life for too long, or died."""
        beat = self._beat
        return not self._thread.is_alive() or (beat is not None and time.monotonic() - beat > self._hang_after)

    def most(self, ticket: Ticket) -> int:
        """Return how many tickets like this one go through the model at once."""
        return self._sizes[ticket.kind].of(ticket.kind, ticket.size).size

    def _run(self) -> None:
        while (tickets := self._take(self)) is not None:
            begin = self._beat = time.monotonic()
            try:
                self._make(tickets)
            except Exception as error:  # a bug of ours, and yet the server stays up
                log.exception("a batch failed")
                for ticket in tickets:
                    ticket.refuse(errors.failed(error))
            self._beat = None
            self._done(self, time.monotonic() - begin)
            del tickets  # their pictures must not live until the next batch

    def _make(self, tickets: list[Ticket]) -> None:
        first = tickets[0]
        size = self._sizes[first.kind].of(first.kind, first.size)
        with borrowed(self.model.pipe, quiet=True), self._cores.at_work() if self._cores else nullcontext():
            for _ in in_batches(tickets, size, self._work[first.kind], self._failed, self._clean_up):
                pass

    def _draft(self, part: list[Ticket]) -> list[Ticket]:
        audience = _Audience(self, part)
        clock = Clock(self.model.device, audience)
        jobs = [ticket.job for ticket in part]
        plan, size = part[0].plan, part[0].size
        with self.reading:  # one text at a time, so that a row never depends on its neighbours
            rows = Stages(model=self.model, clock=clock).encode_prompts(jobs, guided=plan.guided, batch_size=1)
        made: dict[int, Draft] = {}
        for group in cut_batches([self.model.backbone.batch_key(row) for row in rows], len(part)):
            audience.members = [part[k] for k in group]
            stages = EncodedStages(model=self.model, clock=clock, rows=[rows[k] for k in group])
            made |= zip(group, make_drafts(stages, [jobs[k] for k in group], plan, size, len(group)), strict=True)
        for k, ticket in enumerate(part):
            ticket.made.draft = made[k]
            ticket.made.text_tokens = _text_tokens(rows[k])
        self._through("draft", part, clock)
        return part

    def _finish(self, part: list[Ticket]) -> list[Ticket]:
        audience = _Audience(self, part)
        clock = Clock(self.model.device, audience)
        stages = Stages(model=self.model, clock=clock)
        drafts = [ticket.made.draft for ticket in part if ticket.made.draft is not None]
        with self.reading:
            rows = conditioning_of(stages, drafts, 1)
        drafts = [replace(draft, conditioning=row) for draft, row in zip(drafts, rows, strict=True)]
        keys = [finish_key(self.model, *pair) for pair in zip(drafts, rows, strict=True)]
        for group in cut_batches(keys, len(part)):
            audience.members = [part[k] for k in group]
            result = finish_drafts(stages, [drafts[k] for k in group], len(group))
            _hand_over(audience.members, result)
        for row, ticket in zip(rows, part, strict=True):
            ticket.made.text_tokens = _text_tokens(row)
        self._through("finish", part, clock)
        return part

    def _native(self, part: list[Ticket]) -> list[Ticket]:
        clock = Clock(self.model.device, _Audience(self, part))
        with self.reading:
            rows = Stages(model=self.model, clock=clock).encode_prompts(
                [ticket.job for ticket in part], guided=part[0].plan.guided, batch_size=1
            )
        stages = EncodedStages(model=self.model, clock=clock, rows=rows)
        jobs = [ticket.job for ticket in part]
        _hand_over(part, make_natives(stages, jobs, part[0].plan, part[0].size, len(part)))
        self._through("native", part, clock)
        return part

    def _through(self, kind: Kind, part: list[Ticket], clock: Clock) -> None:
        self._metrics.batch_done(kind, part, clock.seconds)
        for ticket in part:
            ticket.step_done(clock.seconds, len(part))

    def _failed(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, _NobodyWaits):
            log.error("a picture failed: %s: %s", type(error).__name__, error)
            ticket.refuse(errors.failed(error))

    def _clean_up(self) -> None:
        self.model.pipe.maybe_free_model_hooks()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def beat(self) -> None:
        """Show a sign of life, and see how many of the cores are left to this worker by the others."""
        self._beat = time.monotonic()
        if self._cores is not None:
            self._cores.divide()


class _Audience:
    """The callback of a batch: passes news on to its tickets, and stops it once nobody waits for it."""

    def __init__(self, worker: Worker, members: Sequence[Ticket]) -> None:
        self.members = members
        self._worker = worker

    def __call__(self, news: Progress) -> None:
        self._worker.beat()
        if all(ticket.over for ticket in self.members):
            raise _NobodyWaits
        for row, ticket in enumerate(self.members):
            ticket.tell(news, row)


def _hand_over(tickets: Sequence[Ticket], result: Result) -> None:
    for ticket, image, recipe in zip(tickets, result.images, result.recipes, strict=True):
        ticket.made.image, ticket.made.recipe = image, recipe


def _text_tokens(row: Conditioning) -> int:
    return row["prompt_embeds"].shape[1] if "prompt_embeds" in row else 0
