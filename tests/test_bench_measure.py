"""Measuring on a tiny pipeline: what a report holds, how it is continued, what memory and environment say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow
from mrflow.bench import environment
from mrflow.bench.environment import describe_environment, source_commit
from mrflow.bench.measure import Course, check_batches, measure_group, missing_groups, open_report, save_report
from mrflow.bench.methods import Method, read_methods
from mrflow.bench.plots import draw_bars
from mrflow.errors import OutputError, RequestError
from mrflow.memory import PeakMemory

COURSE = Course(methods=read_methods(["native:3", "2+1"]), prompt="a red boat", repeats=2)
HEAD = {
    "environment": {"device_name": "a tiny CPU", "dtype": "float32"},
    "model": {"name": "tiny"},
    "course": COURSE.to_dict(),
}


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def runs() -> list[str]:
    return []


@pytest.fixture(scope="module")
def group(fast: MrFlow, runs: list[str]) -> dict:
    return measure_group(fast, COURSE, (64, 32), 2, runs.append)


def test_methods_are_warmed_up_and_run_in_turn(group, runs):
    assert runs == ["warm up", "warm up", "native:3", "2+1", "native:3", "2+1"]
    assert len(runs) == COURSE.runs(1)


def test_a_group_is_whole_and_plain(group):
    assert json.loads(json.dumps(group)) == group
    assert (group["width"], group["height"], group["batch"]) == (64, 32, 2)
    native, staged = group["methods"]
    assert set(native["seconds"]) == {"text", "draft", "decode", "rest", "total"}
    assert set(staged["seconds"]) == {
        *("text", "draft", "decode_draft", "upscale", "encode", "refine", "decode", "rest", "total")
    }
    assert (native["plan"]["steps"], staged["plan"]["steps"], staged["plan"]["scale"]) == (3, 2, 2.0)
    for method, kind in ((native, "native"), (staged, "staged")):
        total = method["seconds"]["total"]
        assert method["kind"] == kind
        assert total["low"] <= total["median"] <= total["high"]
        assert sorted(method["totals"]) == [total["low"], total["high"]]
        assert method["images_per_second"] == 2 / total["median"]
        assert method["peak_memory"] > 50 * 2**20  # a process with torch in it
    assert native["seconds_per_step"] == {"draft": native["seconds"]["draft"]["median"] / 3}
    assert set(staged["seconds_per_step"]) == {"draft", "refine"}


def test_stages_and_the_rest_add_up(fast):
    course = Course(methods=read_methods(["1+1"]), prompt="a", repeats=1, warm_up=0)
    (method,) = measure_group(fast, course, (64, 64), 1, lambda _: None)["methods"]
    parts = sum(each["median"] for name, each in method["seconds"].items() if name != "total")
    assert parts == pytest.approx(method["seconds"]["total"]["median"])


def test_the_ratio_is_that_of_the_medians(group):
    native, staged = group["methods"]
    assert native["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    ratio = native["seconds"]["total"]["median"] / staged["seconds"]["total"]["median"]
    assert staged["speedup"]["median"] == ratio


def test_running_out_of_memory_is_reported_and_nothing_else_lost(fast, monkeypatch):
    run = Method.run

    def hungry(self, *arguments, **settings):
        if self.plan is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, *arguments, **settings)

    monkeypatch.setattr(Method, "run", hungry)
    native, staged = measure_group(fast, COURSE, (32, 32), 1, lambda _: None)["methods"]
    assert native == {"name": "native:3", "kind": "native", "failed": "out of memory"}
    assert len(staged["totals"]) == 2
    assert staged["speedup"] is None
    everyone = measure_group(fast, Course(methods=COURSE.methods[:1], prompt="a"), (32, 32), 1, lambda _: None)
    assert everyone["methods"] == [native]


@pytest.mark.parametrize("name", ["repeats", "warm_up"])
def test_courses_are_checked(name):
    with pytest.raises(RequestError, match=f"{name} is -1"):
        Course(methods=COURSE.methods, prompt="a", **{name: -1})


@pytest.mark.parametrize("batch", [0, -1, 1000])
def test_batches_are_checked(batch):
    with pytest.raises(RequestError, match="batch is"):
        check_batches([1, batch])


def test_a_report_is_continued_where_it_stopped(tmp_path, group):
    path = tmp_path / "bench.json"
    report = open_report(path, HEAD)
    assert missing_groups(report, [(64, 32), (96, 64)], [1, 2]) == [
        *(((64, 32), 1), ((64, 32), 2), ((96, 64), 1), ((96, 64), 2))
    ]
    report["groups"].append(group)
    save_report(report, path)
    again = open_report(path, HEAD)
    assert again == report
    assert missing_groups(again, [(64, 32)], [1, 2]) == [((64, 32), 1)]
    assert open_report(None, HEAD)["groups"] == []


def test_a_report_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "bench.json"
    save_report(open_report(None, HEAD), path)
    with pytest.raises(RequestError, match="another model"):
        open_report(path, {**HEAD, "model": {"name": "other"}})
    for text in ("{", "[]", "{}", '{"groups": 3}'):
        path.write_text(text)
        with pytest.raises(OutputError, match="no report"):
            open_report(path, HEAD)
        assert path.read_text() == text


def test_the_peak_of_memory_is_that_of_the_run():
    gauge = PeakMemory(torch.device("cpu"))
    gauge.reset()
    before = gauge.read()
    ballast = torch.ones(16 * 2**20)
    with_ballast = gauge.read()
    assert with_ballast - before > 48 * 2**20
    del ballast
    if "during each run" in gauge.what:
        gauge.reset()
        assert with_ballast - gauge.read() > 32 * 2**20


def test_the_environment_names_what_a_figure_depends_on():
    told = describe_environment(torch.device("cpu"), torch.float32)
    assert (told["device"], told["dtype"], told["threads"]) == ("cpu", "float32", torch.get_num_threads())
    assert told["device_name"]
    assert {"python", "torch", "mrflow"} <= set(told["versions"])
    assert json.loads(json.dumps(told)) == told


def test_the_commit_is_that_of_the_source(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(environment, "_PACKAGE", tmp_path)
    assert source_commit() is None  # no checkout
    subprocess.run([*git, "init", "-q"], check=True)
    assert source_commit() is None  # an installation inside somebody's repository
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit = source_commit()
    assert len(commit) == 40
    (tmp_path / "__init__.py").write_text("changed")
    assert source_commit() == f"{commit}+changes"


def test_bars_have_the_stages_colours(group):
    report = {**open_report(None, HEAD), "groups": [group, {**group, "batch": 4}]}
    picture = draw_bars(report)
    assert picture.mode == "RGB"
    colors = {color for _, color in picture.getcolors(maxcolors=2**24)}
    assert {(0x2F, 0x6F, 0x9F), (0xC4, 0x57, 0x2F)} <= colors  # draft and refine


def test_plotting_is_found_missing_by_name(monkeypatch):
    from mrflow.bench import plots
    from mrflow.errors import MissingExtraError

    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'"\.\[bench\]"'):
        plots.draw_bars({"groups": []})


def test_the_room_is_light_to_import():
    rooms = ["environment", "export", "layouts", "measure", "methods", "plots", "timing"]
    code = "import sys\n" + "".join(f"import mrflow.bench.{room}\n" for room in rooms) + "import mrflow.memory\n"
    code += "print([n for n in ('torch', 'numpy', 'diffusers', 'matplotlib') if n in sys.modules])"
    path = str(Path(environment.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]"
