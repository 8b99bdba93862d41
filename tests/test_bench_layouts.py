"""The layouts, against small prompt files in the form of the originals, and against hostile ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrflow.bench.layouts import LAYOUTS, get_layout, read_items
from mrflow.errors import PromptError, RequestError

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a réd cow"},
]


def read(name: str, path: Path, count: int | None = None):
    layout = get_layout(name)
    return read_items(layout, path, "run", count or layout.num_images)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return path


def files(items) -> list[list[str]]:
    return [[path.as_posix() for path in item.files] for item in items]


def test_every_layout_says_where_it_is_from():
    assert set(LAYOUTS) == {"oneig", "geneval", "dpg", "t2i-compbench"}
    assert all("github.com/" in layout.source for layout in LAYOUTS.values())


def test_oneig(tmp_path):
    rows = "\ufeffcategory,id,prompt_en,type,prompt_length,class\r\n"
    rows += 'Anime_Stylization,000,"a boat, red",T,short,None\r\n'
    rows += 'Portrait,000,"a woman\nsmiling",NP,short,None\r\nKnowledge_Reasoning,012,a cell,T,long,None\r\n'
    items = read("oneig", write(tmp_path, "OneIG-Bench.csv", rows))
    assert files(items) == [["anime/run/000.webp"], ["human/run/000.webp"], ["reasoning/run/012.webp"]]
    assert [item.prompt for item in items] == ["a boat, red", "a woman\nsmiling", "a cell"]


def test_oneig_in_chinese(tmp_path):
    items = read("oneig", write(tmp_path, "zh.csv", "category,id,prompt_cn\nMultilingualism,003,一艘红船\n"))
    assert (items[0].prompt, files(items)) == ("一艘红船", [["multilingualism/run/003.webp"]])


def test_geneval(tmp_path):
    lines = [json.dumps(entry) for entry in GENEVAL]
    items = read("geneval", write(tmp_path, "evaluation_metadata.jsonl", "\n".join(lines) + "\n"))
    samples = [f"run/00001/samples/000{k}.png" for k in range(4)]
    assert files(items)[1] == [*samples, "run/00001/grid.png", "run/00001/metadata.jsonl"]
    assert items[1].prompt == "a photo of a réd cow"
    assert json.loads(items[1].note[1]) == GENEVAL[1]


def test_dpg(tmp_path):
    write(tmp_path, "prompts/partiprompts2.txt", "a small boat\n")
    write(tmp_path, "prompts/COCOval2014000000000164.txt", "a large boat ")
    write(tmp_path, "prompts/notes.md", "no prompt")
    items = read("dpg", tmp_path / "prompts")
    assert files(items) == [["run/COCOval2014000000000164.png"], ["run/partiprompts2.png"]]
    assert [item.prompt for item in items] == ["a large boat", "a small boat"]


def test_t2i_compbench(tmp_path):
    path = write(tmp_path, "color_val.txt", "a green bench and a blue bowl\na red apple.\tapple\n")
    items = read("t2i-compbench", path, 2)
    assert files(items) == [
        [f"run/color_val/samples/a green bench and a blue bowl_00000{k}.png" for k in (0, 1)],
        [f"run/color_val/samples/a red apple._00000{k}.png" for k in (2, 3)],
    ]
    assert LAYOUTS["t2i-compbench"].num_images == 10


HEAD = "category,id,prompt_en\n"


@pytest.mark.parametrize(
    ("name", "file", "text", "words"),
    [
        ("oneig", "a.csv", HEAD + "Portrait,../../etc/passwd,x\n", "row 1: the id"),
        ("oneig", "a.csv", HEAD + "Portrait,,x\n", "the id is ''"),
        ("oneig", "a.csv", HEAD + "../Portrait,000,x\n", "the category"),
        ("oneig", "a.csv", HEAD + "Portrait\n", "has 1 fields"),
        ("oneig", "a.csv", HEAD + "Portrait,00,x\nPortrait,001,y\n", "begins with"),
        ("oneig", "a.csv", HEAD + "Portrait,00,x\nPortrait,00,y\n", "begins with"),
        ("oneig", "a.csv", HEAD + "Portrait,00,\n", "empty"),
        ("oneig", "a.csv", "category,prompt_en\nPortrait,x\n", "the id is ''"),
        ("oneig", "a.csv", HEAD, "holds no prompts"),
        ("oneig", "a.csv", "prompt_en,id\nx,1\n", "one must be category"),
        ("oneig", "a.csv", HEAD + 'Portrait,00,"a lake\n', "lines 2 to 2"),
        ("oneig", "a.csv", "", "holds no prompts"),
        ("geneval", "a.jsonl", "", "line 1 is no JSON"),
        ("geneval", "a.jsonl", '{"prompt": "x"}\n\n{"prompt": "y"}', "line 2 is no JSON"),
        ("geneval", "a.jsonl", "[" * 100_000, "line 1 is no JSON"),
        ("geneval", "a.jsonl", '["x"]', "must be an object"),
        ("geneval", "a.jsonl", '{"prompt": 3}', "must be text"),
        ("geneval", "a.jsonl", '{"tag": "x"}', "must be text"),
        ("t2i-compbench", "a.txt", "a/b\n", "slash"),
        ("t2i-compbench", "a.txt", "../../up\n", "slash"),
        ("t2i-compbench", "a.txt", "a\x00b\n", "NUL"),
        ("t2i-compbench", "a.txt", "a\x01b\n", "control character"),
        ("t2i-compbench", "a.txt", "fine\n\nfine\n", "line 2"),
        ("t2i-compbench", "a.txt", "x" * 250, "too long"),
        ("t2i-compbench", "a b.txt", "x", "its name"),
        ("dpg", "a.txt", "x", "is no folder"),
    ],
)
def test_hostile_prompt_files_are_refused(tmp_path, name, file, text, words):
    with pytest.raises((PromptError, RequestError), match=words):
        read(name, write(tmp_path, file, text))


@pytest.mark.parametrize("stem", ["a.b", "..", "-x y"])
def test_dpg_names_that_the_scorer_would_misread_are_refused(tmp_path, stem):
    write(tmp_path, f"prompts/{stem}.txt", "x")
    with pytest.raises(PromptError, match="its name"):
        read("dpg", tmp_path / "prompts")


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden", "a*", "x" * 101])
def test_names_of_runs_are_checked(tmp_path, name):
    path = write(tmp_path, "a.txt", "x")
    with pytest.raises(RequestError, match="The name is"):
        read_items(get_layout("t2i-compbench"), path, name, 1)


@pytest.mark.parametrize(("name", "count"), [("oneig", 3), ("dpg", 9), ("geneval", 0), ("t2i-compbench", 1001)])
def test_numbers_of_pictures_are_checked(tmp_path, name, count):
    with pytest.raises(RequestError, match="num_images is"):
        read_items(get_layout(name), tmp_path, "run", count)


def test_unknown_benchmarks_are_named():
    with pytest.raises(RequestError, match="Known: oneig"):
        get_layout("imagenet")
