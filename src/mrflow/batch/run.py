"""A batch from its request to its summary: what is there is kept, the rest is made."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch

from mrflow.batch.cluster import Cluster, ClusterEngine
from mrflow.batch.engine import Engine
from mrflow.batch.manifest import MANIFEST, Entry
from mrflow.batch.output import Found, Output
from mrflow.batch.sinks import RemoteSink, Sink
from mrflow.batch.tasks import Failure, Request, Task, describe_error, resolve_wanted
from mrflow.batch.workers import Setting, identify
from mrflow.batch.writer import Writer
from mrflow.batches import BatchSizes
from mrflow.lanes import check_lanes
from mrflow.model import Model
from mrflow.pipeline import MrFlow
from mrflow.plan import Plan
from mrflow.progress import Progress

_OVERHEAD = 8192  # bytes of a picture's file besides its pixels: header, recipe, manifest line


@dataclass
class Summary:
    """How a batch stands. total: pictures asked for, failed rows included. skipped: whole from an earlier run.

    lost: were in the manifest and missing or damaged, so they were made again. seconds: of this run.
    batch_sizes: stage to what was found to fit; see mrflow.batches.
    """

    total: int = 0
    made: int = 0
    skipped: int = 0
    failed: int = 0
    lost: int = 0
    seconds: float = 0.0
    batch_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Pictures that are neither there nor failed."""
        return self.total - self.made - self.skipped - self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return {**vars(self), "left": self.left}


@dataclass(frozen=True)
class News:
    """One piece of news from a running batch: where the model is (None between), and how the batch stands.

    entry: the picture that has just become safe. failure: the row that has just failed.
    """

    summary: Summary
    progress: Progress | None = None
    entry: Entry | None = None
    failure: Failure | None = None


OnNews = Callable[[News], None]


@dataclass
class Prepared:
    """A batch that is checked row by row and could begin. bytes_needed: at most, for what is left to make."""

    tasks: list[Task]
    failures: list[Failure]
    warned: Counter[str]
    found: Found
    todo: list[Task]
    bytes_needed: int
    bytes_free: int | None


def prepare(
    model: Model, request: Request, output: Output, plan: Plan | None = None, *, remake: bool = False
) -> Prepared:
    """Return the batch as `run_batch` would begin it. Makes and changes nothing.

    plan: of rows without one; None is the model's own. Raises OutputError as `Output.find` does.
    """
    tasks, failures, warned = resolve_wanted(model, request.wanted, plan)
    sink = output.sink()
    device, dtype = model.device, model.dtype  # once, for asking takes milliseconds
    recipes = {task.id: model.recipe("staged", task.job, device=device, dtype=dtype) for task in tasks}
    found = output.find(sink, recipes, remake=remake)
    done = {entry.id for entry in found.entries}
    todo = [task for task in tasks if task.id not in done]
    needed = sum(3 * task.job.width * task.job.height + _OVERHEAD for task in todo)
    return Prepared(tasks, [*request.failures, *failures], warned, found, todo, needed, sink.free())


def run_batch(
    fast: MrFlow,
    request: Request,
    output: Output,
    plan: Plan | None = None,
    *,
    batch_size: int | None = None,
    lanes: int | None = None,
    cluster: Cluster | None = None,
    remake: bool = False,
    on_prepared: Callable[[Prepared], None] | None = None,
    on_news: OnNews | None = None,
) -> Summary:
    """Make what is missing of a batch and return how it stands.

    batch_size: pictures that share a pass. None is what `fast` says on a CPU (one, bit-equal to pictures made
    alone) and found by trying elsewhere. lanes: pictures made side by side, on a CPU; None is what suits the
    model, see mrflow.lanes. cluster: make them with Ray rather than here; `fast` then only checks the rows, and
    may be on any device. on_prepared: told before any work. on_news: told of each step, picture and
    failure, from several threads, one at a time; what it raises ends the run.
    Raises OutputError if the folder is in use or can't be written, BatchError if everything fails. Pictures that
    were finished before are safe in any case.
    """
    sizes, side_by_side = _sizes(fast, batch_size), check_lanes(fast.model, lanes)
    if cluster is None:
        fast.model.upscaler.ready()
    with output.locked():
        prepared = prepare(fast.model, request, output, plan, remake=remake)
        if on_prepared is not None:
            on_prepared(prepared)
        sink = output.sink()
        tally = _Tally(prepared, output, on_news)
        with output.repair(sink, prepared.found) as ledger:
            output.add_failures(prepared.failures)
            try:
                with Writer(sink, ledger, tally.saved, tally.failed) as writer:
                    engine: Engine | ClusterEngine
                    if cluster is None:
                        engine = Engine(
                            fast.model, sizes, writer.put, tally.failed, tally.progressed, side_by_side
                        )
                    else:
                        setting = _setting(fast, cluster, sink, batch_size, side_by_side)
                        engine = ClusterEngine(
                            cluster, setting, writer.put_encoded, tally.add, batch_size=batch_size
                        )
                    engine.run(prepared.todo)
            finally:
                tally.summary.seconds = time.perf_counter() - tally.begin
                tally.summary.batch_sizes = sizes.found()
            sink.close()
        _publish(sink, output)
    return tally.summary


class _Tally:
    """Counts what happens and passes it on, whichever thread it happens in."""

    def __init__(self, prepared: Prepared, output: Output, on_news: OnNews | None) -> None:
        failed = len(prepared.failures)
        skipped = len(prepared.tasks) - len(prepared.todo)
        total = len(prepared.tasks) + failed
        self.summary = Summary(total=total, skipped=skipped, failed=failed, lost=prepared.found.lost)
        self.begin = time.perf_counter()
        self._output = output
        self._on_news = on_news
        self._lock = Lock()

    def saved(self, entry: Entry) -> None:
        with self._lock:
            self.summary.made += 1
            self._tell(News(self.summary, entry=entry))

    def failed(self, task: Task, error: Exception) -> None:
        self.add(Failure(task.row, task.id, describe_error(error)))

    def add(self, failure: Failure) -> None:
        with self._lock:
            self._output.add_failures([failure])
            self.summary.failed += 1
            self._tell(News(self.summary, failure=failure))

    def progressed(self, progress: Progress) -> None:
        with self._lock:
            self._tell(News(self.summary, progress=progress))

    def _tell(self, news: News) -> None:
        self.summary.seconds = time.perf_counter() - self.begin
        if self._on_news is not None:
            self._on_news(news)


def _setting(fast: MrFlow, cluster: Cluster, sink: Sink, batch_size: int | None, lanes: int) -> Setting:
    """Return what makes a worker's pictures those of a run without Ray: its threads for each picture above all."""
    threads = cluster.worker_threads or (1 if lanes > 1 else torch.get_num_threads())
    return Setting(
        load=cluster.load,
        identity=identify(fast.model),
        threads=threads,
        batch_size=batch_size or 1,
        grow=False,
        suffix=sink.suffix,
    )


def _sizes(fast: MrFlow, batch_size: int | None) -> BatchSizes:
    start = batch_size or fast.batch_size
    return BatchSizes(start, grow=batch_size is None and fast.model.device.type != "cpu")


def _publish(sink: Sink, output: Output) -> None:
    """Put the manifest beside pictures in an object store, where it can't grow line by line."""
    if isinstance(sink, RemoteSink):
        sink.put(MANIFEST, output.manifest.read_bytes())
