"""Every example runs as it is: on a tiny random pipeline in vista's place, and on vista where it is installed."""

from __future__ import annotations

import ast
import json
import runpy
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import MrFlow, load_image, read_recipe, vista

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "first_pictures.ipynb"
RUNS = {
    "two_lines.py": ([], ["lake.png"]),
    "draft_choose_finish.py": (["3"], ["chosen.png", "drafts.png"]),
    "enhance_photo.py": (["photo.png", "a lake at noon"], ["photo-enhanced.png"]),
}


@pytest.fixture
def tiny(monkeypatch):
    """Let the examples find a tiny pipeline under vista's name."""
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda name: make_fast(make_pipe()))


def test_all_examples_are_here():
    assert sorted(RUNS) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.filterwarnings("ignore::mrflow.errors.PromptWarning")  # the tiny tokenizer knows few words
@pytest.mark.parametrize("name", RUNS)
def test_example(name, tmp_path, monkeypatch):
    run(name, tmp_path, monkeypatch)


@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
@pytest.mark.parametrize(
    "name",
    ["two_lines.py", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "two_lines.py")],
)
def test_example_on_vista(name, tmp_path, monkeypatch):
    run(name, tmp_path, monkeypatch)


@pytest.mark.usefixtures("tiny")
@pytest.mark.filterwarnings("ignore::mrflow.errors.PromptWarning")
@pytest.mark.parametrize("name", RUNS)
def test_an_example_says_where_it_wrote_and_runs_twice(name, tmp_path, monkeypatch, capsys):
    run(name, tmp_path, monkeypatch)
    first = capsys.readouterr().out
    assert sorted(first.split()) == RUNS[name][1]
    run(name, tmp_path, monkeypatch)
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("draft_choose_finish.py", ["9"]),
        ("draft_choose_finish.py", ["-1"]),
        ("draft_choose_finish.py", ["two"]),
        ("draft_choose_finish.py", ["1", "2"]),
        ("enhance_photo.py", []),
        ("enhance_photo.py", ["photo.png"]),
        ("enhance_photo.py", ["missing.png", "a lake"]),
    ],
)
def test_an_example_says_what_it_wants(name, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda name: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=f"usage: python .*{name} "):
        start(name, arguments, tmp_path, monkeypatch)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("prompt", "words"), [(" ", "prompt is empty"), ("a lake", "no image")])
def test_an_example_ends_in_a_line(prompt, words, tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    if words == "no image":
        (tmp_path / "photo.png").write_text("no picture")
    with pytest.raises(SystemExit, match=words):
        start("enhance_photo.py", ["photo.png", prompt], tmp_path, monkeypatch)


def test_the_notebook_is_a_notebook_without_output():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells_of(notebook))


@pytest.mark.slow
@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_the_notebook_runs_from_top_to_bottom_in_three_minutes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, shown, begin = {}, [], time.process_time()
    for cell in cells_of(json.loads(NOTEBOOK.read_text())):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if last is not None:  # what a notebook shows below the cell
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names))
    assert time.process_time() - begin < 180
    assert sum(isinstance(each, Image.Image) for each in shown) == 6
    assert load_image("chosen.png").size == (512, 512)


def cells_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def start(name, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def run(name, tmp_path, monkeypatch):
    arguments, written = RUNS[name]
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "photo.png")
    start(name, arguments, tmp_path, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "photo.png") == written
    assert load_image(written[0]).width >= 64
    assert read_recipe(written[0]).versions["mrflow"]
