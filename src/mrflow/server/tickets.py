"""Tickets: one picture on its way through the stages, the queue of those that wait, those of one request."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from mrflow.drafts import Draft
from mrflow.images import to_pil
from mrflow.jobs import Job
from mrflow.progress import Callback, Progress, Stage
from mrflow.server import errors
from mrflow.server.errors import ApiError

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.recipe import Recipe
    from mrflow.server.scheduler import Scheduler

Kind = Literal["draft", "finish", "native"]


@dataclass
class Made:
    """What became of a ticket.

    draft: None where the work began with an image. image, recipe: None for a draft alone.
    seconds: stage to seconds, of the batches that the picture was in; "queue" is the time it waited.
    batch: pictures in the largest of those batches. text_tokens: rows of text that the transformer reads.
    """

    draft: Draft | None = None
    image: Image.Image | None = None
    recipe: Recipe | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    batch: int = 1
    text_tokens: int = 0


class Ticket:
    """One picture to make. `future` holds a Made in the end, or an ApiError; it is settled once."""

    def __init__(
        self,
        todo: Sequence[Kind],
        job: Job,
        *,
        draft: Draft | None = None,
        client: str = "",
        request_id: str = "",
        seconds: float = float("inf"),
        on_news: Callback | None = None,
    ) -> None:
        """Ask for the kinds of work in `todo`, one after the other.

        draft: what finishing begins with, if no draft is made first. client: who asks, for fairness.
        request_id: of its answer, for the log. seconds: patience. on_news: called in the worker's thread with the
        picture's own Progress, its pixels (1, 3, h, w); it must not raise and not wait.
        """
        self.todo = deque(todo)
        self.job, self.client, self.request_id = job, client, request_id
        self.made = Made(draft=draft)
        self.future: Future[Made] = Future()
        self.patience = seconds
        self.deadline = time.monotonic() + seconds
        self._waiting_since = time.monotonic()
        self._on_news = on_news

    @property
    def kind(self) -> Kind:
        """The work to be done next."""
        return self.todo[0]

    @property
    def key(self) -> Hashable:
        """What tickets must share to go through the model together."""
        shape = tuple(self.made.draft.pixels.shape) if self.made.draft is not None else None
        return self.kind, self.job.kind, shape

    @property
    def over(self) -> bool:
        """Whether nobody waits for this any more: made, failed, refused or given up."""
        return self.future.done()

    def waits(self) -> None:
        """Note that it begins to wait."""
        self._waiting_since = time.monotonic()

    def taken(self) -> float:
        """Note that a worker has taken it, and return the seconds that it has waited."""
        waited = time.monotonic() - self._waiting_since
        self.made.seconds["queue"] = self.made.seconds.get("queue", 0.0) + waited
        return waited

    def tell(self, news: Progress, row: int) -> None:
        """Pass on news of its batch, in which it is picture number `row`."""
        if self._on_news is not None and not self.over:
            pixels = None if news.pixels is None else news.pixels[row : row + 1]
            self._on_news(replace(news, pixels=pixels))

    def step_done(self, seconds: dict[str, float], batch: int) -> None:
        """Note that the work at hand is done; the last step settles the ticket."""
        for name, value in seconds.items():
            self.made.seconds[name] = self.made.seconds.get(name, 0.0) + value
        self.made.batch = max(self.made.batch, batch)
        self.todo.popleft()
        if not self.todo:
            self._settle(lambda: self.future.set_result(self.made))

    def refuse(self, refusal: ApiError) -> None:
        """End it without a picture, unless it is over already."""
        self._settle(lambda: self.future.set_exception(refusal))

    def give_up(self) -> None:
        """End it because nobody waits for it any more."""
        self.refuse(errors.gone())

    def _settle(self, settle: Callable[[], None]) -> None:
        with suppress(InvalidStateError):  # somebody was quicker
            settle()


class Queue:
    """Tickets that wait: first come, first served within a client, turn by turn between clients.

    Not thread-safe: the scheduler holds its lock around each call.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._clients: dict[str, deque[Ticket]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for tickets in self._clients.values() for ticket in tickets)

    def of(self, client: str) -> int:
        """Return how many tickets of this client wait."""
        return len(self._clients.get(client, ()))

    def join(self, tickets: Iterable[Ticket]) -> None:
        """Put tickets at the end of their clients' lines."""
        for ticket in tickets:
            self._clients.setdefault(ticket.client, deque()).append(ticket)

    def rejoin(self, tickets: Iterable[Ticket]) -> None:
        """Put tickets that have more to do first of all, in their order: what is begun ends before more begins.

        Otherwise 200 clients at once would all wait for the last draft before the first picture is finished.
        """
        for ticket in reversed(list(tickets)):
            mine = self._clients.pop(ticket.client, deque())
            mine.appendleft(ticket)
            self._clients = {ticket.client: mine, **self._clients}

    def take(self, most: Callable[[Ticket], int], workers: int = 1) -> list[Ticket]:
        """Remove and return tickets that can go through the model together; none if nobody waits.

        The client whose turn it is decides the kind of work with its first ticket; then each client in turn
        adds one that fits, until there are as many as `most` says for that first ticket. workers: how many are
        idle, the one that asks included; few tickets are divided between them.
        """
        if not self._clients:
            return []
        client, tickets = next(iter(self._clients.items()))
        key = tickets[0].key
        fitting = {
            name: deque(ticket for ticket in queue if ticket.key == key) for name, queue in self._clients.items()
        }
        room = min(most(tickets[0]), -(-sum(map(len, fitting.values())) // max(workers, 1)))
        taken: list[Ticket] = []
        while len(taken) < room and any(fitting.values()):
            for queue in fitting.values():
                if queue and len(taken) < room:
                    taken.append(queue.popleft())
        self._clients[client] = self._clients.pop(client)  # its next turn comes after everybody else's
        self.remove(taken)
        return taken

    def remove(self, tickets: Iterable[Ticket]) -> None:
        """Remove these tickets wherever they stand; those that do not wait are ignored."""
        leaving = set(map(id, tickets))
        for client, queue in list(self._clients.items()):
            left = deque(ticket for ticket in queue if id(ticket) not in leaving)
            if left:
                self._clients[client] = left
            else:
                del self._clients[client]


@dataclass(frozen=True)
class News:
    """What happens to picture number `index` of a group: a stage's step, its preview, or in the end `made`.

    image: of the stages that were asked to be shown. seconds: since the group was made.
    """

    index: int
    seconds: float
    stage: Stage | None = None
    step: int = 0
    steps: int = 0
    image: Image.Image | None = None
    made: Made | None = None


class TicketGroup:
    """The tickets of one request. Leaving the `async with` gives up what is not made yet."""

    def __init__(
        self,
        scheduler: Scheduler,
        client: str,
        show: Iterable[Stage] = (),
        *,
        steps: bool = False,
        most: int | None = None,
        request_id: str = "",
    ) -> None:
        """show: stages wanted as images. With neither them nor `steps`, `news` has the pictures alone.

        most: of these images of a picture, whose plan may have several levels.
        """
        self.tickets: list[Ticket] = []
        self._scheduler, self._show = scheduler, frozenset(show)
        self._asked_by = {"client": client, "request_id": request_id}
        self._listens = steps or bool(self._show)
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News | BaseException] = asyncio.Queue()
        self._shown: set[tuple[int, Stage, int]] = set()
        self._most, self._begin = most or math.inf, time.monotonic()

    def add(self, todo: Sequence[Kind], jobs: Sequence[Job], draft: Draft | None = None) -> None:
        """Ask for one picture per job. draft: what finishing begins with."""
        seconds = self._scheduler.settings.timeout
        for job in jobs:
            hear = partial(self._hear, len(self.tickets)) if self._listens else None
            ticket = Ticket(todo, job, draft=draft, **self._asked_by, seconds=seconds, on_news=hear)
            self.tickets.append(ticket)

    def add_drafts(self, drafts: Sequence[Draft], jobs: Sequence[Job]) -> None:
        """Ask for drafts to be finished, each as its job says."""
        for draft, job in zip(drafts, jobs, strict=True):
            self.add(("finish",), [job], draft)

    def submit(self) -> None:
        """Join the queue; raises an ApiError. Whoever submits must forget."""
        self._scheduler.submit(self.tickets)

    def forget(self) -> None:
        """Give up what is not made yet."""
        self._scheduler.forget(self.tickets)

    async def __aenter__(self) -> TicketGroup:
        self.submit()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.forget()

    async def made(self) -> list[Made]:
        """Return all pictures; raises the first ApiError."""
        return list(await asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in self.tickets)))

    async def news(self, pause: float | None = None) -> AsyncIterator[News]:
        """Yield what happens until all pictures are made; raises the first ApiError.

        pause: seconds after which, where nothing happens, News of no stage are given.
        """
        for index, ticket in enumerate(self.tickets):
            ticket.future.add_done_callback(partial(self._settled, index))
        left = len(self.tickets)
        while left:
            try:
                news = await asyncio.wait_for(self._news.get(), pause)
            except TimeoutError:
                news = News(0, self._seconds())
            if isinstance(news, BaseException):
                raise news
            left -= news.made is not None
            yield news

    def _hear(self, index: int, news: Progress) -> None:
        """Take news in the worker's thread, where the pixels are."""
        image, key = None, (index, news.stage, news.level)
        before = sum(number == index for number, *_ in self._shown)
        wanted = news.stage in self._show and key not in self._shown and before < self._most
        if news.pixels is not None and wanted:
            self._shown.add(key)  # once, also if a batch has to be made again
            image = to_pil(news.pixels)[0]
        self._put(News(index, self._seconds(), news.stage, news.step, news.steps, image))

    def _settled(self, index: int, future: Future[Made]) -> None:
        """Take the end of a ticket, in whichever thread it comes."""
        self._put(future.exception() or News(index, self._seconds(), made=future.result()))

    def _put(self, news: News | BaseException) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    def _seconds(self) -> float:
        return time.monotonic() - self._begin
