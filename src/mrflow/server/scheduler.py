"""The scheduler: who may wait, whose turn it is, who has waited too long, and when it all ends."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from mrflow.lanes import Cores, weights_id
from mrflow.model import Model
from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.server.metrics import Metrics
from mrflow.server.settings import Settings
from mrflow.server.tickets import Queue, Ticket
from mrflow.server.worker import Worker

State = Literal["ok", "hung", "stopping"]


class Scheduler:
    """One queue of tickets, one worker per model, and a watchdog. Every method may be called from any thread."""

    def __init__(self, models: Sequence[Model], settings: Settings, metrics: Metrics) -> None:
        """Work with `models`, which are the same but for their devices; nothing runs before `start`.

        They may share their weights (mrflow.lanes); those on a CPU divide its threads between them.
        """
        self.settings = settings
        reading: dict[int, threading.Lock] = defaultdict(threading.Lock)
        cores = Cores()
        self.workers = [
            Worker(model, settings, metrics, self._take, self._done, reading[weights_id(model)], cores)
            for model in models
        ]
        self._metrics = metrics
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.hung.set_function(lambda: sum(worker.hung for worker in self.workers))
        self._queue = Queue()
        self._news = threading.Condition()
        self._stopping = False
        self._patience = float("inf")  # when what is left is refused, once stopping
        self._ended = threading.Event()
        self._pace = 1.0  # seconds per piece of work, lately
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def model(self) -> Model:
        """The model that requests are checked against."""
        return self.workers[0].model

    @property
    def reading(self) -> threading.Lock:
        """To be held while that model's tokenizers are in use."""
        return self.workers[0].reading

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        with self._news:
            return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether somebody still waits for a picture."""
        return not all(ticket.over for ticket in self._everyone())

    @property
    def state(self) -> State:
        """Whether it takes work, has no worker left that responds, or is about to end."""
        if self._stopping:
            return "stopping"
        return "hung" if all(worker.hung for worker in self.workers) else "ok"

    def start(self) -> None:
        """Begin to work."""
        for worker in self.workers:
            worker.start()
        self._watchdog.start()

    def check_open(self) -> None:
        """Raise the ApiError that a new request would get now, whoever asks."""
        state = self.state
        if state != "ok":
            raise errors.stopping() if state == "stopping" else errors.hung()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Put the tickets of one request into the queue, all or none; raises an ApiError."""
        self.check_open()
        client = tickets[0].client
        with self._news:
            mine, all_ = self._queue.of(client) + len(tickets), len(self._queue) + len(tickets)
            if all_ > self.settings.max_waiting or mine > self.settings.max_waiting_per_client:
                raise errors.queue_full(len(self._queue) * self._pace / len(self.workers))
            for ticket in tickets:
                ticket.waits()
            self._queue.join(tickets)
            self._news.notify_all()

    def forget(self, tickets: Sequence[Ticket]) -> None:
        """Give up tickets for which nobody waits any more; their places are free at once."""
        for ticket in tickets:
            ticket.give_up()
        with self._news:
            self._queue.remove(tickets)

    def stop(self, seconds: float | None = None) -> None:
        """Take no more work; give what is there `seconds` (None: as set), then refuse it. Returns at once."""
        seconds = self.settings.drain if seconds is None else seconds
        with self._news:
            self._stopping = True
            self._patience = min(self._patience, time.monotonic() + seconds)
            self._news.notify_all()

    def close(self) -> None:
        """Refuse what is left and end the threads, but for those that hang."""
        self.stop(0)
        self._watch_once()
        for worker in self.workers:
            worker.join(0.1 if worker.hung else 10)
        self._ended.set()

    def _take(self, worker: Worker) -> list[Ticket] | None:
        """Return what the worker is to do next, waiting for it; None ends the worker."""
        with self._news:
            while True:
                self._queue.remove([ticket for ticket in self._queue if ticket.over])
                idle = sum(not other.tickets and not other.hung for other in self.workers)
                worker.tickets = self._queue.take(worker.most, idle)
                if worker.tickets:
                    break
                if self._stopping and not any(other.tickets for other in self.workers):
                    return None
                self._news.wait(1.0)
            for ticket in worker.tickets:
                self._metrics.wait.observe(ticket.taken())
            return worker.tickets

    def _done(self, worker: Worker, seconds: float) -> None:
        """Put tickets that have more to do back into the queue."""
        with self._news:
            self._pace += 0.2 * (seconds / len(worker.tickets) - self._pace)
            more = [ticket for ticket in worker.tickets if not ticket.over]
            worker.tickets = []
            for ticket in more:
                ticket.waits()
            self._queue.rejoin(more)
            self._news.notify_all()

    def _everyone(self) -> list[Ticket]:
        """Return the tickets that wait and those at work."""
        with self._news:
            return [*self._queue, *(ticket for worker in self.workers for ticket in worker.tickets)]

    def _watch(self) -> None:
        tick = min(self.settings.hang_after / 4, 0.5)
        while not self._ended.wait(tick):
            self._watch_once()

    def _watch_once(self) -> None:
        """See to patience, to workers that hang and to the end."""
        now, everyone = time.monotonic(), self._everyone()
        with self._news:
            stuck = [ticket for worker in self.workers if worker.hung for ticket in worker.tickets]
        if self._stopping and now >= self._patience:
            _refuse(everyone, errors.stopping)
        _refuse(everyone if self.state == "hung" else stuck, errors.hung)
        for ticket in everyone:
            if now > ticket.deadline:
                ticket.refuse(errors.too_late(ticket.patience))
        with self._news:
            self._queue.remove([ticket for ticket in self._queue if ticket.over])


def _refuse(tickets: Iterable[Ticket], refusal: Callable[[], ApiError]) -> None:
    for ticket in tickets:
        ticket.refuse(refusal())
