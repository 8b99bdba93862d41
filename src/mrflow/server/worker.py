"""A worker: one thread that owns one model and takes batches of tickets through its stages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from mrflow.batches import BatchSizes, Done, Read, Work
from mrflow.borrowing import borrowed
from mrflow.drafts import Draft, Result
from mrflow.errors import LoraError
from mrflow.lanes import Cores
from mrflow.model import Model
from mrflow.progress import Progress
from mrflow.server import errors
from mrflow.server.metrics import Metrics
from mrflow.server.settings import Settings
from mrflow.server.tickets import Kind, Ticket

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
        finish = settings.finish_batch or (1 if cpu else 4)
        self._sizes = BatchSizes(settings.draft_batch or 8, finish=finish)
        self._work = Work(
            model=model, sizes=self._sizes, failed=self._failed, listen=partial(_Audience, self), reading=reading
        )
        self._hang_after = settings.hang_after
        self._beat: float | None = None  # the last sign of life; None while it waits for work
        self._thread = threading.Thread(target=self._run, name=f"worker-{model.device}", daemon=True)

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
        return self._sizes.of(ticket.kind, ticket.job.kind).size

    def _run(self) -> None:
        while (tickets := self._take(self)) is not None:
            begin = self._beat = time.monotonic()
            try:
                self._make(tickets)
            except Exception as error:  # a bug of ours, and yet the server stays up
                log.exception("a batch failed, of requests %s", ", ".join(each.request_id for each in tickets))
                for ticket in tickets:
                    ticket.refuse(errors.failed(error))
            self._beat = None
            self._done(self, time.monotonic() - begin)
            del tickets  # their pictures must not live until the next batch

    def _make(self, tickets: list[Ticket]) -> None:
        kind = tickets[0].kind
        with borrowed(self.model.pipe), self._cores.at_work() if self._cores else nullcontext():
            for done in self._batches(kind, tickets):
                batch = [read.item for read in done.reads]
                self._metrics.batch_done(kind, batch, done.seconds)
                for read, made in zip(done.reads, done.made, strict=True):
                    _keep(read, made)
                    read.item.step_done(done.seconds, len(batch))

    def _batches(self, kind: Kind, tickets: list[Ticket]) -> Iterator[Done[Ticket, Any]]:
        if kind == "finish":
            drafted = [(ticket, ticket.made.draft) for ticket in tickets if ticket.made.draft is not None]
            yield from self._work.finish(drafted)
        elif kind == "draft":
            yield from self._work.draft(self._work.read_all(tickets))
        else:
            yield from self._work.native(self._work.read_all(tickets))

    def _failed(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, _NobodyWaits):
            log.error("request %s: a picture failed: %s: %s", ticket.request_id, type(error).__name__, error)
            ticket.refuse(errors.from_error(error) if isinstance(error, LoraError) else errors.failed(error))

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


def _keep(read: Read[Ticket], made: Draft | Result) -> None:
    kept = read.item.made
    kept.text_tokens = read.row["prompt_embeds"].shape[1] if "prompt_embeds" in read.row else 0
    if isinstance(made, Draft):
        kept.draft = made
    else:
        (kept.image,), (kept.recipe,) = made.images, made.recipes
