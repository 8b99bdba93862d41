"""Work that is fetched later: whose it is, how it goes, when it ends and is forgotten."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow.server import tasks as module
from mrflow.server.keys import Keys
from mrflow.server.replicas import make_application
from mrflow.server.settings import Settings
from support.serving import ROUTES, Server, check_error, hold, serving, tiny_model, until

MINE, OTHER = "a-good-key-of-24-letters", "another-key-of-24-letters"
TASKS = "/v1/images/tasks"
BODY = {"prompt": "a boat", "plan": "2+1", "seed": 3}
LATER = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(keys=[MINE, OTHER]) as running:
        yield running


def client(server: Server, key: str = MINE) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def ended(http: httpx.Client, task: dict[str, Any]) -> dict[str, Any]:
    """Return the task once it has ended."""
    told: dict[str, Any] = {}

    def over() -> bool:
        told.update(http.get(f"{TASKS}/{task['id']}").json())
        return told["status"] in ("completed", "failed")

    until(over)
    return told


@pytest.mark.parametrize("how", [(TASKS, {}), (ROUTES[0], LATER)])
def test_a_picture_is_fetched_later_and_is_the_one_made_at_once(server: Server, how: Any) -> None:
    with client(server) as http:
        begun = http.post(how[0], json=BODY, headers=how[1])
        assert begun.status_code == 202
        task = begun.json()
        assert begun.headers["location"] == f"{server.url}{TASKS}/{task['id']}"
        assert (task["object"], task["status"], task["count"]) == ("image.task", "queued", 1)
        told = ended(http, task)
        assert (told["status"], told["done"]) == ("completed", 1)
        assert 590 < told["expires_at"] - time.time() <= 601
        at_once = http.post(ROUTES[0], json=BODY).json()
        made = told["result"]["data"][0]
        assert made["recipe"]["pixels_sha256"] == at_once["data"][0]["recipe"]["pixels_sha256"]
        assert Image.open(BytesIO(base64.b64decode(made["b64_json"]))).size == (64, 64)
        assert set(told["result"]) == set(at_once)


def test_every_route_has_its_later(server: Server) -> None:
    file = BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    with client(server) as http:
        drafts = ended(http, http.post(ROUTES[1], json={**BODY, "n": 2}, headers=LATER).json())
        names = [each["id"] for each in drafts["result"]["data"]]
        finished = ended(http, http.post(ROUTES[2], json={"drafts": names}, headers=LATER).json())
        assert [each["seed"] for each in finished["result"]["data"]] == [3, 4]
        form = {"prompt": "a boat", "plan": "1+1"}
        edit = http.post("/v1/images/edits", data=form, files={"image": file.getvalue()}, headers=LATER)
        assert ended(http, edit.json())["status"] == "completed"
        check_error(http.post(TASKS, json={"prompt": ""}), 422)


def test_a_task_is_its_owners_alone(server: Server) -> None:
    with client(server) as http, client(server, OTHER) as stranger:
        task = http.post(TASKS, json=BODY).json()
        for verb in ("GET", "DELETE"):
            error = check_error(stranger.request(verb, f"{TASKS}/{task['id']}"), 404)
            assert "not over a restart" in error["message"]
        assert stranger.get(TASKS).json()["data"] == []
        assert task["id"] in [each["id"] for each in http.get(TASKS).json()["data"]]
        check_error(httpx.get(f"{server.url}{TASKS}/{task['id']}"), 401)


def test_cancelling_stops_between_two_steps_and_frees_the_place() -> None:
    with serving(draft_batch=1) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"prompt": "a boat", "plan": "100+100", "size": "128x128", "n": 3}
        task = http.post(TASKS, json=body).json()
        until(lambda: http.get(f"{TASKS}/{task['id']}").json().get("progress", {}).get("step", 0) > 1)
        about = http.get(f"{TASKS}/{task['id']}").json()
        assert (about["status"], about["progress"]["steps"]) == ("in_progress", 100)
        assert http.delete(f"{TASKS}/{task['id']}").json()["deleted"]
        until(lambda: server.scheduler.waiting == 0 and server.scheduler.workers[0].tickets == [])
        assert 'mrflow_images_total{kind="finish"}' not in http.get("/metrics").text
        check_error(http.get(f"{TASKS}/{task['id']}"), 404)


def test_failures_are_told_in_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error in /root/secret.py")

    monkeypatch.setattr(model.pipe.transformer, "forward", fail)
    with serving(model) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        told = ended(http, http.post(TASKS, json=BODY).json())
        assert (told["status"], told["error"]["code"]) == ("failed", "internal_error")
        assert "secret" not in str(told)


def test_tasks_are_kept_for_a_limited_time_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(keep_seconds=1.0) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        task = http.post(TASKS, json=BODY).json()
        assert ended(http, task)["status"] == "completed"
        until(lambda: http.get(f"{TASKS}/{task['id']}").status_code == 404)
        assert http.get(TASKS).json()["data"] == []
    monkeypatch.setattr(module, "MAX_TASKS", 2)
    with serving(keep_bytes=20_000) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        tasks = [http.post(TASKS, json=BODY).json()]
        for _ in range(3):
            assert ended(http, tasks[-1])["status"] == "completed"
            tasks.append(http.post(TASKS, json=BODY).json())
        assert http.get(f"{TASKS}/{tasks[0]['id']}").status_code == 404
        ended(http, tasks[-1])


def test_room_that_running_tasks_take_is_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TASKS", 1)
    model = tiny_model()
    gate = hold(model, monkeypatch)
    with serving(model) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        task = http.post(TASKS, json=BODY).json()
        assert check_error(http.post(TASKS, json=BODY), 429)["code"] == "rate_limit_exceeded"
        gate.open.set()
        assert ended(http, task)["status"] == "completed"


def test_several_replicas_have_none() -> None:
    def load(device: str) -> Any:
        return make_fast(make_pipe())

    made = make_application(load, "cpu", Settings(), lambda *_: None, Keys(), (), None)
    running = Server(made)
    try:
        answer = httpx.post(f"{running.url}{TASKS}", json=BODY)
        assert "bound to one process" in check_error(answer, 400)["message"]
        check_error(httpx.get(f"{running.url}{TASKS}"), 404, 405)
    finally:
        running.stop()
