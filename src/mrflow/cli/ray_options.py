"""`--ray [ADDRESS]` and what belongs to it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mrflow.cli.options import RAY, Count
from mrflow.errors import RequestError
from mrflow.jobs import split_weight

if TYPE_CHECKING:
    from mrflow.batch.cluster import Cluster
    from mrflow.cli.loading import ModelOptions
    from mrflow.pipeline import MrFlow
    from mrflow.server.replicas import Replicas

_LOCAL = "local"
_ADDRESS = re.compile(r"local|auto|ray://\S+|[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
_GPUS = "1 where the cluster has any"


def fill_address(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with an address after each --ray, the default where there is none.

    What follows --ray is its address only if it looks like one, so that a file of prompts may stand there.
    """
    filled: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        filled.append(argument)
        if argument == "--ray" and "--" not in filled and not _ADDRESS.fullmatch(following):
            filled.append(_LOCAL)
    return filled


@Parameter(name="*", group=RAY)
@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Whether to work with Ray; the others make sense with it only.

    Args:
        ray: Work with Ray: auto, HOST:PORT or, to serve, ray://HOST:PORT; without an address one is started here.
    """

    ray: Annotated[str | None, Parameter(metavar="[ADDRESS]")] = None

    def _given(self) -> dict[str, Any]:
        """Return the other options that were given; raises RequestError for any without --ray."""
        given = {name: value for name, value in vars(self).items() if value is not None and name != "ray"}
        if given and self.ray is None:
            raise RequestError(f"--{next(iter(given)).replace('_', '-')} says how Ray is to work. Add --ray.")
        return given


@Parameter(name="*", group=RAY)
@dataclass(frozen=True, kw_only=True)
class ClusterOptions(RayOptions):
    """The cluster of a batch.

    Args:
        draft_workers: Processes that draft.
        finish_workers: Processes that finish.
        draft_gpus: GPUs of each drafting worker, such as 0.5.
        finish_gpus: GPUs of each finishing worker.
        worker_threads: CPU threads of each worker.
    """

    draft_workers: Annotated[Count | None, Parameter(show_default="1")] = None
    finish_workers: Annotated[Count | None, Parameter(show_default="1")] = None
    draft_gpus: Annotated[float | None, Parameter(show_default=_GPUS)] = None
    finish_gpus: Annotated[float | None, Parameter(show_default=_GPUS)] = None
    worker_threads: Annotated[
        Count | None, Parameter(show_default="as many as a picture has without Ray, 1 beside a GPU")
    ] = None

    def cluster(self, model: ModelOptions) -> Cluster | None:
        """Return the cluster that is asked for, None for none.

        Raises RequestError for a cluster's options without --ray, MissingExtraError without Ray.
        """
        given = self._given()
        if self.ray is None:
            return None
        from mrflow.batch.cluster import Cluster
        from mrflow.ray_connection import check_ray

        check_ray("data")
        if model.device == "cpu":
            given = {"draft_gpus": 0, "finish_gpus": 0} | given
        return Cluster(load=_loader(model), address=self.ray, **given)


@Parameter(name="*", group=RAY)
@dataclass(frozen=True, kw_only=True)
class ReplicaOptions(RayOptions):
    """The replicas of a server.

    Args:
        replicas: Processes with a model each, behind one address.
        worker_threads: CPU threads of each replica.
    """

    replicas: Annotated[Count | None, Parameter(show_default="2")] = None
    worker_threads: Annotated[Count | None, Parameter(show_default="torch's, divided among the replicas")] = None

    def make(self, model: ModelOptions) -> Replicas | None:
        """Return the replicas that are asked for, None for none.

        Raises RequestError for a replica's options without --ray, MissingExtraError without Ray.
        """
        self._given()
        if self.ray is None:
            return None
        from mrflow.ray_connection import check_ray

        check_ray("serve")
        from mrflow.server.replicas import Replicas

        gpus = 0.0 if model.device == "cpu" else None
        return Replicas(
            load=_loader(model), count=self.replicas or 2, address=self.ray, gpus=gpus, threads=self.worker_threads
        )


def _loader(model: ModelOptions) -> partial[MrFlow]:
    """Return what loads the model in a worker, which may work in another folder: LoRAs have whole paths."""
    loras = (os.path.abspath(each) if os.path.exists(split_weight(each)[0]) else each for each in model.lora)
    return partial(_load, replace(model, lora=tuple(loras), loras_dir=tuple(map(Path.absolute, model.loras_dir))))


def _load(model: ModelOptions, device: str) -> MrFlow:
    """Return the model in a worker."""
    return replace(model, device=device).load()
