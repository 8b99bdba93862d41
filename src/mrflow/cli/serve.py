"""`mrflow serve`: the images API and the page, until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrflow.cli import options, ray_options
from mrflow.cli.loading import ModelOptions, best_device
from mrflow.cli.reporting import reporting, say
from mrflow.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    from mrflow.server.keys import Keys

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_WHERE, _SHARE = "Where and for whom", "Sharing the machine"

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1, mps; several times for several workers.",
        rich_help_panel="Model",
        show_default="cuda where there is one, else cpu",
    ),
]


def serve(
    model: options.Model = "vista",
    upscaler: options.Upscaler = None,
    device: Devices = None,
    dtype: options.Dtype = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            "--alias",
            metavar="NAME",
            help="A further name for the model in requests, such as gpt-image-1; several times for several.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on.", rich_help_panel=_WHERE)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.", rich_help_panel=_WHERE)
    ] = 8000,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            metavar="FILE",
            help="API keys, one a line; more may stand in the variable MRFLOW_API_KEYS.",
            rich_help_panel=_WHERE,
            show_default="none",
        ),
    ] = None,
    anyone: Annotated[
        bool,
        typer.Option("--allow-anyone", help="Listen beyond this machine without any key.", rich_help_panel=_WHERE),
    ] = False,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Serve the page at /.", rich_help_panel=_WHERE)
    ] = True,
    lanes: Annotated[
        int | None,
        typer.Option(
            "--lanes",
            metavar="N",
            min=1,
            help="Batches side by side on a CPU, with one set of weights.",
            rich_help_panel=_SHARE,
            show_default="one for each core, for a small model",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Drafts that go through the model at once.",
            rich_help_panel=_SHARE,
            show_default="8",
        ),
    ] = None,
    finish_batch: Annotated[
        int | None,
        typer.Option(
            "--finish-batch",
            metavar="N",
            min=1,
            help="Pictures that are finished at once.",
            rich_help_panel=_SHARE,
            show_default="1 on a CPU, else 4",
        ),
    ] = None,
    queue: Annotated[
        int,
        typer.Option("--queue", metavar="N", help="Pictures that may wait; then 429.", rich_help_panel=_SHARE),
    ] = 128,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", help="Patience with a request; then 503.", rich_help_panel=_SHARE
        ),
    ] = 300,
    hang_after: Annotated[
        float,
        typer.Option(
            "--hang-after",
            metavar="SECONDS",
            help="Without a step for so long, a worker counts as hung.",
            rich_help_panel=_SHARE,
        ),
    ] = 300,
    drain: Annotated[
        float,
        typer.Option(
            "--drain", metavar="SECONDS", help="Given to what is queued when told to stop.", rich_help_panel=_SHARE
        ),
    ] = 30,
    max_pixels: Annotated[
        int,
        typer.Option("--max-pixels", metavar="N", help="Of a finished picture.", rich_help_panel=_SHARE),
    ] = 2048 * 2048,
    ray: ray_options.Ray = None,
    replicas: ray_options.Replicas = None,
    worker_threads: ray_options.WorkerThreads = None,
    debug: options.Debug = False,
) -> None:
    """Serve an OpenAI-compatible images API, and a page to use it, until Ctrl-C or SIGTERM.

    Examples:
      mrflow serve
      mrflow serve --model black-forest-labs/FLUX.1-dev --upscaler RealESRGAN_x2plus.pth --device cuda:0
      mrflow serve --host 0.0.0.0 --port 80 --keys keys.txt --alias gpt-image-1
      mrflow serve --ray --replicas 4
    """
    with reporting(debug):
        _check_installed(page and ray is None)
        from mrflow.server.keys import Keys
        from mrflow.server.settings import Settings

        settings = Settings(
            lanes=lanes,
            draft_batch=batch_size,
            finish_batch=finish_batch,
            max_waiting=queue,
            timeout=timeout,
            hang_after=hang_after,
            drain=drain,
            max_pixels=max_pixels,
        )
        known = Keys.read(keys)
        local = _check_host(host, known, anyone=anyone)
        # beside the names of this machine nobody calls a local server, but other sites through a browser
        hosts = _LOOPBACK_NAMES if local and not known else None
        if len(device or ()) > 1 and ray is not None:
            raise RequestError("--device is given several times; with --ray there are --replicas instead.")
        chosen = ModelOptions(model=model, upscaler=upscaler, device=device[0] if device else None, dtype=dtype)
        spread = ray_options.make_replicas(ray, chosen, replicas=replicas, worker_threads=worker_threads)
        if spread is not None:
            from mrflow.server.replicas import serving

            with serving(spread, settings, host, port, keys=known, aliases=alias or (), hosts=hosts) as url:
                _tell(url)
                _wait()
            return
        models = [
            ModelOptions(model=model, upscaler=upscaler, device=each, dtype=dtype).load()
            for each in device or [best_device()]
        ]
        from mrflow.server.app import create_app
        from mrflow.server.running import run

        app = create_app(models, settings, keys=known, aliases=alias or (), hosts=hosts, page=page)
        run(app, host, port, _tell)


def _tell(url: str) -> None:
    say(f"{url} is ready; the API is at {url}/v1, its description at {url}/docs", "Serving", "green")


def _wait() -> None:
    """Return at SIGTERM or Ctrl-C."""
    told = threading.Event()
    before = {each: signal.signal(each, lambda *_: told.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not told.wait(1):  # in turns: Windows sees no signal during a wait without end
            pass
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _check_installed(page: bool) -> None:
    from importlib.util import find_spec

    needed = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
    needed |= {"python_multipart": "python-multipart"} | ({"gradio": "gradio"} if page else {})
    for module, package in needed.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "server")


def _check_host(host: str, keys: Keys | Any, *, anyone: bool) -> bool:
    """Return whether only this machine can call `host`; raises RequestError if strangers could, unasked."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not keys and not anyone:
        raise RequestError(
            f"host is {host}, where others can call: API keys are needed, from --keys FILE or MRFLOW_API_KEYS. "
            "Listen on 127.0.0.1, or let everybody in with --allow-anyone."
        )
    return local
