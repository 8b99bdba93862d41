"""The commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

import mrflow
from mrflow.cli.balance import balance
from mrflow.cli.batch import batch
from mrflow.cli.bench import bench
from mrflow.cli.compare import compare
from mrflow.cli.draft import draft
from mrflow.cli.enhance import enhance
from mrflow.cli.export import export
from mrflow.cli.finish import finish
from mrflow.cli.generate import generate
from mrflow.cli.models import models
from mrflow.cli.ray_options import RayCommand
from mrflow.cli.replay import replay
from mrflow.cli.serve import serve
from mrflow.cli.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mrflow {mrflow.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Text-to-image about ten times faster, without training: draft small, then finish large.

    Start with: mrflow generate "a lake at sunset with mountains" --compare
    """


for command in (
    *(generate, draft, finish, enhance, replay, batch, serve, models),
    *(bench, balance, compare, tune, export),
):
    app.command(cls=RayCommand if command in (batch, serve) else None)(command)
