"""Journals: whole lines only, whatever was torn, and as before after an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mrflow.errors import OutputError
from mrflow.journal import Journal


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    assert journal.read() == ([], True)
    journal.append({"a": 1})
    journal.append({"b": "é\n"}, {"c": None})
    assert Journal(journal.path).read() == ([{"a": 1}, {"b": "é\n"}, {"c": None}], True)


def test_a_torn_line_is_left_out_and_rewriting_cuts_it_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.path.write_bytes(b'{"a": 1}\n\xff\n{"b": 2')
    lines, whole = journal.read()
    assert (lines, whole) == ([{"a": 1}, None], False)
    journal.rewrite(line for line in lines if line)
    journal.append({"c": 3})
    assert journal.read() == ([{"a": 1}, {"c": 3}], True)


def test_a_line_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.append({"a": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match=r"a\.jsonl cannot be written: No space left"):
        journal.append({"b": 2})
    monkeypatch.undo()
    assert journal.read() == ([{"a": 1}], True)
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "none" / "a.jsonl").append({})
    with pytest.raises(OutputError, match="cannot be read"):
        Journal(tmp_path).read()
