"""The application in several replicas, through Ray Serve: one address, and one shelf for what is kept.

    proxy (host:port) -> replicas, each the application of app.py with a model and a queue of its own
                      -> the shelf, an actor with the drafts and files of all of them

Ray Serve places the replicas, shares requests among them, and starts those again that die or say that they hang.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from fastapi import FastAPI

from mrflow.errors import ClusterError
from mrflow.pipeline import MrFlow
from mrflow.ray_connection import LOCAL, check_ray, check_workers, connected, describe_reason, worker_gpus
from mrflow.server.address import Address
from mrflow.server.app import create_app
from mrflow.server.keys import Keys
from mrflow.server.running import listen, log_with_time, url_of
from mrflow.server.service import Kept
from mrflow.server.settings import Settings
from mrflow.server.store import Store

Item = TypeVar("Item")

NAME = "mrflow"  # of the application at Ray Serve

_PATIENCE = 5  # seconds with other replicas; Prometheus itself waits for ten


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """What the replicas are and where they run. Checked on creation: raises RequestError.

    load: gives the model on "cpu" or "cuda"; pickled, and called in each replica. count: of replicas. address: of
    a running Ray, as ray.init takes it, or "local". gpus: of each replica, a part of one if it shares; None is one
    where the cluster has any. threads: of each replica on a CPU; None divides torch's among them.
    """

    load: Callable[[str], MrFlow]
    count: int = 2
    address: str = LOCAL
    gpus: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_workers({"count": self.count, "threads": self.threads}, {"gpus": self.gpus})


class Shelf:
    """Drafts and files of all replicas; an actor, which dies with Ray and with it what it keeps."""

    def __init__(self, settings: Settings) -> None:
        """Keep nothing yet; settings say how much and for how long."""
        kept = Kept.of(settings)
        self._stores: dict[str, Store[Any]] = {"files": kept.files, "drafts": kept.drafts}

    def put(self, store: str, item: Any, size: int) -> str:
        """Keep an item and return its name."""
        return self._stores[store].put(item, size)

    def get(self, store: str, name: str) -> Any:
        """Return the item or None."""
        return self._stores[store].get(name)

    def count(self, store: str) -> int:
        """Return how many items a store has."""
        return len(self._stores[store])


class SharedStore(Store[Item]):
    """One of the shelf's stores, as a replica uses it: from a thread, for it waits for the shelf."""

    def __init__(self, call: Callable[..., Any], name: str, seconds: float) -> None:
        """call: has a method of the shelf done, with its arguments, and returns the outcome."""
        self.seconds = seconds
        self._call, self._name = call, name

    def __len__(self) -> int:
        return int(self._call("count", self._name))

    def put(self, item: Item, size: int) -> str:
        """Keep an item of so many bytes and return its name."""
        return str(self._call("put", self._name, item, size))

    def get(self, name: str) -> Item | None:
        """Return the item, or None if there is none of this name any more."""
        found: Item | None = self._call("get", self._name, name)
        return found


class Replica:
    """One copy of the application. Ray Serve calls the methods."""

    def __init__(self, make: Callable[[], FastAPI]) -> None:
        """Load the model; the application starts with its lifespan."""
        self._application = make()
        self._metrics = self._application.state.service.metrics
        self._metrics.gather = lambda: dict(_ask_all("numbers") or [self.numbers()])

    def numbers(self) -> tuple[str, str]:
        """Return this replica's name and its metrics."""
        import ray

        return ray.get_runtime_context().get_actor_id()[:12], self._metrics.own().decode()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application

    def check_health(self) -> None:
        """Raise if the worker hangs, so that the replica is replaced."""
        if self._application.state.service.scheduler.state == "hung":
            raise RuntimeError("The worker hangs.")


def make_application(
    load: Callable[[str], MrFlow],
    device: str,
    settings: Settings,
    call: Callable[..., Any],
    keys: Keys,
    aliases: Sequence[str],
    address: Address | None,
) -> FastAPI:
    """Return a replica's application. call: as SharedStore has it. No page: it needs one process."""
    log_with_time()
    seconds = settings.keep_seconds
    kept = Kept(files=SharedStore(call, "files", seconds), drafts=SharedStore(call, "drafts", seconds))
    return create_app(load(device), settings, keys=keys, aliases=aliases, address=address, page=False, kept=kept)


@contextmanager
def serving(
    replicas: Replicas,
    settings: Settings,
    host: str,
    port: int,
    *,
    keys: Keys,
    aliases: Sequence[str] = (),
    address: Address | None = None,
    keep_alive: int = 5,
) -> Iterator[str]:
    """Give the address once all replicas take requests; they and what was started for them end with the block.

    Raises MissingExtraError without Ray Serve, RequestError if the port can't be had, ClusterError if Ray or a
    replica can't start.
    """
    check_ray("serve")
    with listen(host, port) as listening:  # Ray Serve says nothing of a port that can't be had
        port = listening.getsockname()[1]
    threads = replicas.threads or max(1, torch.get_num_threads() // replicas.count)
    cpus = max(os.cpu_count() or 1, threads * replicas.count)
    with connected(replicas.address, cpus) as ray:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # it tells stderr of each step
        if ray.serve.status().proxies:
            raise ClusterError("Ray Serve already runs there, at an address of its own. Stop it: serve shutdown")
        gpus = worker_gpus(ray, replicas.gpus)
        shelf = ray.remote(Shelf).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(settings)
        make = partial(
            make_application,
            *(replicas.load, "cuda" if gpus else "cpu", settings, partial(_ask, shelf), keys, aliases, address),
        )
        deployment = ray.serve.deployment(
            ray.serve.ingress()(Replica),
            name=NAME,
            num_replicas=replicas.count,
            max_ongoing_requests=4 * settings.max_waiting,  # the application itself says 429, and why
            request_router_config={"request_router_class": "mrflow.server.routing.ShortestQueue"},
            graceful_shutdown_timeout_s=settings.drain,
            ray_actor_options={"num_cpus": threads, "num_gpus": gpus},
        )
        try:
            _start(ray, deployment.bind(make), {"host": host, "port": port, "keep_alive_timeout_s": keep_alive})
            yield url_of(host, port)
        finally:
            ray.serve.shutdown()


def _start(ray: Any, application: Any, http_options: dict[str, Any]) -> None:
    try:
        ray.serve.start(proxy_location="HeadOnly", http_options=http_options)
        ray.serve.run(application, name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:  # the first: a deployment failed
        raise ClusterError(f"The replicas can't start: {describe_reason(error)}") from error


def _ask_all(method: str) -> list[Any]:
    """Return what the replicas answer, those left out that don't within some seconds."""
    import ray

    try:
        asked = ray.serve.get_deployment_handle(NAME, NAME).broadcast(method)
        answers = asked.results(timeout_s=_PATIENCE, return_exceptions=True)
    except TimeoutError:
        return []
    return [each for each in answers if not isinstance(each, BaseException)]


def _ask(shelf: Any, method: str, *arguments: Any) -> Any:
    import ray

    return ray.get(getattr(shelf, method).remote(*arguments))
