"""`mrflow batch` at the door: streams, summary, dry run, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow, read_recipe
from mrflow.cli.loading import ModelOptions
from mrflow.errors import RequestError
from support.cli import Result, invoke

SMALL = ["--size", "32", "--plan", "1+1", "--out", "out"]


@pytest.fixture(scope="module")
def model() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, model):
    """Run each test in an empty folder of its own, with a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self: model)


def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = invoke(["batch", *arguments], input=stdin)
    assert result.exit_code == code, result.stderr
    return result


def refuse(*arguments: str, code: int, words: str) -> None:
    result = run(*arguments, code=code)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert words in line


def test_the_manifest_on_stdout_and_the_count_on_stderr():
    Path("p.txt").write_text("a red boat\na house\n")
    result = run("p.txt", *SMALL)
    assert result.stdout == "out/manifest.jsonl\n"
    assert "2 made, 0 skipped, 0 failed in" in result.stderr
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["000001.png", "000002.png"]
    assert "0 made, 2 skipped, 0 failed" in run("p.txt", *SMALL).stderr


def test_the_summary_as_json_and_failed_rows():
    Path("p.csv").write_text("id,prompt,seed\na,a boat,1\nb,a boat,x\na,a lake,3\n")
    result = run("p.csv", *SMALL, "--json", code=1)
    summary = json.loads(result.stdout)
    assert {name: summary[name] for name in ("total", "made", "skipped", "failed", "left")} == {
        "total": 3,
        "made": 1,
        "skipped": 0,
        "failed": 2,
        "left": 0,
    }
    assert (summary["manifest"], summary["errors"]) == ("out/manifest.jsonl", "out/errors.jsonl")
    lines = result.stderr.splitlines()
    assert "Failed: row 2 (b): seed is 'x'; it must be a whole number." in lines
    assert any("row 3 (a): The id 'a' is taken by row 1" in line for line in lines)


def test_standard_input_and_options_for_all_rows():
    run("-", *SMALL, "--negative", "a house", "-n", "2", "--seed", "5", stdin='{"prompt": "a boat", "id": "x"}\n')
    recipe = read_recipe("out/x-2.png")
    assert (recipe.negative_prompt, recipe.plan.label, recipe.width) == ("a house", "1+1", 32)
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["x-1.png", "x-2.png"]


def test_a_dry_run_says_what_it_would_do_and_makes_nothing():
    Path("p.jsonl").write_text('{"prompt": "a boat"}\n{"prompt": "a zebra", "width": 64}\n')
    result = run("p.jsonl", *SMALL, "--dry-run")
    for text in ("to make      2", "1 of 32x32 1+1", "1 of 64x32 1+1", "bad rows     0", "free"):
        assert text in result.stdout
    assert "'zebra'" in result.stderr
    assert not Path("out").exists()


def test_a_dry_run_finds_bad_rows():
    Path("p.jsonl").write_text('{"prompt": "a boat"}\n{"prompt": "a boat", "width": 50}\n{"prompt": 3}\n')
    result = run("p.jsonl", *SMALL, "--dry-run", "--json", code=1)
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["to_make"], sorted(each["row"] for each in found["failures"])) == (1, [2, 3])
    assert found["bytes_needed"] == 3 * 32 * 32 + 8192


def test_a_dry_run_with_many_bad_rows_names_no_file_that_it_does_not_write():
    Path("p.jsonl").write_text('{"prompt": 3}\n' * 30)
    told = run("p.jsonl", *SMALL, "--dry-run", code=1).stderr
    assert "--json lists them all" in told
    assert "errors.jsonl" not in told


@pytest.mark.parametrize("wrong", [("--num-images", "0"), ("--seed", "-1")])
def test_numbers_that_no_row_could_take_are_wrong_usage(wrong):
    Path("p.txt").write_text("a boat\n")
    assert wrong[1] in run("p.txt", *SMALL, *wrong, code=2).stderr
    assert not Path("out").exists()


def test_a_dry_run_finds_a_small_disk(monkeypatch):
    monkeypatch.setattr("mrflow.batch.sinks.free_bytes", lambda folder: 1000)
    Path("p.txt").write_text("a boat\n")
    assert "disk is too small" in run("p.txt", *SMALL, "--dry-run", code=1).stderr


def test_columns_that_are_not_used_are_named():
    Path("p.jsonl").write_text('{"prompt": "a boat", "sead": 3}\n')
    assert "sead" in run("p.jsonl", *SMALL).stderr


@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps", "refine_sigma"])
def test_numbers_of_a_plan_beside_it_are_refused(name):
    Path("p.jsonl").write_text(f'{{"prompt": "a boat", "{name}": 3}}\n')
    result = run("p.jsonl", *SMALL, code=2)
    assert f"p.jsonl has a column {name}. It would change the pictures" in " ".join(result.stderr.split())
    assert not Path("out").exists()


def test_many_failures_are_not_all_shown():
    Path("p.txt").write_text("a boat\n" + "x" * 10_001 + "\n" + ("y" * 10_001 + "\n") * 29)
    lines = run("p.txt", *SMALL, code=1).stderr.splitlines()
    assert sum(line.startswith("Failed: row") for line in lines) == 20
    assert len(Path("out/errors.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.jsonl", "--out", "out"], 2, "missing.jsonl does not exist"),
        (["empty.txt", "--out", "out"], 2, "holds no prompts"),
        (["p.doc", "--out", "out"], 2, "no known suffix"),
        (["p.txt", "--out", "out", "--format", "bmp"], 2, "'bmp'"),
        (["p.txt", "--out", "s3://bucket/x"], 2, "--state"),
        (["p.txt", "--out", "p.txt"], 1, "is a file"),
        (["p.txt", "--out", "out", "--sigma", "2"], 2, "refine_sigma is 2"),
        (["p.txt", "--out", "out", "--solver", "heun"], 2, "solver is 'heun'"),
        (
            ["p.txt", "--out", "out", "--draft-workers", "2"],
            2,
            "--draft-workers says how Ray is to work. Add --ray.",
        ),
        (["p.txt", "--out", "out", "--worker-threads", "2"], 2, "--worker-threads says"),
        (["p.txt", "--out", "out", "--size", "huge"], 2, "'huge'"),
        (["p.txt", "--out", "theirs"], 1, "no manifest.jsonl"),
    ],
)
def test_what_can_not_be_done_is_one_line(arguments, code, words):
    Path("p.txt").write_text("a boat\n")
    Path("empty.txt").write_text("\n\n")
    Path("theirs").mkdir()
    Path("theirs/000001.png").touch()
    refuse(*arguments, code=code, words=words)


def test_a_damaged_picture_is_named_and_made_again():
    Path("p.txt").write_text("a boat\na lake\n")
    run("p.txt", *SMALL)
    Path("out/000002.png").write_bytes(b"no picture")
    stderr = run("p.txt", *SMALL).stderr
    assert "1 pictures are missing or damaged" in stderr
    assert "1 made, 1 skipped" in stderr


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["p.txt", *SMALL, "--ray"], "local"),
        (["--ray", "p.txt", *SMALL], "local"),
        (["--ray", "auto", "p.txt", *SMALL], "auto"),
        (["p.txt", "--ray", "head:10001", *SMALL], "head:10001"),
        (["p.txt", "--ray", "10.0.0.1:6379", *SMALL], "10.0.0.1:6379"),
        (["p.txt", *SMALL, "--ray=host:1"], "host:1"),
    ],
)
def test_ray_needs_no_address(monkeypatch, arguments, address):
    pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')
    Path("p.txt").write_text("a boat\n")
    asked: list[Any] = []

    def run_batch(*_: Any, cluster: Any, **__: Any) -> Any:
        asked.append(cluster)
        raise RequestError("enough")

    monkeypatch.setattr("mrflow.batch.run.run_batch", run_batch)
    run(*arguments, "--finish-workers", "3", "--finish-gpus", "0.5", code=2)
    (cluster,) = asked
    assert (cluster.address, cluster.draft_workers, cluster.finish_workers) == (address, 1, 3)
    assert (cluster.draft_gpus, cluster.finish_gpus) == (None, 0.5)


def test_a_command_without_anything_says_what_is_missing():
    assert "Missing argument" in run(code=2).stderr


def test_ray_and_lanes_do_not_go_together():
    pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')
    Path("p.txt").write_text("a boat\n")
    refuse("p.txt", *SMALL, "--ray", "--lanes", "2", code=2, words="--lanes")
    refuse("p.txt", *SMALL, "--ray", "--finish-gpus", "1.5", code=2, words="finish_gpus is 1.5")


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("p.txt").write_text("a boat\n")
    refuse("p.txt", *SMALL, "--ray", code=1, words='pip install ".[ray]"')
