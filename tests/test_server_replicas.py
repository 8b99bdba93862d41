"""Several replicas behind one address: what one keeps, the others find. Ray starts in the slow test alone."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import batches, read_recipe
from mrflow.cli.loading import ServedModel
from mrflow.errors import MissingExtraError, RequestError
from mrflow.images import pixels_sha256
from mrflow.server.errors import ApiError
from mrflow.server.keys import Keys
from mrflow.server.metrics import Metrics
from mrflow.server.replicas import Replica, Replicas, Shelf, make_application
from mrflow.server.replicas import serving as serving_replicas
from mrflow.server.settings import Settings
from support import cluster_model
from support.cli import invoke
from support.serving import Server

ASKED = {"prompt": "a red boat", "size": "64x64", "seed": 7, "plan": "2+1"}


def load(device: str) -> Any:
    assert device == "cpu"
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def two() -> Iterator[list[Server]]:
    """Give two servers that share a shelf, as two replicas do."""
    settings = Settings()
    shelf = Shelf(settings)

    def call(method: str, *arguments: Any) -> Any:
        return getattr(shelf, method)(*arguments)

    servers = [Server(make_application(load, "cpu", settings, call, Keys(), (), None)) for _ in range(2)]
    yield servers
    for server in servers:
        server.stop()


def post(url: str, what: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/{what}", json=body, timeout=120, trust_env=False)


def sha256_alone() -> str:
    """Return the hash of the pixels that are made without any server."""
    result = make_fast(make_pipe())("a red boat", width=64, height=64, seed=7, plan="2+1")
    return pixels_sha256(result.images[0])


def test_what_one_replica_drafts_another_finishes(two):
    drafts = post(two[0].url, "drafts", n=1, **ASKED).json()["data"]
    finished = post(two[1].url, "finish", drafts=[drafts[0]["id"]], response_format="url").json()["data"]
    path = finished[0]["url"].removeprefix(two[1].url)
    file = httpx.get(two[0].url + path, trust_env=False)
    assert file.headers["content-type"] == "image/png"
    assert pixels_sha256(Image.open(BytesIO(file.content))) == sha256_alone()


def test_what_nobody_keeps_is_not_found(two):
    answer = post(two[1].url, "finish", drafts=["draft_nothing"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "draft_not_found")
    assert httpx.get(f"{two[0].url}/v1/files/nothing", trust_env=False).status_code == 404


def test_metrics_are_those_of_all_replicas():
    ours, theirs = Metrics([torch.device("cpu")]), Metrics([torch.device("cpu")])
    for metrics, count in ((ours, 3), (theirs, 4)):
        for _ in range(count):
            metrics.request_done("/health", "200", 0.1)
    ours.gather = lambda: {"one": ours.own().decode(), "two": theirs.own().decode()}
    lines = ours.text().decode().splitlines()
    assert 'mrflow_requests_total{replica="one",route="/health",status="200"} 3.0' in lines
    assert 'mrflow_requests_total{replica="two",route="/health",status="200"} 4.0' in lines
    assert "mrflow_replicas 2.0" in lines
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads))


@pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install ".[ray]"')
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_no_replica_is_left_out_for_being_on_another_node():
    from mrflow.server.routing import ShortestQueue

    (rank,) = asyncio.run(ShortestQueue.choose_replicas(None, ["beside the proxy", "elsewhere"]))
    assert sorted(rank) == ["beside the proxy", "elsewhere"]


def test_there_is_no_page(two):
    assert httpx.get(two[0].url, trust_env=False).status_code == 404


def test_keys_hold_in_every_replica():
    key = "k" * 24
    made = make_application(load, "cpu", Settings(), lambda *_: None, Keys([key]), ("gpt-image-1",), None)
    server = Server(made)
    try:
        assert post(server.url, "generations", **ASKED).status_code == 401
        models = httpx.get(
            f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}, trust_env=False
        ).json()
        assert models["data"][-1]["id"] == "gpt-image-1"
    finally:
        server.stop()


def test_a_replica_that_hangs_says_so(monkeypatch):
    made = make_application(load, "cpu", Settings(), lambda *_: None, Keys(), (), None)
    replica = Replica(lambda: made)
    assert replica.__serve_build_asgi_app__() is made
    made.state.service.scheduler.start()
    replica.check_health()
    made.state.service.scheduler.close()
    monkeypatch.setattr(type(made.state.service.scheduler), "state", "hung")
    with pytest.raises(RuntimeError, match="hangs"):
        replica.check_health()


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 0), ("threads", -1), *(("gpus", value) for value in (1.5, -0.5, 65, float("inf"), float("nan")))],
)
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(RequestError, match=f"{name} is {value}"):
        Replicas(load=load, **{name: value})


def test_a_port_that_is_taken_and_ray_that_is_missing(monkeypatch):
    pytest.importorskip("ray.serve", reason='Ray Serve is not installed: pip install ".[ray]"')
    replicas = Replicas(load=load)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RequestError, match=f"127.0.0.1:{port} can't be listened on"),
            serving_replicas(replicas, Settings(), "127.0.0.1", port, keys=Keys()),
        ):
            pass
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with (
        pytest.raises(MissingExtraError, match=r'pip install "\.\[ray\]"'),
        serving_replicas(replicas, Settings(), "127.0.0.1", 0, keys=Keys()),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replicas", "2"], "--replicas says how Ray is to work. Add --ray."),
        (["--worker-threads", "2"], "Add --ray"),
        (["--ray", "--device", "cpu", "--device", "cpu"], "--replicas instead"),
        (["--ray", "--host", "0.0.0.0"], "API keys are needed"),
        (["--ray", "auto", "--host", "0.0.0.0", "--replicas", "3"], "API keys are needed"),
        (["--ray", "--replicas", "0"], "--replicas"),
    ],
)
def test_what_the_command_refuses(monkeypatch, arguments, words):
    monkeypatch.delenv("MRFLOW_API_KEYS", raising=False)
    result = invoke(["serve", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_the_command_serves_until_it_is_told_to_stop(monkeypatch):
    pytest.importorskip("ray.serve", reason='Ray Serve is not installed: pip install ".[ray]"')
    asked: list[Any] = []

    @contextmanager
    def fake(replicas: Replicas, settings: Settings, host: str, port: int, **more: Any) -> Iterator[str]:
        asked.append((replicas, host, port, more))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        yield "http://here"
        asked.append("ended")

    monkeypatch.setattr("mrflow.server.replicas.serving", fake)
    monkeypatch.delenv("MRFLOW_API_KEYS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    result = invoke(["serve", "--port", "0", "--ray", "--replicas", "3", "--device", "cpu", "--steps", "7"])
    assert result.exit_code == 0
    assert "http://here" in result.stderr
    (replicas, host, port, more), end = asked
    assert (replicas.count, replicas.address, replicas.gpus) == (3, "local", 0)
    monkeypatch.setattr(ServedModel, "load", lambda _: make_fast(make_pipe()))
    assert pickle.loads(pickle.dumps(replicas.load))("cpu").model.defaults.plan.steps == 7
    assert (host, port, end) == ("127.0.0.1", 0, "ended")
    for name, known in (("localhost", True), ("[::1]:8000", True), ("elsewhere.org", False)):
        scope = {"type": "http", "headers": [(b"host", name.encode())]}
        with nullcontext() if known else pytest.raises(ApiError):  # no key: known by its local names alone
            more["address"].find_host(scope, trusted=False)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install ".[ray]"')
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("ray_finds_tests")
def test_two_replicas_on_ray(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "finish_drafts", batches.finish_drafts)
    replicas = Replicas(load=partial(cluster_model.load, tmp_path), count=2, threads=1, gpus=0)
    with serving_replicas(replicas, Settings(), "127.0.0.1", 0, keys=Keys()) as url:
        assert len(list(tmp_path.iterdir())) == 2
        assert str(os.getpid()) not in {path.name for path in tmp_path.iterdir()}
        answer = post(url, "generations", **ASKED)
        (picture,) = answer.json()["data"]
        image = BytesIO(base64.b64decode(picture["b64_json"]))
        assert pixels_sha256(Image.open(image)) == sha256_alone()
        ids = [post(url, "drafts", n=1, **ASKED).json()["data"][0]["id"] for _ in range(4)]
        for id in ids:  # whichever replica made it, whichever is asked
            (finished,) = post(url, "finish", drafts=[id], response_format="url").json()["data"]
            path = tmp_path / "finished.png"
            path.write_bytes(httpx.get(finished["url"], trust_env=False).content)
            assert read_recipe(path).pixels_sha256 == sha256_alone()
        assert post(url, "finish", drafts=["draft_nothing"]).status_code == 404
        assert "mrflow_replicas 2.0" in httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text
        with httpx.stream(
            "POST",
            f"{url}/v1/images/generations",
            json={**ASKED, "stream": True, "partial_images": 1},
            timeout=120,
        ) as events:
            kinds = [line for line in events.iter_lines() if line.startswith("event:")]
        assert kinds == ["event: image_generation.partial_image", "event: image_generation.completed"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False)
    gc.collect()
