"""The Dockerfile and compose.yaml, read as their engines read them, and what can be run of them without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrflow import known_upscalers, vista
from support.cli import invoke
from support.serving import Server, serving

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text("utf-8")).splitlines()
STEPS = [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in LINES if line and not line.startswith("#")]
SERVICE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["mrflow"]


def said(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def test_it_runs_as_nobody_of_weight_and_keeps_models_in_a_volume() -> None:
    names = [step for step, _ in STEPS]
    assert names[0] == "FROM"
    assert set(names) <= {
        *("FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME"),
        *("EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }
    assert names.index("RUN") < names.index("USER") < names.index("ENTRYPOINT")
    (user,), (volume,) = said("USER"), said("VOLUME")
    assert user not in ("root", "0")
    (run,) = said("RUN")
    assert f"--uid 10001 {user}" in run
    assert f"chown {user} {volume}" in run
    environment = dict(each.split("=", 1) for each in said("ENV")[0].split())
    assert environment["HF_HOME"] == volume
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.search(r"\.\[([\w,]+)\]", run)[1].split(",")) <= set(extras)  # type: ignore[index]
    assert "lora" in run  # --lora and --loras-dir are options of serve


def test_what_is_written_lies_in_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root is read-only; without MRFLOW_CACHE the upscaler would go to the home."""
    assert SERVICE["read_only"]
    assert SERVICE["tmpfs"] == ["/tmp"]
    for name, value in (each.split("=", 1) for each in said("ENV")[0].split()):
        monkeypatch.setenv(name, value)
    (volume,) = said("VOLUME")
    assert known_upscalers.folder().is_relative_to(volume)


def test_what_is_copied_is_there_and_not_left_out() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert ignored[0] == "*"
    for copied in said("COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_its_commands_are_ours() -> None:
    shown = invoke(["serve", "--help"]).stdout
    assert json.loads(said("ENTRYPOINT")[0]) == ["mrflow"]
    for command in (json.loads(said("CMD")[0]), SERVICE["command"]):
        assert command[0] == "serve"
        for option in (each for each in command if str(each).startswith("--")):
            assert option in shown
    assert f"{said('EXPOSE')[0]}:" in SERVICE["ports"][0]
    assert SERVICE["volumes"] == [f"models:{said('VOLUME')[0]}"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert float(SERVICE["stop_grace_period"].removesuffix("s")) > 30  # what --drain gives


@pytest.fixture
def server() -> Any:
    with serving() as running:
        yield running


def test_the_health_check_finds_a_server_and_misses_one(server: Server) -> None:
    command = json.loads(said("HEALTHCHECK")[0].partition("CMD ")[2])
    code = command[2].replace("127.0.0.1:8000", server.host)
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    server.stop()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_what_it_installs_from_a_fresh_root_serves(tmp_path: Path) -> None:
    """From the copied files alone; the libraries are those of this environment."""
    for copied in said("COPY"):
        *sources, target = copied.split()
        for source in sources:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            at = tmp_path / target / (source if target == "./" else "")
            copy(ROOT / source, at)  # type: ignore[operator]
    installed = tmp_path / "installed"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        installed,
        ".",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)
    shutil.rmtree(tmp_path / "src")
    code = """
import httpx, mrflow
from mrflow.server.app import create_app
from support.serving import Server
fast = mrflow.MrFlow.from_pretrained("vista")
server = Server(create_app(fast))
page = httpx.get(server.url + "/").text
assert "The words that vista knows" in page
for name in ("page.css", "page.js"):
    assert httpx.get(server.url + "/static/" + name).status_code == 200
body = {"prompt": "a lake", "plan": "1+1", "steps_": 1}
assert httpx.post(server.url + "/v1/images/generations", json=body).status_code == 400
server.stop()
print(mrflow.__file__)
"""
    path = os.pathsep.join([str(installed), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
