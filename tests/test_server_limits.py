"""Clients that go away, models that fail or hang, a full line, and memory: the server stays up and says so."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from support.serving import ROUTES, Server, check_error, serving, tiny_model, until


@pytest.fixture(scope="module")
def paged() -> Iterator[Server]:
    with serving(page=True) as running:
        yield running


def test_a_client_killed_in_the_middle_of_a_stream_frees_its_place() -> None:
    code = (
        "import sys, httpx\n"
        "body = {'prompt': 'a boat', 'stream': True, 'plan': '100+100', 'n': 4, 'size': '128x128'}\n"
        "with httpx.stream('POST', sys.argv[1] + '/v1/images/generations', json=body, timeout=60) as answer:\n"
        "    print(answer.status_code, flush=True)\n"
        "    for line in answer.iter_lines(): pass\n"
    )
    with serving(draft_batch=1) as server:
        client = subprocess.Popen([sys.executable, "-c", code, server.url], stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline() == "200\n"
        until(lambda: server.scheduler.workers[0].tickets != [])
        os.kill(client.pid, signal.SIGKILL)
        client.communicate()
        until(lambda: server.scheduler.waiting == 0 and server.scheduler.workers[0].tickets == [])
        numbers = httpx.get(f"{server.url}/metrics").text
        assert 'mrflow_images_total{kind="finish"}' not in numbers


def test_a_client_that_goes_away_without_a_stream_frees_its_place() -> None:
    with serving(draft_batch=1) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/images/generations",
                json={"prompt": "a boat", "plan": "100+100", "n": 4, "size": "128x128"},
                timeout=1.0,
            )
        until(lambda: server.scheduler.waiting == 0 and server.scheduler.workers[0].tickets == [])


def test_a_model_that_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error in /root/secret.py")

    with serving(model) as server:
        monkeypatch.setattr(model.pipe.transformer, "forward", fail)
        answer = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat"}, timeout=60)
        assert check_error(answer, 500)["code"] == "internal_error"
        assert f"request {answer.headers['x-request-id']}: a picture failed: " in caplog.text
        events = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat", "stream": True}, timeout=60).text
        assert events.startswith("event: error\ndata: ")
        assert "secret" not in events
        monkeypatch.undo()
        answer = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat"}, timeout=60)
        assert answer.status_code == 200


SECRET = "of a library, in /home/somebody/src/x.py"


@pytest.mark.parametrize(
    ("target", "error", "path"),
    [
        ("PIL.Image.Image.save", OSError, ROUTES[0]),
        ("PIL.Image.Image.save", OSError, "/v1/images/drafts"),
        ("PIL.Image.open", OSError, "/v1/images/edits"),
        ("PIL.Image.open", struct.error, "/v1/images/edits"),
        ("PIL.ImageFile.ImageFile.load", SyntaxError, "/v1/images/edits"),
        ("starlette.requests.Request.form", RuntimeError, "/v1/images/edits"),
        ("starlette.requests.Request.json", RecursionError, ROUTES[0]),
        ("pydantic.main.BaseModel.model_validate", TypeError, "/v1/images/edits"),
        ("mrflow.server.service.Service.check_model", KeyError, ROUTES[0]),
        ("mrflow.server.metrics.generate_latest", ValueError, "/metrics"),
        ("fastapi.FastAPI.openapi", AssertionError, "/docs"),
        ("starlette.responses.HTMLResponse.render", AttributeError, "/"),
        ("starlette.staticfiles.StaticFiles.get_path", ValueError, "/static/page.css"),
    ],
)
def test_what_a_library_raises_is_an_answer_in_shape(
    target: str, error: type[Exception], path: str, paged: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error(SECRET)

    png = BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    monkeypatch.setattr(target, fail)
    if path.startswith("/v1/images/edits"):
        answer = httpx.post(
            f"{paged.url}{path}", files={"image": png.getvalue()}, data={"prompt": "a boat"}, timeout=60
        )
    elif path.startswith("/v1"):
        answer = httpx.post(f"{paged.url}{path}", json={"prompt": "a boat", "plan": "1+1"}, timeout=60)
    else:
        answer = httpx.get(f"{paged.url}{path}", timeout=60)
    check_error(answer, 400, 422, 500)
    assert "somebody" not in answer.text


def test_a_stream_ends_with_an_event_whatever_a_library_raises(
    paged: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(SECRET)

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    body = {"prompt": "a boat", "plan": "1+1", "stream": True, "partial_images": 2}
    events = httpx.post(f"{paged.url}{ROUTES[0]}", json=body, timeout=60).text
    assert events.rpartition("event: ")[2].startswith("error\ndata: ")
    assert "somebody" not in events


def test_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    held, forward = threading.Event(), model.pipe.transformer.forward

    def hang(*arguments: Any, **named: Any) -> Any:
        held.wait(60)
        return forward(*arguments, **named)

    monkeypatch.setattr(model.pipe.transformer, "forward", hang)
    with serving(model, hang_after=1.0) as server:
        answer = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat"}, timeout=60)
        error = check_error(answer, 503)
        assert error["code"] == "worker_hung"
        assert answer.headers["retry-after"]
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "hung")
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert "\nmrflow_hung_workers 1.0\n" in httpx.get(f"{server.url}/metrics").text
        check_error(httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat"}), 503)
        held.set()


def test_a_full_queue_says_so() -> None:
    with serving(max_waiting=32) as server:
        answer = httpx.post(
            f"{server.url}/v1/images/drafts", json={"prompt": "a boat", "n": 16, "plan": "1+1"}, timeout=60
        )
        assert answer.status_code == 200
        statuses = []
        clients = [
            threading.Thread(
                target=lambda: statuses.append(
                    httpx.post(
                        f"{server.url}{ROUTES[0]}", json={"prompt": "a boat", "n": 10, "plan": "9+1"}, timeout=60
                    )
                )
            )
            for _ in range(6)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    refused = [answer for answer in statuses if answer.status_code != 200]
    assert 1 <= len(refused) < 6
    for answer in refused:
        assert check_error(answer, 429)["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) >= 1


def resident() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells how much memory is resident")
@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_stays_flat(count: int) -> None:
    """The second half of the requests may not take memory; a leak of one 64 x 64 picture each would show."""
    with serving(keep_seconds=1.0) as server, httpx.Client(base_url=server.url, timeout=60) as client:

        def ask(times: int) -> None:
            for k in range(times):
                form = ("b64_json", "url")[k % 2]
                body = {"prompt": "a boat", "seed": k, "plan": "1+1", "response_format": form}
                assert client.post(ROUTES[0], json=body).status_code == 200

        ask(count // 2)
        before = resident()
        ask(count - count // 2)
        assert resident() - before < 8 * 2**20
