"""Clients that go away, models that fail or hang, a full line, and memory: the server stays up and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import httpx
import pytest

from support.serving import ROUTES, check_error, serving, tiny_model, until


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


def test_a_model_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error in /root/secret.py")

    with serving(model) as server:
        monkeypatch.setattr(model.pipe.transformer, "forward", fail)
        answer = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat"}, timeout=60)
        assert check_error(answer, 500)["code"] == "internal_error"
        events = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat", "stream": True}, timeout=60).text
        assert events.startswith("event: error\ndata: ")
        assert "secret" not in events
        monkeypatch.undo()
        answer = httpx.post(f"{server.url}{ROUTES[0]}", json={"prompt": "a boat"}, timeout=60)
        assert answer.status_code == 200


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
