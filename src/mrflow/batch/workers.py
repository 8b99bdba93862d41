"""What the workers of a cluster do: one drafts, another finishes, each with a model and a process of its own.

Bit for bit the pictures of one process, as far as that can be: a worker has as many torch threads for a picture as
the plain run, tensors travel with their strides (a convolution takes another path for another memory format), and
prompts are encoded one at a time. What travels is pickled, as everything in Ray is: a cluster trusts itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mrflow.batch.engine import Drafted, draft_all, finish_all
from mrflow.batch.tasks import Failure, Task, describe_error
from mrflow.batch.writer import Encoded, encode
from mrflow.batches import BatchSizes, Work
from mrflow.borrowing import borrowed
from mrflow.errors import ModelError
from mrflow.model import Model

if TYPE_CHECKING:
    import pyarrow

    from mrflow.pipeline import MrFlow

LoadModel = Callable[[str], "MrFlow"]

_COLUMN = "pickled"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What workers need to know.

    load: gives the model on a device, "cpu" or "cuda". identity: of the model that the rows were checked with.
    threads: of torch, for a picture. batch_size: pictures that share a pass. grow: find a larger one. suffix: of
    the files.
    """

    load: LoadModel
    identity: tuple[str | None, ...]
    threads: int
    batch_size: int
    grow: bool
    suffix: str


class _Worker:
    """A model, loaded once. Ray calls it from several threads; the model works for one at a time."""

    def __init__(self, setting: Setting, device: str) -> None:
        torch.set_num_threads(setting.threads)
        self._setting = setting
        self._model = setting.load(device).model
        if (found := identify(self._model)) != setting.identity:
            raise ModelError(f"A worker loaded {found}, the rows were checked with {setting.identity}.")
        self._sizes = BatchSizes(setting.batch_size, grow=setting.grow)
        self._lock = Lock()

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Return what became of a window: what the next stage takes, and failures."""
        items = unpack(table)
        failures = [each for each in items if isinstance(each, Failure)]
        todo = [each for each in items if not isinstance(each, Failure)]
        try:
            torch.set_num_threads(self._setting.threads)  # each thread has a number of its own
            work = Work(model=self._model, sizes=self._sizes, failed=partial(_fail, failures))
            return pack([*self._make(todo, work), *failures])
        except Exception as error:  # Ray would drop the window and say so in its logs alone
            tasks = [each.task if isinstance(each, Drafted) else each for each in todo]
            known = {failure.id for failure in failures}
            for task in tasks:
                if task.id not in known:
                    _fail(failures, task, error)
            return pack(failures)

    def _make(self, todo: Sequence[Any], work: Work[Task]) -> Sequence[Any]:
        raise NotImplementedError


class DraftWorker(_Worker):
    """Steps 1 to 3 of a window of tasks."""

    def _make(self, todo: Sequence[Task], work: Work[Task]) -> Sequence[Drafted]:
        with self._lock, borrowed(self._model.pipe):
            drafted = draft_all(work, work.read_all(todo))
        return [_placed(each, torch.device("cpu")) for each in drafted]


class FinishWorker(_Worker):
    """Steps 4 to 8 of a window of drafts, and their files; one window is encoded while the next is computed."""

    def _make(self, todo: Sequence[Drafted], work: Work[Task]) -> Sequence[Encoded]:
        drafted = [_placed(each, self._model.device) for each in todo]
        with self._lock, borrowed(self._model.pipe):
            finished = list(finish_all(work, drafted))
        encoded: list[Encoded] = []
        for each in finished:
            try:
                encoded.append(encode(each, self._setting.suffix))
            except Exception as error:
                work.failed(each.task, error)
        return encoded


def _fail(failures: list[Failure], task: Task, error: Exception) -> None:
    failures.append(Failure(task.row, task.id, describe_error(error)))


def identify(model: Model) -> tuple[str | None, ...]:
    """Return what must be the same in all processes for their pictures to be."""
    loras = (str(lora.sha256) for lora in model.loras.usual)
    return (model.name, model.revision, model.upscaler.name, model.upscaler.sha256, *loras)


def pack(items: Sequence[Any]) -> pyarrow.Table:
    """Return things as a table of one row, which Ray carries about."""
    import pyarrow

    return pyarrow.table({_COLUMN: pyarrow.array([pickle.dumps(list(items))], pyarrow.large_binary())})


def unpack(table: pyarrow.Table) -> list[Any]:
    """Return the things in a table of any number of rows."""
    return [item for row in table[_COLUMN].to_pylist() for item in pickle.loads(row)]


def _placed(drafted: Drafted, device: torch.device) -> Drafted:
    """Return the draft with its tensors on a device."""
    draft = drafted.draft
    rows = draft.embeds or {}
    embeds = {name: row.to(device) if isinstance(row, Tensor) else row for name, row in rows.items()}
    latents = None if draft.latents is None else draft.latents.to(device)
    return replace(drafted, draft=replace(draft, pixels=draft.pixels.to(device), embeds=embeds, latents=latents))
