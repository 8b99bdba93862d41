"""Prompt files for comparing: what is read, what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrflow.bench.prompts import VISTA_TUNING, Question, read_questions
from mrflow.errors import PromptError
from mrflow.metrics.attributes import asked


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_vistas_own_prompts_have_labels() -> None:
    questions = read_questions(None)
    assert len(questions) == 256
    assert len({question.prompt for question in questions}) > 250
    assert all("time" in asked(question.prompt, question.labels) for question in questions)
    assert read_questions(None, 3) == questions[:3]
    tuning = read_questions(VISTA_TUNING)
    assert len(tuning) == 64
    assert not {each.prompt for each in tuning} & {each.prompt for each in questions}


def test_lines_and_objects_are_read(tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, "a.txt", "\ufeffa lake\r\n\r\n  a boat \n")) == [
        *(Question("a lake"), Question("a boat"))
    ]
    objects = '{"prompt": "a lake", "labels": {"time": "noon"}, "id": 3}\n{"prompt": "a boat"}\n'
    assert read_questions(write(tmp_path, "a.jsonl", objects)) == [
        *(Question("a lake", {"time": "noon"}), Question("a boat"))
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", " \n", "holds no prompts"),
        ("a.jsonl", "a lake\n", "line 1 is no JSON"),
        ("a.jsonl", '{"prompt": "a"}\n[]\n', 'line 2 has no "prompt"'),
        ("a.jsonl", '{"prompt": 3}\n', "line 1: The prompt is int"),
        ("a.jsonl", '{"prompt": ""}\n', "line 1: The prompt is empty"),
        ("a.jsonl", '{"prompt": "a", "labels": ["noon"]}\n', "line 1 has labels"),
        ("a.jsonl", '{"prompt": "a", "labels": {"time": 3}}\n', "line 1 has labels"),
        ("a.jsonl", '{"prompt": "a", "labels": {"time": "late"}}\n', "known are dawn"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1 is no JSON"),
        ("a.txt", "a\n" * 10_001, r"at most 10000 are compared. Set limit \(--limit\)"),
        ("a.txt", "a" * 10_001, "line 1: The prompt has 10001"),
    ],
    ids=range(11),
)
def test_what_is_no_prompt_file_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        read_questions(write(tmp_path, name, text))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no prompt file"):
        read_questions(tmp_path / "none.txt")


def test_tables_are_read_by_their_column_and_refused_where_a_batch_fails_a_row(tmp_path: Path) -> None:
    assert len(read_questions(write(tmp_path, "a.txt", "a\n" * 10_001), 2)) == 2
    assert read_questions(write(tmp_path, "a.csv", "id,prompt\n1,a lake\n")) == [Question("a lake")]
    with pytest.raises(PromptError, match="row 2: The record has 1 fields"):
        read_questions(write(tmp_path, "b.csv", "id,prompt\n1,a lake\n2\n"))
    with pytest.raises(PromptError, match="row 1: The prompt is empty"):
        read_questions(write(tmp_path, "c.csv", "id,prompt\n1,\n"))
