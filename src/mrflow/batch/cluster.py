"""A batch on a Ray cluster, or on a Ray of this machine alone: two stages of Ray Data, each a pool of workers.

    tasks -> DraftWorker x draft_workers -> FinishWorker x finish_workers -> this process: writer, manifest

Ray places the workers, carries what is between them, starts lost ones again and repeats what they were at, for as
long as it takes (Ray 2.60 deprecates every way to say how often), and holds the drafts back where finishing or
writing is slower. Only this process writes, once per picture.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mrflow.batch.tasks import MAX_FAILURES_IN_A_ROW, Failure, Streak, Task, by_kind, next_window
from mrflow.batch.workers import DraftWorker, FinishWorker, LoadModel, Setting, pack, unpack
from mrflow.batch.writer import Encoded
from mrflow.errors import ClusterError, RequestError
from mrflow.ray_connection import LOCAL, check_ray, check_workers, connected, describe_reason, worker_gpus

WINDOW = 16  # pictures that a GPU worker is given at once; batches found by trying grow up to it
PART = 20_000  # windows that Ray is given at once: each is an object in its shared memory, 3 kB and more

_BLOCK = 16 * 2**20  # what Ray is to expect of a window before it has seen one; its own guess is 128 MiB


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where and how wide a batch runs. Checked on creation: raises RequestError.

    load: gives the model on "cpu" or "cuda"; pickled, and called in each worker. address: of a running Ray, as
    ray.init takes it, or "local". draft_workers, finish_workers: processes of each stage. draft_gpus, finish_gpus:
    GPUs of each worker, a part of one if it shares; None is one where the cluster has any. worker_threads: those
    of each worker; None is as many as a picture would get without Ray, or one beside a GPU.
    """

    load: LoadModel
    address: str = LOCAL
    draft_workers: int = 1
    finish_workers: int = 1
    draft_gpus: float | None = None
    finish_gpus: float | None = None
    worker_threads: int | None = None

    def __post_init__(self) -> None:
        if self.address.startswith("ray://"):  # tried with 2.60, whose Data wants a core worker in this process
            raise RequestError(
                f"The address is {self.address}; a batch can't go through Ray's client. "
                "Start it on a node of the cluster, with --ray auto."
            )
        check_workers(
            {name: getattr(self, name) for name in ("draft_workers", "finish_workers", "worker_threads")},
            {name: getattr(self, name) for name in ("draft_gpus", "finish_gpus")},
        )


class ClusterEngine:
    """Makes tasks on a cluster, as `Engine` does on one machine."""

    def __init__(
        self,
        cluster: Cluster,
        setting: Setting,
        put: Callable[[Encoded], None],
        on_failure: Callable[[Failure], None],
        *,
        batch_size: int | None,
    ) -> None:
        """setting: of workers without a GPU. batch_size: as asked for; None is one on a CPU, else found."""
        self._cluster = cluster
        self._setting = setting
        self._put = put
        self._on_failure = on_failure
        self._batch_size = batch_size
        self._streak = Streak()

    def run(self, tasks: Sequence[Task]) -> None:
        """Make all tasks, in the order in which they get ready.

        Raises MissingExtraError without Ray, ClusterError if it or its workers are not to be had, BatchError if
        one row after another fails, and whatever put and on_failure raise.
        """
        if not tasks:
            return
        check_ray("data")
        left = {task.id: task for task in tasks}
        with connected(self._cluster.address, self._cpus()) as ray, _quiet(ray):
            try:
                for flow in self._flows(ray, tasks):
                    for table in flow.iter_batches(batch_size=None, batch_format="pyarrow"):
                        for item in unpack(table):
                            self._take(item, left)
            except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
                raise ClusterError(f"The workers can't go on: {describe_reason(error)}") from error
            for task in left.values():  # Ray gave their windows up
                self._fail(Failure(task.row, task.id, "Ray gave it up; its logs say why."))

    def _take(self, item: Encoded | Failure, left: dict[str, Task]) -> None:
        id = item.task.id if isinstance(item, Encoded) else str(item.id)
        if left.pop(id, None) is None:  # made twice, which Ray may do where nodes vanish: the first counts
            return
        if isinstance(item, Failure):
            self._fail(item)
        else:
            self._streak.worked()
            self._put(item)

    def _fail(self, failure: Failure) -> None:
        self._on_failure(failure)
        self._streak.failed(failure.error)

    def _cpus(self) -> int:
        workers = self._cluster.draft_workers + self._cluster.finish_workers
        return max(os.cpu_count() or 1, self._setting.threads * workers)

    def _flows(self, ray: Any, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield datasets whose blocks are finished windows; each starts workers of its own."""
        draft_gpus = worker_gpus(ray, self._cluster.draft_gpus)
        finish_gpus = worker_gpus(ray, self._cluster.finish_gpus)
        most = self._batch_size or (WINDOW if draft_gpus or finish_gpus else 1)
        windows = list(_windows(tasks, most))
        for begin in range(0, len(windows), PART):
            part = windows[begin : begin + PART]
            drafting = min(self._cluster.draft_workers, len(part))  # Ray warns of workers without work
            finishing = min(self._cluster.finish_workers, len(part))
            flow = ray.data.from_arrow([pack(window) for window in part])
            flow = self._stage(ray, flow, DraftWorker, drafting, draft_gpus)
            yield self._stage(ray, flow, FinishWorker, finishing, finish_gpus)

    def _stage(self, ray: Any, flow: Any, worker: type, count: int, gpus: float) -> Any:
        setting = self._setting
        if gpus:
            start = self._batch_size or 4  # as MrFlow on a GPU
            threads = self._cluster.worker_threads or 1
            setting = replace(setting, batch_size=start, grow=self._batch_size is None, threads=threads)
        pool = ray.data.ActorPoolStrategy(
            size=count, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        )
        return flow.map_batches(
            worker,
            batch_size=None,  # a block, which is a window
            batch_format="pyarrow",
            compute=pool,
            fn_constructor_args=(setting, "cuda" if gpus else "cpu"),
            num_cpus=setting.threads,
            num_gpus=gpus or None,
        )


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Hold Ray Data's own bars and lines back meanwhile, and set how much may go wrong."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_errored_blocks": MAX_FAILURES_IN_A_ROW,
        "target_max_block_size": _BLOCK,
    }
    before, level = {name: getattr(context, name) for name in wanted}, logger.level
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def _windows(tasks: Sequence[Task], most: int) -> Iterator[Sequence[Task]]:
    line = list(tasks) if most == 1 else by_kind(tasks)
    begin = 0
    while begin < len(line):
        window = next_window(line, begin, most)
        begin += len(window)
        yield window
