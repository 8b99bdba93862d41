"""A ticket: one picture on its way through the stages, from the request to the picture or the refusal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from mrflow.plan import Plan
from mrflow.progress import Callback, Progress
from mrflow.request import Job
from mrflow.results import Draft
from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.sizes import Size

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.recipe import Recipe

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
        plan: Plan,
        size: Size,
        *,
        draft: Draft | None = None,
        client: str = "",
        seconds: float = float("inf"),
        on_news: Callback | None = None,
    ) -> None:
        """Ask for the kinds of work in `todo`, one after the other.

        job, plan, size: resolved. draft: what finishing begins with, if no draft is made first. client: who
        asks, for fairness. seconds: patience. on_news: called in the worker's thread with the picture's own
        Progress, its pixels (1, 3, h, w); it must not raise and not wait.
        """
        self.todo = deque(todo)
        self.job, self.plan, self.size, self.client = job, plan, size, client
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
        return self.kind, self.size, self.plan, shape

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
