"""`--ray [ADDRESS]` and what belongs to it."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mrflow.errors import RequestError

if TYPE_CHECKING:
    from mrflow.batch.cluster import Cluster
    from mrflow.cli.loading import ModelOptions
    from mrflow.pipeline import MrFlow

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
        help="Make them with Ray: auto, HOST:PORT or ray://HOST:PORT; without an address one is started here.",
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


def make_cluster(address: str | None, model: ModelOptions, **workers: float | None) -> Cluster | None:
    """Return the cluster that the options ask for, None for none.

    Raises RequestError for a cluster's options without --ray, MissingExtraError without Ray.
    """
    given = {name: value for name, value in workers.items() if value is not None}
    if address is None:
        if given:
            raise RequestError(f"--{next(iter(given)).replace('_', '-')} says how Ray is to work. Add --ray.")
        return None
    from mrflow.batch.cluster import Cluster
    from mrflow.ray_connection import check_ray

    check_ray("data")
    if model.device == "cpu":
        given = {"draft_gpus": 0, "finish_gpus": 0} | given
    load = partial(_load, model.model, model.upscaler, model.dtype)
    return Cluster(load=load, address=address, **given)  # type: ignore[arg-type]  # checked there


def _load(model: str, upscaler: str | None, dtype: str | None, device: str) -> MrFlow:
    """Return the model in a worker."""
    from mrflow.pipeline import MrFlow

    return MrFlow.from_pretrained(model, upscaler=upscaler, device=device, dtype=dtype)
