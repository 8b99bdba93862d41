"""`mrflow serve`: what it refuses, and a whole life of it on vista, up to SIGTERM."""

from __future__ import annotations

import base64
import logging
import os
import re
import subprocess
import sys
from importlib import util
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image
from starlette.testclient import TestClient

from conftest import make_fast, make_pipe
from mrflow import Plan, read_recipe, vista
from mrflow.cli.loading import ServedModel
from mrflow.errors import RequestError
from mrflow.plan import plan_to_json
from mrflow.server import running
from support.cli import invoke

PROMPT = "a lake at sunset with mountains"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_addresses_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRFLOW_API_KEYS", raising=False)
    result = invoke(["serve", "--host", host])
    assert result.exit_code == 2
    assert "--allow-anyone" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--keys", "no such file"],
        ["--queue", "1"],
        ["--timeout", "0"],
        ["--port", "99999"],
        ["--lanes", "0"],
        ["--root-path", "images"],
        ["--trusted-proxy", "proxy.example"],
        ["--keep-alive", "0"],
        ["--plan", "no such plan"],
        ["--plan", "no such file.json"],
        ["--plan", "200+1"],
        ["--steps", "101"],
        ["--sigma", "2"],
        ["--plan", "3/4", "--sigma", "0.2"],
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(arguments: list[str]) -> None:
    result = invoke(["serve", "--model", "no such model", *arguments])
    assert result.exit_code == 2
    assert "no such model" not in result.stderr


def test_help_says_how_many_threads_a_worker_and_a_replica_have() -> None:
    for command, usual in (
        ("batch", "as many as a picture has without Ray"),
        ("serve", "divided among the replicas"),
    ):
        shown = " ".join(invoke([command, "--help"], env={"COLUMNS": "400"}).stdout.split())
        assert re.search(rf"--worker-threads INT CPU threads [^│]*{usual}", shown)


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == "uvicorn" else find(name, *a))
    result = invoke(["serve"])
    assert result.exit_code == 1
    assert 'pip install ".[server]"' in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("--host 127.0.0.2", "127.0.0.2 localhost LOCALHOST:1"),
        ("--host LOCALHOST", "localhost 127.0.0.1 [::1]:80"),
        ("--host [::1]", "[::1] localhost"),
        ("--host 0.0.0.0 --keys", "anything.example 10.0.0.1:8000"),
        ("--allow-anyone", "anything.example"),
        ("--root-path https://Pictures.Example.Org/images", "pictures.example.org 127.0.0.1:8000"),
    ],
)
def test_what_it_was_told_to_be_it_answers_to(
    options: str, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-good-key-of-24-letters\n")
    monkeypatch.delenv("MRFLOW_API_KEYS", raising=False)
    started: list[Any] = []
    monkeypatch.setattr(ServedModel, "load", lambda _: make_fast(make_pipe()).model)
    monkeypatch.setattr(running, "run", lambda *arguments, **named: started.append((arguments, named)))
    told = options.replace("--keys", f"--keys {keys}").split()
    result = invoke(["serve", "--no-page", "--keep-alive", "75", "--trusted-proxy", "10.0.0.0/8", *told])
    assert result.exit_code == 0, result.stderr
    (((app, host, _, _), named),) = started
    assert named == {"keep_alive": 75}
    assert host == host.strip("[]").lower()
    with TestClient(app) as client:
        for name in status.split():
            assert client.get("/health", headers={"Host": name}).status_code == 200, name
        if "0.0.0.0" not in options and "anyone" not in options:
            assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("told", "label", "numbers"),
    [
        ([], "3+1", {"true_cfg_scale": 2}),
        (["--plan", "FILE"], "5+1", {"refine_sigma": 0.2, "true_cfg_scale": 2}),
        (
            ["--plan", "20+1", "--sigma", "0.16", "--guidance", "3"],
            "20+1",
            {"refine_sigma": 0.16, "true_cfg_scale": 3},
        ),
        (["--steps", "2", "--true-cfg-scale", "1"], "2+1", {"true_cfg_scale": 1}),
    ],
    ids=str,
)
def test_its_plan_is_that_of_requests_that_name_none(
    told: list[str], label: str, numbers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(plan_to_json(Plan(steps=5, refine_sigma=0.2), {}))
    started: list[Any] = []
    monkeypatch.setattr(ServedModel, "load", lambda _: make_fast(make_pipe()))
    monkeypatch.setattr(running, "run", lambda app, *_, **__: started.append(app))
    told = [str(file) if each == "FILE" else each for each in told]
    result = invoke(["serve", "--no-page", *told])
    assert result.exit_code == 0, result.stderr
    with TestClient(started[0], base_url="http://localhost") as client:

        def post(**body: Any) -> dict[str, Any]:
            return client.post("/v1/images/generations", json={"prompt": "a boat", **body}).json()

        dry = post(dry_run=True)
        assert (dry["plan"], dry["warnings"]) == (label, [])
        assert {name: dry["numbers"].get(name) for name in numbers} == numbers
        (made,) = post()["data"]
        assert made["plan"] == label
        assert {name: made["recipe"]["plan"].get(name) for name in numbers} == numbers
        assert post(dry_run=True, plan="2+1")["numbers"]["true_cfg_scale"] == numbers["true_cfg_scale"]
        assert post(dry_run=True, plan="2+1")["numbers"].get("refine_sigma") is None  # of the plan, not the server


def test_a_plan_that_the_model_cannot_take_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServedModel, "load", lambda _: make_fast(make_pipe(stochastic_sampling=True)))
    monkeypatch.setattr(running, "run", lambda *_, **__: pytest.fail("it serves"))
    result = invoke(["serve", "--plan", "3/4"])
    assert result.exit_code == 2
    assert "stochastic_sampling" in result.stderr


def test_what_is_logged_says_when(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    running.log_with_time()
    logging.getLogger("mrflow.server").error("a picture failed")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ERROR a picture failed", capsys.readouterr().err)


def test_a_host_that_no_name_can_be_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("a..b", "x" * 70, "no such host"):
        with pytest.raises(RequestError, match="can't be listened on"):
            running.listen(host, 0)


class Process:
    """`mrflow serve` on a free port."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        command = [sys.executable, "-c", "from mrflow.cli import main; main()", "serve", "--port", "0", *arguments]
        source = str(Path(__file__).parents[1] / "src")
        env = {**os.environ, "PYTHONPATH": source, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **variables}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"(http://\S+) is ready", line):
                self.url = found[1]
                return
        self.process.communicate()
        pytest.fail(self.said)

    def wait(self) -> int:
        """Return the exit code once it has ended."""
        _, rest = self.process.communicate(timeout=120)
        self.said += rest
        return self.process.returncode


@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_a_life_on_vista() -> None:
    server = Process("--drain", "100")
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        *partial, last = client.images.generate(
            prompt=PROMPT, stream=True, partial_images=2, extra_body={"plan": "2+1", "seed": 7}
        )
        assert [event.partial_image_index for event in partial] == [0, 1]
        recipe = read_recipe(BytesIO(base64.b64decode(last.b64_json)))
        assert (recipe.prompt, recipe.seed, recipe.model, recipe.width) == (PROMPT, 7, "vista", 512)

        # a stream begins when its picture is in the line, so that all four are there before the signal
        asked = [
            client.images.generate(prompt=PROMPT, stream=True, extra_body={"plan": "12+1", "seed": seed})
            for seed in range(4)
        ]
        server.process.terminate()
        for answer in asked:  # what was queued is answered first
            assert [event.type for event in answer] == ["image_generation.completed"]
    assert server.wait() == 0
    assert "Traceback" not in server.said


@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_no_picture_is_on_any_disk_before_or_after_a_kill(tmp_path: Path) -> None:
    """Nor an upload that is too large for memory: its file has no name."""
    server, large = Process(TMPDIR=str(tmp_path)), BytesIO()

    def files() -> list[Path]:  # torch 2.7 leaves a module of its own there
        return [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".py"]

    Image.effect_noise((1200, 1200), 90).save(large, "PNG")
    assert large.tell() > 2**20
    fields = {"prompt": PROMPT, "plan": "1+1", "size": "64x64", "response_format": "url"}
    try:
        made = httpx.post(
            f"{server.url}/v1/images/edits", data=fields, files={"image": large.getvalue()}, timeout=120
        )
        assert httpx.get(made.json()["data"][0]["url"]).content.startswith(b"\x89PNG")
        drafts = httpx.post(
            f"{server.url}/v1/images/drafts", json={"prompt": PROMPT, "plan": "1+1", "n": 2}, timeout=120
        )
        assert drafts.status_code == 200
        assert files() == []
    finally:
        server.process.kill()
    server.wait()
    assert files() == []
