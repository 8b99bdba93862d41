"""The command line as a whole: help, version, streams, colours, wrong usage, models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest

import mrflow
from mrflow import vista
from mrflow.cli.app import app
from mrflow.known_models import KNOWN
from mrflow.plan import ABOUT, PRESETS
from support.cli import invoke

COMMANDS = [name for name in app.resolved_commands() if not name.startswith("-")]
WITHOUT_DEFAULTS = ("models", "config", "balance")


def test_version():
    result = invoke(["--version"])
    assert (result.exit_code, result.stdout) == (0, f"mrflow {mrflow.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_defaults(command):
    result = invoke([command, "--help"], env={"COLUMNS": "150", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert f"mrflow {command} " in result.stdout.split("Examples:")[1]
    assert command in WITHOUT_DEFAULTS or "[default:" in result.stdout


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_leaves_names_numbers_and_examples_whole(command, width):
    shown = invoke([command, "--help"], env={"COLUMNS": str(width), "NO_COLOR": "1"}).stdout
    options, examples = shown.split("Examples:")
    assert all(len(line) <= width for line in options.splitlines())
    assert not re.search(r"bool|…", options.lower())
    wide = invoke([command, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1"}).stdout
    assert examples == wide.split("Examples:")[1]
    words = set(re.sub(r"[│╭╮╰╯─]", " ", wide.split("Examples:")[0]).split())
    assert set(re.sub(r"[│╭╮╰╯─]", " ", options).split()) <= words


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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["generat", "a lake"], 'Unknown command "generat". Did you mean "generate"?'),
        (["gen", "a lake"], 'Did you mean "generate"?'),
        (["img2img", "a.png"], 'Did you mean "enhance"?'),
        (["zebra"], 'Unknown command "zebra". There are generate, draft, '),
        (["generate", "a lake", "--width", "512"], "Unknown option: --width. Did you mean --size?"),
        (["draft", "a lake", "--height=512"], "Did you mean --size?"),
        (["generate", "a lake", "-w", "512"], "Unknown option: -w. Did you mean --size?"),
        (["generate", "a lake", "--num_inference_steps", "9"], "Did you mean --steps?"),
        (["generate", "a lake", "--cfg-scale", "4"], "Did you mean --guidance?"),
        (["generate", "a lake", "--neg", "fog"], "Unknown option: --neg. Did you mean --negative?"),
        (["finish", "a.png", "--width", "512"], "Unknown option: --width. See:"),
        (["generate", "a lake", "--tile", "whale"], "'whale' is no whole number, nor 'whole'."),
        (["generate", "--prompt", "a lake"], "The prompt stands alone, in quotes."),
        (["generate"], "Missing argument PROMPT. See: mrflow generate --help"),
        (["estimate"], "Missing argument MODEL. See: mrflow estimate --help"),
        (["batch", "p.txt"], "Missing option --out. See: mrflow batch --help"),
        (["generate", "a lake", "--n", "4"], "Unknown option: --n. Did you mean --num-images?"),
        (["generate", "a lake", "-n"], "-n requires an argument. See: mrflow generate --help"),
        (["generate", "a lake", "--stpes", "3"], "Unknown option: --stpes. Did you mean --steps?"),
        (["generate", "a lake", "--steps", "x"], "Invalid value for --steps: 'x' is no whole number."),
        (["generate", "a lake", "-n", "12.6"], "Invalid value for -n: '12.6' is no whole number."),
        (["generate", "a lake", "--repeats", "0"], 'Invalid value "0" for --repeats. Must be >= 1.'),
        (["generate", "a lake", "--no-json"], "Unknown option: --no-json."),
        (["replay", "a.png", "b.png"], "'b.png'"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_the_help_is(arguments, line):
    result = invoke(arguments)
    (shown,) = result.stderr.splitlines()
    assert shown.startswith("Error: ")
    assert line in shown
    assert "See: mrflow " in shown
    assert (result.exit_code, result.stdout) == (2, "")


def test_without_a_command_help_is_shown_on_stderr():
    result = invoke([])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "generate" in result.stderr


def parse(*arguments: str) -> dict[str, Any]:
    """Return what a command would be called with."""
    _, bound, _ = app.parse_args(arguments)
    return {**bound.arguments}


def test_options_may_stand_anywhere_and_the_last_of_one_that_is_given_twice_counts():
    called = parse("generate", "--json", "a lake", "--seed", "1", "a house", "-n2", "--seed=2")
    assert called["prompt"] == ("a lake", "a house")
    assert (called["pictures"].seed, called["pictures"].num_images) == (2, 2)
    assert called["streams"].json


def test_texts_may_begin_with_a_dash():
    called = parse("generate", "--negative", "-x", "--", "--a lake")
    assert (called["prompt"], called["pictures"].negative) == (("--a lake",), "-x")
    assert parse("enhance", "a.png", "--prompt", "-5 degrees")["prompt"] == "-5 degrees"


def test_every_number_of_a_plan_that_has_options_is_one_of_each_command_that_makes_plans():
    values = {int: ("3", 3), float: ("0.5", 0.5)}
    for name, about in ABOUT.items():
        for option in about.options:
            text, value = values.get(about.kind, about.choices[:1] * 2) if name != "scale" else ("1.5", 1.5)
            if name in ("scales", "tile"):
                text, value = {"scales": ("2+1.5", (2.0, 1.5)), "tile": ("512", 512)}[name]
            for command in (
                ["generate", "a"],
                ["draft", "a"],
                ["batch", "p", "--out", "o"],
                ["export", "dpg", "p"],
            ):
                assert getattr(parse(*command, option, text)["plans"], name) == value
    levels = parse("generate", "a", "-p", "8+1+2", "--sigma", "0.1+auto")["plans"]
    assert (levels.plan, levels.refine_sigma) == ("8+1+2", (0.1, "auto"))
    assert parse("finish", "a.png", "--refine-steps", "1+2")["plans"].refine_steps == (1, 2)
    shown = " ".join(invoke(["generate", "--help"], env={"COLUMNS": "400"}).stdout.split())
    assert all(about.text in shown and about.options[0] in shown for about in ABOUT.values() if about.options)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell, monkeypatch):
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    result = invoke(["--show-completion"])
    assert result.exit_code == 0
    assert "mrflow" in result.stdout
    assert "--refine-steps" in result.stdout


def test_who_stops_reading_is_no_error():
    code = "from mrflow.cli import main; main(['models'])"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


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


@pytest.mark.parametrize("width", [60, 80, 160])
def test_models_are_whole_in_any_window_and_one_line_each_in_a_pipe(width):
    shown = invoke(["models"], env={"COLUMNS": str(width)}).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert all(len(line) <= width for line in shown.splitlines())
    with mock.patch.dict(os.environ):
        os.environ.pop("COLUMNS", None)
        piped = invoke(["models"]).stdout.splitlines()
    for each in KNOWN.values():
        assert any(each.id in line for line in lines)
        assert any(words[:2] == [each.name, each.id] for words in map(str.split, piped))
    assert max(map(len, piped)) < 400  # not as wide as the console that stands for a pipe
    assert "33.7 / 17.0 / 8.6" in shown
    assert all(any(line == [name] for line in lines) for name in PRESETS)


def test_an_estimate_in_a_narrow_window_is_a_table_for_each_way():
    arguments = ["estimate", "flux-dev", "--plan", "12+1", "--plan", "12+1:scale=4,solver=unipc"]
    figures = [
        set(re.findall(r"[\d,]+\.\d+", invoke(arguments, env={"COLUMNS": width}).stdout))
        for width in ("60", "200")
    ]
    assert figures[0] == figures[1] != set()
    shown = invoke(arguments, env={"COLUMNS": "60"}).stdout
    assert "12+1:scale=4,solver=unipc" in shown
    assert all(len(line) <= 60 and "…" not in line for line in shown.splitlines())


def test_models_as_json():
    result = invoke(["models", "--json"])
    known = json.loads(result.stdout)
    assert {each["name"]: each["available"] for each in known["embedded"]} == dict.fromkeys(
        ("vista", "vista-turbo"), vista.available()
    )
    assert "FluxPipeline" in known["pipelines"]
    presets = {preset["name"]: preset for preset in known["presets"]}
    assert presets["12+1"]["steps"] == 12
    assert all(preset["source"] for preset in presets.values())
