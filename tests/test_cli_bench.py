"""`mrflow bench` at work on a tiny pipeline: report, tables, picture, going on after a stop, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow, architectures, load_image
from mrflow.cli.loading import ModelOptions
from support.architectures import small_flux
from support.cli import Result, invoke

SHORT = ["native:2", "1+1", "--repeats", "1"]


@pytest.fixture(scope="module")
def shared() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, shared):
    """Run each test in a folder of its own, on one tiny pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self: shared)


def run(*arguments: str, code: int = 0) -> Result:
    result = invoke(["bench", *arguments], env={"COLUMNS": "150"})
    assert result.exit_code == code, result.stderr
    return result


def test_tables_on_stderr_and_the_report_as_the_last_line():
    result = run(*SHORT, "--size", "64,32x64", "--batch", "1,2", "--json")
    report = json.loads(result.stdout.splitlines()[-1])
    assert [(g["width"], g["height"], g["batch"]) for g in report["groups"]] == [
        *((64, 64, 1), (64, 64, 2), (32, 64, 1), (32, 64, 2))
    ]
    assert set(report) == {"format", "environment", "model", "course", "groups"}
    assert report["course"]["methods"] == ["native:2", "1+1"]
    assert report["model"]["parameters"]["transformer"] > 1000
    for text in ("64x64, batch 1", "times faster", "decode the draft", "peak memory", "float32", "a draft step"):
        assert text in result.stderr
    assert result.stderr.count("does not know: 'sunset'") == 1  # not once for each run


def test_a_narrow_terminal_gets_the_totals_on_one_line_each():
    methods = ["native:2", "1+1", "1+1:guidance_stop=0.5", "native:1", "1+1:refine_sigma=0.2"]
    result = invoke(["bench", *methods, "--repeats", "1"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("method"))
    assert [line.split()[0] for line in lines[at + 1 : at + 6]] == methods
    assert all(line.rstrip().endswith(")") for line in lines[at + 1 : at + 6])  # the ratio with its range
    assert max(map(len, lines[at - 1 : at + 6])) <= 80
    assert "--plot or --json" in lines[at - 1]


def test_report_and_picture_are_written_and_named():
    result = run(*SHORT, "--out", "bench.json", "--plot", "bench.png")
    assert result.stdout == "bench.json\nbench.png\n"
    assert json.loads(Path("bench.json").read_text())["groups"][0]["width"] == 64
    assert load_image("bench.png").width > 500
    assert "bench.png exists" in run(*SHORT, "--plot", "bench.png", code=1).stderr


def test_the_same_command_goes_on(monkeypatch):
    run(*SHORT, "--size", "64", "--out", "bench.json")
    before = json.loads(Path("bench.json").read_text())["groups"]
    result = run(*SHORT, "--size", "64,32", "--out", "bench.json")
    assert "1 of 2 groups were measured before" in result.stderr
    after = json.loads(Path("bench.json").read_text())["groups"]
    assert after[:1] == before
    assert [group["width"] for group in after] == [64, 32]
    assert "another course" in run("native:2", "2+1", "--repeats", "1", "--out", "bench.json", code=2).stderr


def test_random_weights(monkeypatch):
    monkeypatch.setattr(architectures, "read_architecture", lambda name: small_flux())
    report = json.loads(run(*SHORT, "--random-weights", "flux-dev", "--size", "64", "--json").stdout)
    assert report["model"]["random_weights"] is True
    assert "black-forest-labs/FLUX.1-dev" in report["model"]["source"]
    assert report["model"]["upscaler"] == "RealESRGAN_x2plus, random weights"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["12+1", "12+1"], "given twice"),
        (["quick"], "There is no plan 'quick'"),
        (["--batch", "0"], "batch is 0"),
        (["--batch", "two"], "must be numbers"),
        (["--batch", "2,2"], "twice"),
        (["--size", "64,"], "The size is ''"),
        (["--repeats", "0"], "repeats is 0"),
        (["--prompt", " "], "The prompt is empty"),
        (["--random-weights", "flux9"], "There is no architecture 'flux9'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_is_loaded(monkeypatch, arguments, words):
    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("the model was loaded"))
    result = run(*arguments, code=2)
    assert words in result.stderr
    assert result.stdout == ""


def test_sizes_that_do_not_fit_are_refused_before_anything_is_measured():
    assert "Try 48x48 or 64x64" in run(*SHORT, "--size", "64,50", code=2).stderr
    assert "given twice" in run(*SHORT, "--size", "64,64x64", code=2).stderr
