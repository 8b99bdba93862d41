"""Nodes of a Ray cluster on this machine, each on a loopback address and with processes of its own."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
STORE = 100_000_000  # bytes of a node's object store


def environment() -> dict[str, str]:
    """Return what the nodes and whoever talks to them share: where modules are, and a token of their own."""
    tests = Path(__file__).parents[1]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)]),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",  # a node that is gone is missed after seconds, not half a minute
        "RAY_health_check_timeout_ms": "20000",  # one that is gone refuses, one that is busy answers late
    }


class Nodes:
    """A head without CPUs, for which the commands run, and nodes with one CPU each."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        """Start nothing yet."""
        self._env, self._folder = env, folder
        self._port, self._client = free_port(), free_port()
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.2:{self._port}"

    @property
    def client_address(self) -> str:
        return f"ray://127.0.0.2:{self._client}"

    def head(self, cpus: int = 0) -> None:
        """Start the head, and wait until it answers."""
        ports = [f"--port={self._port}", f"--ray-client-server-port={self._client}"]
        self._start("127.0.0.2", cpus, "--head", *ports, "--include-dashboard=false")
        for port in (self._port, self._client):
            _wait_for(("127.0.0.2", port))

    def add(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start another node."""
        return self._start(f"127.0.0.{len(self._started) + 2}", cpus, f"--address={self.address}")

    def _start(self, host: str, cpus: int, *options: str) -> subprocess.Popen[bytes]:
        agents = [f"--{name}={free_port()}" for name in ("dashboard-agent-grpc-port", "metrics-export-port")]
        command = [  # tried again: Ray gives its own agents 15 s, too few on a busy machine
            *("bash", "-c", 'for attempt in 1 2 3 4; do "$@" && break; done', "node"),
            *(str(RAY), "start", "--block", "--disable-usage-stats", f"--node-ip-address={host}"),
            *(f"--num-cpus={cpus}", f"--object-store-memory={STORE}", f"--temp-dir={self._folder / host}"),
            *(*agents, f"--dashboard-agent-listen-port={free_port()}", *options),
        ]
        with (self._folder / f"{host}.log").open("wb") as log:
            node = subprocess.Popen(
                command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(node)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node as a power cut would: all its processes at once."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        self._started = [each for each in self._started if each is not node]

    def stop(self) -> None:
        """End all nodes."""
        for node in reversed(list(self._started)):
            self.kill(node)


@contextmanager
def nodes(env: dict[str, str]) -> Iterator[Nodes]:
    """Give a cluster without nodes yet; they end with the block, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: a socket's path has 107 bytes at most
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Nodes(env, folder)
        stack.callback(cluster.stop)
        yield cluster


def free_port() -> int:
    """Return a port of this machine that nobody has, nor gets by asking for any, as Ray's workers do."""
    while True:
        port = random.randrange(20000, 32000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _wait_for(place: tuple[str, int], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(place, timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nobody listens at {place}"
            time.sleep(0.2)
