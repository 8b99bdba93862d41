"""The command line as a whole: help, version, streams, colours, wrong usage, models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import mrflow
from mrflow import vista
from support.cli import invoke

COMMANDS = ("generate", "draft", "finish", "enhance", "replay", "batch", "serve", "models", "bench", "export")


def test_version():
    result = invoke(["--version"])
    assert (result.exit_code, result.stdout) == (0, f"mrflow {mrflow.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_defaults(command):
    result = invoke([command, "--help"], env={"COLUMNS": "150", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert f"mrflow {command} " in result.stdout.split("Examples:")[1]
    assert command == "models" or "[default:" in result.stdout


def test_help_imports_nothing_heavy():
    """The work of `mrflow --help` is importing: no torch, and the user's CPU time stays below a second."""
    code = (
        "import sys, time; begin = time.process_time()\n"
        "from mrflow.cli.app import run\n"
        "run(['--help'])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'spandrel', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time() - begin, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stderr.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 1


def test_entry_point_needs_a_command():
    done = subprocess.run(
        [sys.executable, "-c", "from mrflow.cli import main; main()"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "generate" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["generate"], ["paint", "a lake"], ["generate", "a lake", "--stepz", "3"], ["generate", "a", "--steps", "x"]],
)
def test_wrong_usage_exits_with_2_and_an_empty_stdout(arguments):
    result = invoke(arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_no_color():
    def run(**env: str) -> str:
        code = "from mrflow.cli.reporting import say; say('it is so', 'Error', 'red')"
        clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**clean, "FORCE_COLOR": "1", "TERM": "xterm-256color", **env},
        )
        return done.stderr

    assert "\x1b[1;31m" in run()
    assert "31m" not in run(NO_COLOR="1")


def test_models_as_text():
    result = invoke(["models"])
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("vista", "FluxPipeline", "12+1", "20+1", "arXiv 2607.01642"):
        assert text in result.stdout


def test_models_as_json():
    result = invoke(["models", "--json"])
    known = json.loads(result.stdout)
    assert known["embedded"]["available"] is vista.available()
    assert "FluxPipeline" in known["pipelines"]
    presets = {preset["name"]: preset for preset in known["presets"]}
    assert presets["12+1"]["steps"] == 12
    assert all(preset["source"] for preset in presets.values())
