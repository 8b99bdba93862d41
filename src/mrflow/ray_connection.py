"""Ray, a running one or one of this machine alone that is started and stopped here; what its workers may have."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mrflow.errors import ClusterError, MissingExtraError, RequestError

LOCAL = "local"  # Ray's own word for a cluster of this machine, started and stopped by us

_STORE = 512 * 2**20  # bytes of shared memory of a local Ray; a 1024x1024 draft with FLUX's text takes 8 MB
_STARTS = 2  # Ray 2.60 gives its own agents 15 s, too few on a busy machine (ray-project/ray, issue 65983)
_MOST_GPUS = 64  # of one worker, which is a process on one machine


def check_workers(counts: Mapping[str, int | None], gpus: Mapping[str, float | None]) -> None:
    """Raise RequestError for what no worker can have; None, of either, is for Ray or us to fill in.

    counts: name to a number of processes or threads. gpus: name to the GPUs of each worker.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise RequestError(f"{name} is {count}; it must be at least 1. Try 1.")
    for name, part in gpus.items():
        if part is not None and not (0 <= part <= 1 or (part <= _MOST_GPUS and part == int(part))):
            raise RequestError(f"{name} is {part}; it must be a part of one GPU or a whole number. Try 1.")


def worker_gpus(ray: Any, asked: float | None) -> float:
    """Return the GPUs of each worker: as asked for, else one where the cluster has any."""
    if asked is not None:
        return asked
    return 1.0 if ray.cluster_resources().get("GPU") else 0.0


def check_ray(library: str) -> None:
    """Raise MissingExtraError unless Ray and this library of its, "data" or "serve", are installed."""
    try:
        for module in ("ray", f"ray.{library}"):
            import_module(module)
    except ImportError:
        raise MissingExtraError(f"Ray {library.capitalize()}", "ray") from None


@contextmanager
def connected(address: str, cpus: int) -> Iterator[Any]:
    """Give ray, connected; a Ray that was started here is stopped afterwards, a connection made here is closed.

    address: as ray.init takes it, or LOCAL. cpus: that a local Ray is to believe in.
    Raises ClusterError if no Ray answers at the address or none can be started.
    """
    import ray

    if ray.is_initialized():  # the caller's own
        yield ray
        return
    _connect(ray, address, cpus)
    try:
        with _news_on_stderr():
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _news_on_stderr() -> Iterator[None]:
    """Have Ray tell of lost nodes and workers on stderr meanwhile: 2.60 does so on stdout, which is for data."""
    from ray._private import worker

    tell = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, *more, **options: tell({**data, "is_err": True}, *more, **options)
    try:
        yield
    finally:
        worker.print_to_stdstream = tell


def _connect(ray: Any, address: str, cpus: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    attempts, what = 1, f"No Ray answers at {address}"
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
        attempts, what = _STARTS, "Ray can't be started here"
    for attempt in range(1, attempts + 1):
        try:
            _knock(address)
            ray.init(address, **options)
            return
        except Exception as error:  # Ray raises plain ones, too
            ray.shutdown()
            if attempt == attempts:
                raise ClusterError(f"{what}: {describe_reason(error)}{_hint(error)}") from error


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def describe_reason(error: BaseException) -> str:
    """Return the last line of an error's text: Ray's texts hold the worker's whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _hint(error: BaseException) -> str:
    """Return what to do about a cluster that wants Ray's token, which Ray's message buries."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ == "AuthenticationError":
            return ". It asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token."
        cause = cause.__cause__ or cause.__context__
    return ""
