"""Running the application under uvicorn, and ending it in order."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mrflow.errors import RequestError
from mrflow.server.scheduler import Scheduler

_ANSWERING = 5  # seconds for the last answers; what is still open then is cut off


class _Server(uvicorn.Server):
    """uvicorn that tells the scheduler of SIGTERM and Ctrl-C at once, and ends as if it had been asked kindly.

    uvicorn itself waits for open requests first, and raises the signal again in the end (0.54, server.py).
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._scheduler: Scheduler = app.state.service.scheduler
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        while self._scheduler.busy and not self.force_exit:  # the scheduler's patience ends, if its work does not
            await asyncio.sleep(0.1)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # answers that are cut off are no errors
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # the second time
            self.force_exit = True
            self._scheduler.stop(0)
        self.should_exit = True
        self._scheduler.stop()


def run(app: FastAPI, host: str, port: int, on_ready: Callable[[str], None], keep_alive: int = 5) -> None:
    """Serve until SIGTERM or Ctrl-C; what is queued then has the time set for it, a second signal ends it at once.

    on_ready: told the address once requests are taken.
    keep_alive: seconds that idle connections are kept; 5 is uvicorn's own.
    Raises RequestError if the port can't be had.
    """
    log_with_time()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,  # the guard believes the proxies that it was told of, uvicorn all on this machine
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=_ANSWERING,
    )
    with listen(host, port) as listening:
        url = url_of(host, listening.getsockname()[1])
        _Server(config, app, lambda: on_ready(url)).run([listening])


def log_with_time() -> None:
    """Have what is logged say when, unless somebody has set up logging already."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, for port 0 at a free one; raises RequestError if it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # the latter for labels that no name may have
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{host}:{port} can't be listened on: {why}. Take another --host or --port.") from None


def url_of(host: str, port: int) -> str:
    """Return the address to call."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
