"""`mrflow serve`: the images API and the page, until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mrflow.cli.loading import ServedModel, best_device
from mrflow.cli.options import SHARING, WHERE, Count, Debug, Whole
from mrflow.cli.planning import PlanOptions
from mrflow.cli.ray_options import ReplicaOptions
from mrflow.cli.reporting import say
from mrflow.errors import MissingExtraError, RequestError
from mrflow.plan import Plan, named_plan

if TYPE_CHECKING:
    from mrflow import MrFlow
    from mrflow.server.keys import Keys

_THE_MODELS = ("guidance_scale", "true_cfg_scale", "refine_true_cfg_scale", "guidance_stop", "solver")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@Parameter(name="*", group=WHERE)
@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server listens, and who may come in.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        keys: API keys, one a line; more may stand in the variable MRFLOW_API_KEYS.
        allow_anyone: Listen beyond this machine without any key.
        page: Serve the page at /.
        a1111: Speak AUTOMATIC1111's API, too.
        mcp: Give assistants tools at /mcp, see mrflow mcp.
        root_path: Below which a proxy shows the server: a path, or a whole address.
        trusted_proxy: Address or network of a proxy whose X-Forwarded headers are believed.
        keep_alive: How long an idle connection is kept.
    """

    host: str = "127.0.0.1"
    port: Annotated[Whole, Parameter(validator=Number(gte=0, lte=65535))] = 8000
    keys: Annotated[str | None, Parameter(metavar="FILE", show_default="none")] = None
    allow_anyone: bool = False
    page: Annotated[bool, Parameter(negative="--no-page", show_default="page")] = True
    a1111: Annotated[bool, Parameter(negative="")] = False
    mcp: Annotated[bool, Parameter(negative="")] = False
    root_path: Annotated[str, Parameter(metavar="/PATH", show_default="/")] = ""
    trusted_proxy: Annotated[tuple[str, ...], Parameter(metavar="ADDRESS", show_default="none")] = ()
    keep_alive: Annotated[Count, Parameter(metavar="SECONDS")] = 5


@Parameter(name="*", group=SHARING)
@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The fields of the server's Settings that can be set here.

    Args:
        lanes: Batches side by side on a CPU, with one set of weights.
        draft_batch: Drafts that go through the model at once.
        finish_batch: Pictures that are finished at once.
        max_waiting: Pictures that may wait; then 429.
        timeout: Patience with a request; then 503.
        hang_after: Without a step for so long, a worker counts as hung.
        drain: Given to what is queued when told to stop.
        max_pixels: Of a finished picture.
        strict: Refuse fields of requests that only other servers have.
    """

    lanes: Annotated[Count | None, Parameter(metavar="N", show_default="one for each core, for a small model")] = (
        None
    )
    draft_batch: Annotated[Count | None, Parameter(name="--batch-size", metavar="N", show_default="8")] = None
    finish_batch: Annotated[Count | None, Parameter(metavar="N", show_default="1 on a CPU, else 4")] = None
    max_waiting: Annotated[Whole, Parameter(name="--queue", metavar="N")] = 128
    timeout: Annotated[float, Parameter(metavar="SECONDS")] = 300
    hang_after: Annotated[float, Parameter(metavar="SECONDS")] = 300
    drain: Annotated[float, Parameter(metavar="SECONDS")] = 30
    max_pixels: Annotated[Whole, Parameter(metavar="N")] = 2048 * 2048
    strict: Annotated[bool, Parameter(negative="")] = False


def serve(
    *,
    model: ServedModel = ServedModel(),
    plans: PlanOptions = PlanOptions(),
    door: Door = Door(),
    sharing: Sharing = Sharing(),
    ray: ReplicaOptions = ReplicaOptions(),
    debug: Debug = False,
) -> None:
    """Serve an OpenAI-compatible images API, and a page to use it, until Ctrl-C or SIGTERM.

    --plan and the numbers beside it are those of requests that say nothing else.

    Examples:
      mrflow serve
      mrflow serve --model black-forest-labs/FLUX.1-dev --upscaler RealESRGAN_x2plus.pth --device cuda:0
      mrflow serve --host 0.0.0.0 --port 80 --keys keys.txt --alias gpt-image-1
      mrflow serve --model flux-dev --plan 20+1 --sigma 0.16 --guidance 3
      mrflow serve --root-path /images --trusted-proxy 127.0.0.1 --keys keys.txt
      mrflow serve --ray --replicas 4
    """
    check_installed(mcp=door.mcp)
    from mrflow.server.address import Address
    from mrflow.server.keys import Keys
    from mrflow.server.requests import check_steps
    from mrflow.server.settings import Settings

    settings = Settings(**vars(sharing))
    check_steps(plans.outline(), settings)
    base = None if plans.plan is None else named_plan(plans.plan)  # a file is read here, not by replicas elsewhere
    keys = Keys.read(door.keys)
    host = door.host.strip("[]").lower()
    local = _check_host(host, keys, anyone=door.allow_anyone)
    # beside the names of this machine nobody calls a local server, but other sites through a browser
    hosts = (*_LOOPBACK_NAMES, host) if local and not keys and not door.allow_anyone else None
    address = Address(hosts=hosts, root_path=door.root_path, trusted_proxies=door.trusted_proxy)
    known: dict[str, Any] = {"keys": keys, "aliases": model.alias, "address": address}
    if len(model.devices) > 1 and ray.ray is not None:
        raise RequestError("--device is given several times; with --ray there are --replicas instead.")
    if (door.a1111 or door.mcp) and ray.ray is not None:
        raise RequestError("--a1111 and --mcp are bound to one process; leave out --ray.")
    replicas = ray.make(replace(model, device=next(iter(model.devices), None)))
    if replicas is not None:
        from mrflow.server.replicas import serving

        replicas = replace(replicas, load=partial(_planned, plans, base, replicas.load))
        with serving(replicas, settings, host, door.port, **known, keep_alive=door.keep_alive) as url:
            _tell(url)
            _wait()
        return
    models = [_planned(plans, base, replace(model, device=each).load) for each in model.devices or [best_device()]]
    from mrflow.server.app import create_app
    from mrflow.server.running import run

    app = create_app(models, settings, **known, page=door.page, a1111=door.a1111, mcp=door.mcp)
    run(app, host, door.port, _tell, keep_alive=door.keep_alive)


def _planned(plans: PlanOptions, base: Plan | None, load: Any, *device: str) -> MrFlow:
    """Return the loaded model, its own plan that of the options; raises PlanError where it can't take that."""
    fast: MrFlow = load(*device)
    if plans.given():
        own = fast.model.defaults
        plan = plans.apply(fast, own.plan if base is None else base)
        fast.model.resolve_plan(plan)
        filled = {name: getattr(own.plan, name) for name in _THE_MODELS if getattr(plan, name) is None}
        fast.model = replace(fast.model, defaults=replace(own, plan=replace(plan, **filled)))
    return fast


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


def check_installed(*, mcp: bool = False) -> None:
    """Raise MissingExtraError for a library that is not there. mcp: of tools for assistants."""
    from importlib.util import find_spec

    needed = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
    needed |= {"python_multipart": "python-multipart"}
    for module, package in needed.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "server")
    if mcp and find_spec("mcp") is None:
        raise MissingExtraError("mcp", "mcp")


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
