"""A server of tiny random pipelines, for the tests that talk to one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from openai import OpenAI

from conftest import make_fast, make_pipe
from mrflow.jobs import ask
from mrflow.model import Model
from mrflow.plan import Plan, get_plan
from mrflow.progress import Callback
from mrflow.server.address import Address
from mrflow.server.app import create_app
from mrflow.server.keys import Keys
from mrflow.server.metrics import Metrics
from mrflow.server.scheduler import Scheduler
from mrflow.server.settings import Settings
from mrflow.server.tickets import Kind, Ticket

ROUTES = ("/v1/images/generations", "/v1/images/drafts", "/v1/images/finish")


def tiny_model() -> Model:
    """Return a model of 64 x 64 pixels that takes milliseconds."""
    return make_fast(make_pipe()).model


@contextmanager
def scheduling(model: Model | None = None, *more: Model, **settings: Any) -> Iterator[Scheduler]:
    """Give a running scheduler; settings as in Settings."""
    models = [model or tiny_model(), *more]
    scheduler = Scheduler(models, Settings(**settings), Metrics([each.device for each in models]))
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def ticket(
    model: Model,
    prompt: str = "a red boat",
    seed: int = 0,
    *,
    todo: Sequence[Kind] = ("draft", "finish"),
    size: tuple[int, int] = (64, 64),
    plan: Plan | str | None = None,
    client: str = "",
    seconds: float = 60.0,
    on_news: Callback | None = None,
) -> Ticket:
    """Return a ticket with everything resolved, as the front door makes it."""
    chosen = None if plan is None else get_plan(plan)
    (job,) = model.resolve(ask(prompt, seed=seed, plan=chosen, width=size[0], height=size[1]))
    return Ticket(todo, job, client=client, seconds=seconds, on_news=on_news)


class Gate:
    """Holds the worker at its next sign of life until it is opened; put in place of a backbone's method."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *_: Any) -> None:
        self.reached.set()
        assert self.open.wait(60)


def hold(model: Any, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Have the model's next decoding wait at a gate."""
    gate, decode = Gate(), type(model.backbone).decode

    def gated(self: Any, *arguments: Any) -> Any:
        gate()
        return decode(self, *arguments)

    monkeypatch.setattr(type(model.backbone), "decode", gated)
    return gate


def until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Server:
    """A real uvicorn on a free port of this machine, in a thread."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app,
            port=0,
            log_level="warning",
            timeout_graceful_shutdown=20,
            timeout_keep_alive=60,
            ws="none",
            proxy_headers=False,
        )
        self.app = app
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"

    @property
    def scheduler(self) -> Scheduler:
        scheduler: Scheduler = self.app.state.service.scheduler
        return scheduler

    def client(self, key: str = "no key is needed") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@contextmanager
def serving(
    model: Model | None = None,
    *,
    keys: Sequence[str] = (),
    page: bool = False,
    a1111: bool = False,
    mcp: bool = False,
    lanes: int = 1,
    address: Address | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """Give a running server; settings as in Settings."""
    given = Settings(lanes=lanes, **settings)
    app = create_app(
        model or tiny_model(), given, keys=Keys(keys), page=page, a1111=a1111, mcp=mcp, address=address
    )
    server = Server(app)
    try:
        yield server
    finally:
        server.stop()


def check_error(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    """Check that an answer is an error of OpenAI's shape that tells nothing of the server's insides."""
    assert answer.status_code in statuses, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for inside in ("Traceback", "/src/", "site-packages", ".py", "File "):
        assert inside not in answer.text
    return error
