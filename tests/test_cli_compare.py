"""`mrflow compare` and `mrflow tune` at work on a tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow
from mrflow.bench import caches
from mrflow.cli.loading import ModelOptions
from mrflow.plan import read_plan
from support.cli import Result, invoke

PROMPTS = '{"prompt": "a red boat", "labels": {"object": "boat"}}\n{"prompt": "a blue house"}\n'


@pytest.fixture(scope="module")
def shared() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, shared):
    """Run each test in a folder of its own, on one tiny pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self: shared)
    Path("prompts.jsonl").write_text(PROMPTS)


def run(*arguments: str, code: int = 0) -> Result:
    result = invoke([*arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.stderr
    return result


def compare(*arguments: str, code: int = 0) -> Result:
    return run("compare", *arguments, "--prompts", "prompts.jsonl", code=code)


def test_a_report_is_made_and_named() -> None:
    result = compare("native:2", "1+1", "1+0", "--out", "out", "--no-equal-time", "--show", "1")
    assert result.stdout.split() == [f"out/{name}" for name in (
        "report.html", "tradeoff.png", "spectrum.png", "scores.json")]  # fmt: skip
    report = json.loads(Path("out/scores.json").read_text())
    assert [row["name"] for row in report["scores"]["methods"]] == ["native:2", "1+1", "1+0"]
    assert report["scores"]["methods"][1]["quality"]["found"]["object"]["value"] in (0, 0.5, 1)
    assert report["size"] == [64, 64]
    for text in ("Speed and quality: 2 of 2 prompts", "composite", "native:2"):
        assert text in result.stderr
    runs = Path("out/runs.jsonl").read_text()
    again = compare("native:2", "1+1", "1+0", "--out", "out", "--no-equal-time", "--json")
    assert Path("out/runs.jsonl").read_text() == runs
    assert json.loads(again.stdout.splitlines()[-1])["scores"] == report["scores"]
    assert "6 runs are there" in again.stderr


def test_a_comparison_that_was_stopped_is_reported_on_as_it_is() -> None:
    methods = ["native:2", "1+1", "--no-equal-time"]
    refused = compare(*methods, "--out", "out", "--report-only", code=1)
    assert "holds no comparison to report on" in refused.stderr
    assert not Path("out").exists()
    compare(*methods, "--out", "out")
    lines = Path("out/runs.jsonl").read_text().splitlines(keepends=True)
    half = "".join(lines[:-1])
    Path("out/runs.jsonl").write_text(half)
    begun = json.loads(Path("out/course.json").read_text())
    begun["environment"]["commit"] = "elsewhere"
    Path("out/course.json").write_text(json.dumps(begun))
    result = compare(*methods, "--out", "out", "--report-only")
    assert "1 of 2 prompts" in result.stderr
    report = json.loads(Path("out/scores.json").read_text())
    assert report["environment"]["commit"] == "elsewhere" != report["scores"]["commit"]
    assert Path("out/runs.jsonl").read_text() == half
    assert json.loads(Path("out/scores.json").read_text())["scores"]["prompts"] == 1


def test_a_narrow_terminal_gets_the_main_figures_on_one_line_each() -> None:
    methods = ["native:2", "1+1:upscaler=lanczos", "native:2,guidance_stop=0.5"]
    arguments = ["compare", *methods, "--prompts", "prompts.jsonl", "--limit", "1", "--out", "out"]
    arguments += ["--no-equal-time", "--show", "0"]
    result = invoke(arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("method"))
    heading = lines[at].split("  ")
    assert [word.strip() for word in heading if word.strip()] == [
        "method", "times faster", "seconds", "composite", "found"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == methods
    assert all(len(line.split()) == 5 for line in lines[at + 1 : at + 4])
    assert max(map(len, lines)) <= 80
    assert "more in report.html" in lines[at - 1]
    assert "change of composite" in Path("out/report.html").read_text(encoding="utf-8")


def test_native_of_equal_time_is_measured_once() -> None:
    first = compare("native:2", "1+1", "--limit", "1", "--out", "out")
    equal = json.loads(Path("out/scores.json").read_text())["equal_time"]
    assert equal["method"] == "1+1"
    assert "measuring how many native steps" in first.stderr
    second = compare("native:2", "1+1", "--limit", "1", "--out", "out")
    assert "measuring" not in second.stderr
    assert json.loads(Path("out/scores.json").read_text())["equal_time"] == equal


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["12+1", "12+1"], "given twice", 2),
        (["quick"], "There is no plan 'quick'", 2),
        (["12+1:cache=x@1"], "no cache 'x'", 2),
        (["12+1:upscaler=nowhere.pth"], "no upscaler file", 2),
        (["--seeds", "0"], "seeds is 0", 2),
        (["--seed", "-1"], "seed is -1", 2),
        (["--size", "big"], "The size is 'big'", 2),
        (["--metric", "beauty"], "no metric 'beauty'", 2),
        (["--metric", "image-reward"], '".[image-reward]"', 1),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_model_is_loaded(
    monkeypatch, arguments, words, code
) -> None:
    if "--size" not in arguments:
        monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("the model was loaded"))
    result = compare(*arguments, code=code)
    assert words in result.stderr
    assert result.stdout == ""
    assert not Path("compare").exists()


def test_a_missing_package_is_said(monkeypatch) -> None:
    monkeypatch.setattr(caches, "find_spec", lambda name: None)
    assert '".[caches]"' in compare("native:cache=cache-dit@0.1", code=1).stderr


def test_another_course_in_the_same_folder_is_refused() -> None:
    compare("native:1", "--out", "out", "--limit", "1")
    assert "begun with another" in compare("native:1", "--out", "out", "--limit", "2", code=2).stderr


TUNE = ("tune", "--prompts", "prompts.jsonl", "--than", "2+1")


def test_a_plan_is_found_and_taken_by_other_commands() -> None:
    tune = ("tune", "--prompts", "prompts.jsonl", "--than", "2+1:refine_sigma=0.2")
    result = run(*tune, "1+1", "1+1:refine_sigma=0.3", "--at-least", "0.01x", "--at-most-loss", "1")
    assert result.stdout == "tuned.json\n"
    assert read_plan(Path("tuned.json")).steps == 1
    measured = json.loads(Path("tuned.json").read_text())["measured"]
    assert measured["found"]["prompts"] == 2
    assert measured["reference"] == "2+1:refine_sigma=0.2"
    made = run("generate", "a red boat", "--plan", "tuned.json", "--json")
    assert json.loads(made.stdout)["pictures"][0]["recipe"]["plan"]["steps"] == 1
    assert "tuned.json exists" in run(*TUNE, "1+1", "--at-least", "1", code=1).stderr


def test_a_narrow_terminal_gets_a_finding_on_one_line_each() -> None:
    arguments = [*TUNE, "1+1:refine_sigma=0.3", "--at-least", "0.01x", "--at-most-loss", "1"]
    result = invoke(arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("method"))
    assert lines[at].split("  ")[0] == "method"
    assert "peak memory" not in lines[at]
    assert {line.split()[0] for line in lines[at + 1 : at + 3]} == {"2+1", "1+1:refine_sigma=0.3"}
    assert all(line.rstrip().endswith(")") for line in lines[at + 1 : at + 3])  # the interval of the change
    assert max(map(len, lines)) <= 80


def test_a_target_that_nothing_meets_writes_nothing() -> None:
    result = run(*TUNE, "1+1", "native:1", "--at-least", "900", "--json", code=1)
    assert "no candidate meets the target" in result.stderr
    assert json.loads(result.stdout)["plan"] is None
    assert not Path("tuned.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([], "no target", 2),
        (["--at-least", "fast"], "--at-least is 'fast'", 2),
        (["--at-least", "nan"], "at_least is nan", 2),
        (["--at-most-loss", "2"], "at_most_loss is 2", 2),
        (["--max-memory", "0"], "--max-memory is '0'", 2),
        (["--max-memory", "12"], "at least a megabyte", 2),
        (["--at-least", "1", "1+1:upscaler=bicubic"], "more than a plan", 2),
        (["--at-least", "1", "--out", "plan.txt"], "must be .json", 2),
        (["--at-least", "1", "--than", "nowhere.json"], "no plan file", 2),
        (["--at-least", "1", "--than", "native:8"], "--than is native:8; it must be a plan", 2),
        (["--at-least", "1", "--than", "12+0"], "12+0 is more than a plan", 2),
    ],
    ids=range(11),
)
def test_what_cannot_be_tuned_is_refused_before_the_model_is_loaded(monkeypatch, arguments, words, code) -> None:
    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("the model was loaded"))
    assert words in run("tune", "--prompts", "prompts.jsonl", *arguments, code=code).stderr
