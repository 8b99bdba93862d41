"""An order: the tickets of one request, awaited from an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from PIL import Image

from mrflow.images import to_pil
from mrflow.plan import Plan
from mrflow.progress import Progress, Stage
from mrflow.request import Job
from mrflow.results import Draft
from mrflow.server.scheduler import Scheduler
from mrflow.server.tickets import Kind, Made, Ticket
from mrflow.sizes import Size


@dataclass(frozen=True)
class News:
    """What happens to picture number `index` of an order: a stage's step, its preview, or in the end `made`.

    image: of the stages that were asked to be shown. seconds: since the order began.
    """

    index: int
    seconds: float
    stage: Stage | None = None
    step: int = 0
    steps: int = 0
    image: Image.Image | None = None
    made: Made | None = None


class Order:
    """The tickets of one request. Leaving the `async with` gives up what is not made yet."""

    def __init__(self, scheduler: Scheduler, client: str, show: Iterable[Stage] = ()) -> None:
        """show: stages whose pixels are wanted as images; without any, `news` has the pictures alone."""
        self.tickets: list[Ticket] = []
        self._scheduler, self._client, self._show = scheduler, client, frozenset(show)
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._shown: set[tuple[int, Stage]] = set()
        self._begin = time.monotonic()

    def add(
        self, todo: Sequence[Kind], jobs: Sequence[Job], plan: Plan, size: Size, draft: Draft | None = None
    ) -> None:
        """Ask for one picture per job."""
        for job in jobs:
            index = len(self.tickets)
            self.tickets.append(
                Ticket(
                    todo,
                    job,
                    plan,
                    size,
                    draft=draft,
                    client=self._client,
                    seconds=self._scheduler.settings.timeout,
                    on_news=(lambda news, index=index: self._hear(index, news)) if self._show else None,  # type: ignore[misc]
                )
            )

    def submit(self) -> None:
        """Join the line; raises an ApiError. Whoever submits must forget."""
        self._scheduler.submit(self.tickets)

    def forget(self) -> None:
        """Give up what is not made yet."""
        self._scheduler.forget(self.tickets)

    async def __aenter__(self) -> Order:
        self.submit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    async def made(self) -> list[Made]:
        """Return all pictures; raises the first ApiError."""
        return list(await asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in self.tickets)))

    async def news(self) -> AsyncIterator[News]:
        """Yield what happens until all pictures are made; raises the first ApiError."""
        running = {asyncio.wrap_future(ticket.future): k for k, ticket in enumerate(self.tickets)}
        listening: asyncio.Future[News] = asyncio.ensure_future(self._news.get())
        try:
            while running:
                futures: list[asyncio.Future[Any]] = [*running, listening]
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():  # before the pictures, which came later
                    yield listening.result()
                    while not self._news.empty():
                        yield self._news.get_nowait()
                    listening = asyncio.ensure_future(self._news.get())
                for future in [each for each in running if each.done()]:
                    yield News(running.pop(future), self._seconds(), made=future.result())
        finally:
            listening.cancel()
            for future in running:
                future.cancel()

    def _hear(self, index: int, news: Progress) -> None:
        """Take news in the worker's thread, where the pixels are."""
        image = None
        if news.pixels is not None and news.stage in self._show and (index, news.stage) not in self._shown:
            self._shown.add((index, news.stage))  # once, also if a batch has to be made again
            image = to_pil(news.pixels)[0]
        item = News(index, self._seconds(), news.stage, news.step, news.steps, image)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._news.put_nowait, item)

    def _seconds(self) -> float:
        return time.monotonic() - self._begin
