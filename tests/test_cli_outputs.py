"""Patterns and names of output files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mrflow.cli.outputs import Subject, companion, plan_outputs, subjects_of
from mrflow.errors import FileNameError, OutputError, OutputExistsError, RequestError
from mrflow.files import save_image
from mrflow.jobs import ask

TWO = [Subject(prompt="a-lake", seed=7, index=1), Subject(prompt="a-lake", seed=8, index=2)]
DEFAULT = "{prompt}-{seed}.png"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_fields(tmp_path):
    paths = plan_outputs(f"{tmp_path}/{{name}}-{{prompt}}-{{seed}}-{{index:03}}.webp", DEFAULT, TWO)
    assert names(paths) == ["picture-a-lake-7-001.webp", "picture-a-lake-8-002.webp"]


def test_a_folder_takes_the_default_names(tmp_path):
    assert plan_outputs(str(tmp_path), DEFAULT, TWO) == [tmp_path / "a-lake-7.png", tmp_path / "a-lake-8.png"]
    assert plan_outputs(f"{tmp_path}/", DEFAULT, TWO)[0] == tmp_path / "a-lake-7.png"


def test_the_current_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan_outputs(None, DEFAULT, TWO) == [Path("a-lake-7.png"), Path("a-lake-8.png")]


def test_made_up_names_are_kept_free(tmp_path):
    (tmp_path / "a-lake-7.png").touch()
    (tmp_path / "a-lake-8-draft.png").touch()
    paths = plan_outputs(str(tmp_path), DEFAULT, [*TWO, TWO[0]], companions=["draft"])
    assert names(paths) == ["a-lake-7-2.png", "a-lake-8-2.png", "a-lake-7-3.png"]


def test_an_existing_name_that_was_asked_for_is_refused_unless_forced(tmp_path):
    path = tmp_path / "lake.png"
    path.touch()
    with pytest.raises(OutputExistsError, match=r"lake\.png"):
        plan_outputs(str(path), DEFAULT, TWO[:1])
    assert plan_outputs(str(path), DEFAULT, TWO[:1], force=True) == [path]


def test_companions_must_be_free_too(tmp_path):
    (tmp_path / "lake-draft.png").touch()
    with pytest.raises(OutputExistsError, match="lake-draft"):
        plan_outputs(str(tmp_path / "lake.png"), DEFAULT, TWO[:1], companions=["draft"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("lake.png", "to two pictures"),
        ("{sead}.png", r"\{sead\}"),
        ("{seed.real}.png", r"\{seed.real\}"),
        ("{}.png", "may hold"),
        ("{seed.png", "no pattern"),
        ("{seed:zz}.png", "Try"),
        ("{seed:>99999999}.png", "Try"),
        ("{seed:{index}}.png", "Try"),
        ("{seed!r}.png", "Try"),
        ("{index:c}.png", "Try"),
        ("{0}.png", "may hold"),
        ("{index.__class__}.png", "may hold"),
        ("{seed:.3}.png", "no pattern"),
    ],
)
def test_patterns_that_make_no_sense(tmp_path, pattern, words):
    with pytest.raises(RequestError, match=words):
        plan_outputs(f"{tmp_path}/{pattern}", DEFAULT, TWO)


@pytest.mark.parametrize("name", ["missing/lake.png", "lake.bmp", "lake"])
def test_names_that_cannot_be_written(tmp_path, name):
    with pytest.raises(OutputError):
        plan_outputs(str(tmp_path / name), DEFAULT, TWO[:1])


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("A Lake, at Dusk!", "a-lake-at-dusk"),
        ("../../etc/passwd", "etc-passwd"),
        ("un café à 8h", "un-café-à-8h"),
        ("???", "picture"),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
        ("x" * 99, "x" * 40),
        ("पहाड़ों में झील", "पहाड़ों-में-झील"),
        ("น้ำตก", "น้ำตก"),
        ("mo\u0302\u0323t ho\u0302\u0300 nu\u031bo\u031b\u0301c", "một-hồ-nước"),
        ("ශ්\u200dරී", "ශ්\u200dරී"),
        ("❤\ufe0f lake", "lake"),
        ("x" * 39 + "कि" * 9, "x" * 39),
        ("a" + "\u0301" * 99 + " lake", "lake"),
        ("CON", "con_"),
        ("com1", "com1_"),
        ("𠀀" * 99, "𠀀" * 40),
    ],
)
def test_a_prompt_becomes_a_short_file_name(prompt, slug):
    assert subjects_of(ask(prompt, seed=1))[0].prompt == slug


def test_names_that_are_one_on_other_systems_are_two_pictures(tmp_path):
    names = ["Lake", "lake", "e\u0301", "\u00e9"]
    four = [Subject(prompt="a", seed=k, index=k, name=name) for k, name in enumerate(names)]
    made = plan_outputs(str(tmp_path), "{name}.png", four)
    assert [path.stem for path in made] == ["Lake", "lake-2", "e\u0301", "\u00e9-2"]
    with pytest.raises(RequestError, match="to two pictures"):
        plan_outputs(f"{tmp_path}/{{name}}.png", DEFAULT, four[:2])


def test_a_picture_takes_no_name_of_anothers_stage(tmp_path):
    two = [Subject(prompt="a", seed=k, index=k, name=name) for k, name in enumerate(["lake", "lake-draft"])]
    with pytest.raises(RequestError, match="to two pictures"):
        plan_outputs(f"{tmp_path}/{{name}}.png", DEFAULT, two, companions=["draft"])


def test_a_folder_with_braces_in_its_name(tmp_path):
    (tmp_path / "{x}").mkdir()
    assert plan_outputs(str(tmp_path / "{x}"), DEFAULT, TWO[:1]) == [tmp_path / "{x}" / "a-lake-7.png"]


def test_the_longest_name_is_one_that_can_be_written(tmp_path):
    for letter, count in (("x", 251), ("湖", 83), ("𠀀", 62)):
        path = tmp_path / f"{letter * count}.png"
        assert plan_outputs(str(path), DEFAULT, TWO[:1]) == [path]
        save_image(Image.new("RGB", (8, 8)), path)
        with pytest.raises(FileNameError, match="too long"):
            plan_outputs(str(tmp_path / f"{letter * (count + 1)}.png"), DEFAULT, TWO[:1])


def test_companion():
    assert companion(Path("out/lake.webp"), "draft") == Path("out/lake-draft.webp")
