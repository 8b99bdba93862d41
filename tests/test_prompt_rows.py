"""Rows from every kind of file; a line that can't be read costs that line only."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mrflow.errors import MrFlowError, PromptError, RequestError
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
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "x\n{"prompt": "b"}\n', "Unterminated string at character 12."),
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


LAKES = [(1, {"prompt": "a lake"}), (2, {"prompt": "a beach é"})]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-with-mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["txt", "csv", "jsonl"])
def test_encodings_that_say_so_and_every_end_of_line(tmp_path, encoding, end, form):
    lines = [f'{{"prompt": "{row["prompt"]}"}}' if form == "jsonl" else row["prompt"] for _, row in LAKES]
    text = end.join([*(["prompt"] if form == "csv" else []), *lines, ""])
    data = b"\xfe\xff" + text.encode("utf-16-be") if encoding.endswith("mark") else text.encode(encoding)
    assert values_of(rows_of(tmp_path / f"p.{form}", data)) == LAKES


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["prompt\na lake\n", "湖畔\n湖\n", "不\n不不\n", "不不不湖\n" * 9])
@pytest.mark.parametrize("form", ["txt", "csv", "jsonl"])
def test_encodings_that_do_not_say_so_give_no_prompt(tmp_path, encoding, text, form):
    with suppress(MrFlowError):
        rows = rows_of(tmp_path / f"p.{form}", text.encode(encoding))
        assert rows
        assert all(row.error for row in rows)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_nuls_that_a_power_cut_leaves_cost_the_last_line(tmp_path, end):
    rows = rows_of(tmp_path / "p.txt", end.join([b"a lake", b"a sea", b"\0" * 99]))
    assert [(row.values.get("prompt"), bool(row.error)) for row in rows] == [
        ("a lake", False),
        ("a sea", False),
        (None, True),
    ]


def test_utf_16_that_is_cut_short_costs_the_last_line(tmp_path):
    rows = rows_of(tmp_path / "p.txt", "a lake\na sea\n".encode("utf-16")[:-3])
    assert [(row.values.get("prompt"), bool(row.error)) for row in rows] == [("a lake", False), (None, True)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'"a caf\xe9\nby the creek",1', "no UTF-8"),
        (b'"a cafe\nby the cr\xe9ek",1', "no UTF-8"),
        (b'"a cafe\nth\xe9\r\ncr\xe9ek\nend",1', "no UTF-8"),
        (b'"a "cafe" bar\nby\nthe creek",1', "lines 2 to 4"),
        (b'"a cafe\n' + b"x" * (MAX_LINE + 5) + b'",1', "more than"),
        (b'"a cafe\n' + b'""x' * (MAX_LINE // 2) + b'\nend",1', "more than"),
        (b'a 5" nail,1', "write it twice"),
        (b"a\0b,1", "character 2"),
        (b'"' + b"x" * 200_000 + b'",1', "field limit"),
    ],
)
def test_no_part_of_a_bad_cell_becomes_a_prompt(tmp_path, bad, words):
    rows = rows_of(tmp_path / "p.csv", b"prompt,seed\n" + bad + b"\na lake,2\na sea,3\n")
    assert [row.number for row in rows] == [1, 2, 3]
    assert words in (rows[0].error or "")
    assert [row.values.get("prompt") for row in rows[1:]] == ["a lake", "a sea"]


def test_a_cell_that_never_ends_takes_its_lines_along_and_says_which(tmp_path):
    rows = rows_of(tmp_path / "p.csv", b'prompt,seed\na lake,1\n"a sea,2\na hill,3\n')
    assert [row.values.get("prompt") for row in rows] == ["a lake", None]
    assert "lines 3 to 4" in (rows[1].error or "")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"prompt,gr\xf6\xdfe", "no UTF-8"),
        (b"prompt,seed,prompt", "a column twice"),
        (b'"prompt,seed', "lines 1 to 2"),
        (b"prompt;seed", "one must be prompt"),
    ],
)
def test_heads_that_cannot_be_trusted_are_refused(tmp_path, head, words):
    with pytest.raises(RequestError, match=words):
        rows_of(tmp_path / "p.csv", head + b"\na lake,7\n")


def test_a_blank_name_in_the_head_is_a_column_like_others(tmp_path):
    content = b"\xef\xbb\xbf,prompt,\n0,a lake,\n"  # pandas puts the index there, without a name
    assert values_of(rows_of(tmp_path / "p.csv", content)) == [(1, {"column 1": "0", "prompt": "a lake"})]


def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path):
    rows = rows_of(tmp_path / "p.jsonl", b'{"prompt": "a lake", "prompt": "a sea"}\n{"prompt": "a hill"}\n')
    assert "twice" in (rows[0].error or "")
    assert rows[1].error is None


def test_parquet_that_is_damaged_or_has_a_bad_cell(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    cells = pyarrow.array([b"a lake", b"caf\xe9"]).view(pyarrow.string())
    far = pyarrow.array([2**50, 2**50]).cast(pyarrow.timestamp("s"))  # no date of Python's
    parquet.write_table(pyarrow.table({"prompt": cells, "when": far}), path)
    good, bad = read_rows(path)
    assert (good.values["prompt"], "cannot be read" in (bad.error or "")) == ("a lake", True)

    parquet.write_table(pyarrow.table({"prompt": ["a lake"] * 9000}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(RequestError, match=r"damaged|no Parquet"):
        list(read_rows(path))


def test_a_closed_standard_input_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RequestError, match="is closed"):
        read_rows("-")


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
    (tmp_path / "nul.txt").write_bytes("a lake".encode("utf-16-le"))
    with pytest.raises(PromptError, match="NUL"):
        read_text(tmp_path / "nul.txt")
    (tmp_path / "wide.txt").write_bytes("a lake\n".encode("utf-16"))
    assert read_text(tmp_path / "wide.txt") == "a lake\n"
