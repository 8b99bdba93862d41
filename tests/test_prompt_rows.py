"""Rows from every kind of file; a line that can't be read costs that line only."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from mrflow.errors import PromptError, RequestError
from mrflow.prompt_rows import MAX_BYTES, MAX_LINE, Row, read_rows, read_text


def rows_of(path: Path, content: str | bytes, form: str | None = None) -> list[Row]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(path, form))


def values_of(rows: list[Row]) -> list[tuple[int, dict[str, Any]]]:
    assert all(row.error is None for row in rows)
    return [(row.number, dict(row.values)) for row in rows]


def test_json_lines_are_numbered_by_line(tmp_path):
    content = '{"prompt": "a lake", "seed": 7, "plan": {"steps": 4}}\n\n{"prompt": "a house", "id": null}\n'
    assert values_of(rows_of(tmp_path / "p.jsonl", content)) == [
        (1, {"prompt": "a lake", "seed": 7, "plan": {"steps": 4}}),
        (3, {"prompt": "a house"}),
    ]


def test_text_with_a_byte_order_mark_and_windows_line_ends(tmp_path):
    content = b"\xef\xbb\xbfa lake\r\n \r\na house, big"
    assert values_of(rows_of(tmp_path / "p.txt", content)) == [
        (1, {"prompt": "a lake"}),
        (3, {"prompt": "a house, big"}),
    ]


def test_csv_has_named_columns_quotes_and_empty_fields(tmp_path):
    content = 'id,prompt,seed\na,"a lake, at dusk",7\n\nb,"two\nlines",\n'
    assert values_of(rows_of(tmp_path / "p.csv", content)) == [
        (1, {"id": "a", "prompt": "a lake, at dusk", "seed": "7"}),
        (2, {"id": "b", "prompt": "two\nlines"}),
    ]


def test_parquet_leaves_out_what_is_missing(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a lake", "a house"], "seed": [7.0, float("nan")], "id": [None, "b"]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert values_of(list(read_rows(tmp_path / "p.parquet"))) == [
        (1, {"prompt": "a lake", "seed": 7.0}),
        (2, {"prompt": "a house", "id": "b"}),
    ]


def test_standard_input_is_lines_of_json_or_text(monkeypatch):
    data = b'a lake\n{"prompt": "a house", "seed": 1}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert values_of(list(read_rows("-"))) == [(1, {"prompt": "a lake"}), (2, {"prompt": "a house", "seed": 1})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt":\n{"prompt": "b"}\n', "not valid JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n[1]\n{"prompt": "b"}\n', "JSON list"),
        ("p.jsonl", b'{"prompt": "a"}\n' + b"[" * 100_000 + b'\n{"prompt": "b"}\n', "not valid JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n"\xff"\n{"prompt": "b"}\n', "no UTF-8"),
        ("p.txt", b"a\n" + b"x" * (2 * MAX_LINE) + b"\nb\n", "more than"),
        ("p.csv", b"prompt,seed\na,1\nx\nb,2\n", "1 fields; the header has 2"),
        ("p.csv", b"prompt\na\n\xff\nb\n", "no UTF-8"),
        ("p.csv", b'prompt\na\n"x"y\nb\n', "not valid CSV"),
    ],
)
def test_a_bad_line_in_the_middle_costs_that_line_only(tmp_path, name, content, words):
    rows = rows_of(tmp_path / name, content)
    assert [row.number for row in rows] == [1, 2, 3]
    assert [row.values.get("prompt") for row in rows] == ["a", None, "b"]
    assert words in (rows[1].error or "")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.jsonl", None, "does not exist"),
        ("prompts.doc", b"", "no known suffix"),
        ("p.csv", b"text,seed\na,1\n", "one must be prompt"),
        ("p.parquet", b"no parquet", "no Parquet file"),
    ],
)
def test_files_that_make_no_sense(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=words):
        list(read_rows(tmp_path / name))


def test_the_format_can_be_said(tmp_path):
    assert values_of(rows_of(tmp_path / "prompts", "a lake\n", "txt")) == [(1, {"prompt": "a lake"})]
    with pytest.raises(RequestError, match="xml"):
        read_rows(tmp_path / "prompts", "xml")
    with pytest.raises(RequestError, match="standard input"):
        read_rows("-", "parquet")


def test_prompt_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptError, match="There is no prompt file"):
        read_text(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(PromptError, match="byte 3"):
        read_text(tmp_path / "latin.txt")
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(PromptError, match="more than"):
        read_text(tmp_path / "large.txt")
