"""Batches and servers on more than one node, one of which ends in the middle. All nodes are of this machine."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from conftest import make_pipe
from support.batches import files, manifest
from support.cli import invoke
from support.ray_nodes import Nodes, environment, free_port, nodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install ".[ray]"'),
    pytest.mark.skipif(sys.platform != "linux", reason="nodes take loopback addresses such as 127.0.0.3"),
]

COUNT = 40
SMALL = ("--size", "32x32", "--plan", "1+1", "--upscaler", "bicubic", "--device", "cpu")


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    return environment()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model and a file of prompts."""
    folder = tmp_path_factory.mktemp("two")
    make_pipe().save_pretrained(folder / "model")
    rows = [{"id": f"boat-{k:02}", "prompt": "a red boat", "seed": k} for k in range(COUNT)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Return the folder of the batch made without Ray."""
    result = invoke(
        ["batch", folder / "rows.jsonl", "--out", folder / "whole", "--model", folder / "model", *SMALL]
    )
    assert result.exit_code == 0, result.stderr
    return folder / "whole"


def command(env: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    code = "from mrflow.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def batch(folder: Path, env: dict[str, str], out: str, *more: str) -> subprocess.Popen[str]:
    arguments = ("batch", folder / "rows.jsonl", "--out", folder / out, "--model", folder / "model", *SMALL)
    return command(env, *arguments, "--json", *more)


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """See that a command ends with the block."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(happened: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def made(out: Path) -> int:
    return len(manifest(out)) if (out / "manifest.jsonl").exists() else 0


def check_complete(process: subprocess.Popen[str], out: Path, whole: Path, count: int = COUNT) -> None:
    stdout, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["made"] == count
    assert "Traceback" not in stderr
    assert files(out) == files(whole)
    assert sorted(entry["id"] for entry in manifest(out)) == sorted(entry["id"] for entry in manifest(whole))


def test_a_batch_over_two_nodes_one_of_which_ends(folder: Path, whole: Path, env: dict[str, str]) -> None:
    """Drafts on one, finishing on the other; another node takes the place of the one that is lost."""
    with nodes(env) as cluster:
        cluster.head(cpus=1)
        lost = cluster.add()
        with ending(batch(folder, env, "lost", "--ray", cluster.address)) as process:
            until(lambda: made(folder / "lost") >= 5, process)
            cluster.kill(lost)
            assert made(folder / "lost") < COUNT
            cluster.add()
            check_complete(process, folder / "lost", whole)


def test_a_cluster_that_already_runs(folder: Path, whole: Path, env: dict[str, str]) -> None:
    with nodes(env) as cluster:
        cluster.head(cpus=2)
        with ending(batch(folder, {**env, "RAY_ADDRESS": cluster.address}, "auto", "--ray", "auto")) as process:
            check_complete(process, folder / "auto", whole)


def serve(cluster: Nodes, folder: Path, env: dict[str, str], port: int, address: str) -> subprocess.Popen[str]:
    more = ("--port", str(port), "--upscaler", "bicubic", "--device", "cpu", "--worker-threads", "1")
    return command(env, "serve", "--model", folder / "model", "--ray", address, "--replicas", "2", *more)


class Load:
    """Requests that go on until the block ends, each with its answer or what became of it."""

    def __init__(self, url: str) -> None:
        """Ask for pictures at this address."""
        self.answers: list[tuple[int, str]] = []
        self._url, self._ended = url, threading.Event()

    def _ask(self) -> None:
        body = {"prompt": "a red boat", "size": "32x32", "seed": 7, "plan": "1+1"}
        while not self._ended.is_set():
            try:
                answer = httpx.post(f"{self._url}/v1/images/generations", json=body, timeout=100, trust_env=False)
                self.answers.append((answer.status_code, answer.text))
            except httpx.HTTPError as error:
                self.answers.append((0, repr(error)))

    def good(self) -> int:
        return sum(status == 200 for status, _ in self.answers)

    def wait_for_more(self, process: subprocess.Popen[str]) -> None:
        """Wait until ten more pictures have come."""
        wanted = self.good() + 10
        until(lambda: self.good() >= wanted, process)

    @contextmanager
    def going(self) -> Iterator[None]:
        asking = [threading.Thread(target=self._ask) for _ in range(3)]
        for each in asking:
            each.start()
        try:
            yield
        finally:
            self._ended.set()
            for each in asking:
                each.join(110)
        assert not any(each.is_alive() for each in asking), "a request got no answer"


def numbers(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text


def replicas_told(url: str) -> int:
    try:
        (line,) = [line for line in numbers(url).splitlines() if line.startswith("mrflow_replicas ")]
    except (httpx.HTTPError, ValueError):
        return 0
    return int(float(line.split()[1]))


def test_two_replicas_on_two_nodes_one_of_which_ends_under_load(folder: Path, env: dict[str, str]) -> None:
    """Each request has an answer, pictures are the same up to rounding; /metrics tells of both all the while."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with nodes(env) as cluster:
        cluster.head(cpus=1)
        lost = cluster.add()
        with ending(serve(cluster, folder, env, port, cluster.address)) as process:
            until(lambda: replicas_told(url) == 2, process)
            load = Load(url)
            with load.going():
                load.wait_for_more(process)
                made = set(re.findall(r'mrflow_images_total{.*replica="(\w+)"} [1-9]', numbers(url)))
                assert len(made) == 2, numbers(url)
                cluster.kill(lost)
                load.wait_for_more(process)  # the other goes on
                cluster.add()
                until(lambda: replicas_told(url) == 2, process)
                load.wait_for_more(process)
            texts = [json.loads(text)["data"][0]["b64_json"] for status, text in load.answers if status == 200]
            first, *others = [np.array(Image.open(BytesIO(base64.b64decode(text))), dtype=int) for text in texts]
            assert all(abs(other - first).max() <= 1 for other in others)  # drafts in batches round otherwise
            failed = [answer for answer in load.answers if answer[0] != 200]
            assert all(status in (500, 503) and "Traceback" not in text for status, text in failed), failed
