"""`mrflow mcp`: pictures as tools for assistants, on standard input."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from mrflow.cli.loading import ServedModel, best_device
from mrflow.cli.options import Debug
from mrflow.cli.serve import check_installed


def mcp(
    *,
    model: ServedModel = ServedModel(),
    url: Annotated[str | None, Parameter(metavar="URL", show_default="none: a model is loaded here")] = None,
    debug: Debug = False,
) -> None:
    """Give assistants pictures as tools, by the Model Context Protocol on standard input and output.

    Over HTTP the same tools are at /mcp of `mrflow serve --mcp`.

    Args:
        url: Of a running server, whose model is used; its key from the variable MRFLOW_API_KEY.

    Examples:
      mrflow mcp
      mrflow mcp --url http://127.0.0.1:8000
      mrflow mcp --model black-forest-labs/FLUX.1-dev --upscaler RealESRGAN_x2plus.pth --device cuda:0
    """
    check_installed(mcp=True)
    import asyncio
    from dataclasses import replace

    from mrflow.server.app import create_app
    from mrflow.server.mcp import run, to_app, to_url

    if url is not None:
        asyncio.run(run(to_url(url, os.environ.get("MRFLOW_API_KEY", ""))))
        return
    models = [replace(model, device=each).load() for each in model.devices or [best_device()]]
    app = create_app(models, aliases=model.alias, page=False)
    asyncio.run(run(to_app(app), app))
