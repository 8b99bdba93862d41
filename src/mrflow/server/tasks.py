"""Work that is fetched later: begun by one request, asked after by others, kept for a limited time and number."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mrflow.server import errors
from mrflow.server.errors import ApiError
from mrflow.server.settings import Settings
from mrflow.server.store import Store

if TYPE_CHECKING:
    from mrflow.server.requests import Checked
    from mrflow.server.responses import Answer

log = logging.getLogger("mrflow.server")

MAX_TASKS = 1000  # remembered at once, of all clients; the oldest that have ended make room


@dataclass
class Task:
    """One request's work. client: whose it is. result: under which name the store has what was made."""

    client: str
    answer: Answer
    id: str = field(default_factory=lambda: "task_" + secrets.token_hex(24))
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "queued"
    progress: dict[str, Any] = field(default_factory=dict)
    done: int = 0
    ended: float | None = None
    result: str | None = None
    error: dict[str, Any] | None = None
    work: asyncio.Task[None] | None = None


class Tasks:
    """The tasks of one process, which a restart forgets. For the event loop's thread alone."""

    def __init__(self, settings: Settings) -> None:
        """Keep what is made as long, and as much of it, as the settings say."""
        self._seconds = settings.keep_seconds
        self._results: Store[bytes] = Store(settings.keep_seconds, settings.keep_bytes, "")
        self._tasks: dict[str, Task] = {}  # oldest first

    def begin(self, client: str, answer: Answer, checked: Checked) -> Task:
        """Put the answer's pictures into the queue; raises an ApiError where there is no room."""
        self._sweep(more=1)
        if len(self._tasks) >= MAX_TASKS:
            raise errors.queue_full(self._seconds)
        answer.group.submit()
        task = Task(client, answer)
        task.work = asyncio.create_task(self._run(task, checked))
        self._tasks[task.id] = task
        return task

    def get(self, name: str, client: str) -> Task:
        """Return a client's own task; raises an ApiError for any other name."""
        self._sweep()
        task = self._tasks.get(name)
        if task is None or task.client != client:
            kept = f"tasks are kept for {self._seconds:g} seconds after their end, and not over a restart"
            raise ApiError(404, f"There is no task {name[:60]!r}; {kept}.", param="id", code="task_not_found")
        return task

    def of(self, client: str) -> list[Task]:
        """Return a client's tasks, oldest first."""
        self._sweep()
        return [task for task in self._tasks.values() if task.client == client]

    def remove(self, task: Task) -> None:
        """Forget a task; one that is not done stops between two steps."""
        del self._tasks[task.id]
        if task.work is not None:
            task.work.cancel()

    def describe(self, task: Task) -> dict[str, Any]:
        """Return what a client is told of a task; reads its pictures."""
        about: dict[str, Any] = {"id": task.id, "object": "image.task", "status": task.status}
        about |= {"created_at": task.created, "count": len(task.answer.group.tickets), "done": task.done}
        if task.ended is not None:
            about["expires_at"] = int(time.time() + task.ended + self._seconds - time.monotonic())
        elif task.progress:
            about["progress"] = task.progress
        if task.error is not None:
            about |= task.error
        found = None if task.result is None else self._results.get(task.result)
        return about if found is None else {**about, "result": json.loads(found)}

    async def _run(self, task: Task, checked: Checked) -> None:
        group = task.answer.group
        try:
            async for news in group.news():
                task.status, task.done = "in_progress", task.done + (news.made is not None)
                task.progress = {"stage": news.stage, "step": news.step, "steps": news.steps}
            made = json.dumps(await task.answer.whole(checked)).encode()
            task.result, task.status = self._results.put(made, len(made)), "completed"
        except ApiError as error:
            task.error, task.status = error.body(), "failed"
        except Exception as error:  # of encoding, for one
            log.exception("a task failed")
            task.error, task.status = errors.failed(error).body(), "failed"
        finally:
            task.ended = time.monotonic()
            group.forget()

    def _sweep(self, more: int = 0) -> None:
        """Forget what ended too long ago, or first where `more` need room, and what the store had no room for."""
        now = time.monotonic()
        for task in list(self._tasks.values()):
            lost = task.result is not None and self._results.get(task.result) is None
            old = task.ended is not None and now > task.ended + self._seconds
            many = task.ended is not None and len(self._tasks) + more > MAX_TASKS
            if lost or old or many:
                del self._tasks[task.id]
