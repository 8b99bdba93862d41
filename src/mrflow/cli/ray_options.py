"""`--ray [ADDRESS]` and what belongs to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mrflow.errors import RequestError

if TYPE_CHECKING:
    from mrflow.batch.cluster import Cluster
    from mrflow.cli.loading import ModelOptions
    from mrflow.pipeline import MrFlow
    from mrflow.server.replicas import Replicas as ServeReplicas

_LOCAL = "local"
_ADDRESS = re.compile(r"local|auto|ray://\S+|[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")


class RayCommand(TyperCommand):
    """A command whose --ray needs no value; Typer 0.29 knows no such options.

    What follows --ray is its address only if it looks like one, so that a file of prompts may stand there.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default after an --ray that has no address."""
        filled: list[str] = []
        for arg, following in zip(args, [*args[1:], ""], strict=False):
            filled.append(arg)
            if arg == "--ray" and not _ADDRESS.fullmatch(following):
                filled.append(_LOCAL)
        return super().parse_args(ctx, filled)


Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Work with Ray: auto, HOST:PORT or ray://HOST:PORT; without an address one is started here.",
        rich_help_panel="Ray",
        show_default=False,
    ),
]
DraftWorkers = Annotated[
    int | None,
    typer.Option("--draft-workers", min=1, help="Processes that draft.", rich_help_panel="Ray", show_default="1"),
]
FinishWorkers = Annotated[
    int | None,
    typer.Option(
        "--finish-workers", min=1, help="Processes that finish.", rich_help_panel="Ray", show_default="1"
    ),
]
DraftGpus = Annotated[
    float | None,
    typer.Option(
        "--draft-gpus",
        help="GPUs of each drafting worker, such as 0.5.",
        rich_help_panel="Ray",
        show_default="1 where the cluster has any",
    ),
]
FinishGpus = Annotated[
    float | None,
    typer.Option(
        "--finish-gpus",
        help="GPUs of each finishing worker.",
        rich_help_panel="Ray",
        show_default="1 where the cluster has any",
    ),
]
WorkerThreads = Annotated[
    int | None,
    typer.Option(
        "--worker-threads",
        min=1,
        help="CPU threads of each worker.",
        rich_help_panel="Ray",
        show_default="as many as a picture has without Ray",
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        min=1,
        help="Processes with a model each, behind one address.",
        rich_help_panel="Ray",
        show_default="2",
    ),
]


def make_cluster(address: str | None, model: ModelOptions, **workers: float | None) -> Cluster | None:
    """Return the cluster that the options ask for, None for none.

    Raises RequestError for a cluster's options without --ray, MissingExtraError without Ray.
    """
    given = _given(address, workers)
    if address is None:
        return None
    from mrflow.batch.cluster import Cluster
    from mrflow.ray_connection import check_ray

    check_ray("data")
    if model.device == "cpu":
        given = {"draft_gpus": 0, "finish_gpus": 0} | given
    load = partial(_load, model.model, model.upscaler, model.dtype)
    return Cluster(load=load, address=address, **given)  # type: ignore[arg-type]  # checked there


def make_replicas(
    address: str | None, model: ModelOptions, *, replicas: int | None, worker_threads: int | None
) -> ServeReplicas | None:
    """Return the replicas that the options ask for, None for none.

    Raises RequestError for a replica's options without --ray, MissingExtraError without Ray.
    """
    _given(address, {"replicas": replicas, "worker_threads": worker_threads})
    if address is None:
        return None
    from mrflow.ray_connection import check_ray

    check_ray("serve")
    from mrflow.server.replicas import Replicas as Found

    load = partial(_load, model.model, model.upscaler, model.dtype)
    gpus = 0.0 if model.device == "cpu" else None
    return Found(load=load, count=replicas or 2, address=address, gpus=gpus, threads=worker_threads)


def _given(address: str | None, options: Mapping[str, float | None]) -> dict[str, float]:
    """Return those options that were given; raises RequestError for any without --ray."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and address is None:
        raise RequestError(f"--{next(iter(given)).replace('_', '-')} says how Ray is to work. Add --ray.")
    return given


def _load(model: str, upscaler: str | None, dtype: str | None, device: str) -> MrFlow:
    """Return the model in a worker."""
    from mrflow.pipeline import MrFlow

    return MrFlow.from_pretrained(model, upscaler=upscaler, device=device, dtype=dtype)
