"""The ledger: whole lines only, whatever was torn; nothing lost that was appended."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mrflow.batch.manifest import Entry, read_entries
from mrflow.errors import OutputError
from mrflow.journal import Journal
from support.pictures import make_recipe


def make_entry(id: str) -> Entry:
    return Entry.of(id, f"{id}.png", "0" * 64, 10, make_recipe(), {"draft": 0.123456})


def write(path: Path, *ids: str) -> bytes:
    ledger = Journal(path)
    ledger.rewrite([])
    for id in ids:
        ledger.append(asdict(make_entry(id)))
    return path.read_bytes()


def test_round_trip(tmp_path):
    write(tmp_path / "m.jsonl", "a", "b")
    assert read_entries(Journal(tmp_path / "m.jsonl")) == ([make_entry("a"), make_entry("b")], True)
    assert make_entry("a").seconds == {"draft": 0.1235}


def test_no_file_is_an_empty_ledger(tmp_path):
    assert read_entries(Journal(tmp_path / "m.jsonl")) == ([], True)


def test_a_line_torn_anywhere_is_cut_off(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = write(path, "a", "b")
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        entries, clean = read_entries(Journal(path))
        assert [each.id for each in entries] == ["a"]
        assert clean is (end == first)


@pytest.mark.parametrize("line", [b"\0" * 40, b"{}", b"[]", b"\xff", b'{"id": 3}', b"", b"[" * 100_000])
def test_a_broken_line_in_the_middle_costs_that_line_only(tmp_path, line):
    path = tmp_path / "m.jsonl"
    whole = write(path, "a", "b")
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + line + b"\n" + whole[first:])
    entries, clean = read_entries(Journal(path))
    assert ([each.id for each in entries], clean) == (["a", "b"], False)


def test_the_last_line_of_an_id_counts(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(write(path, "a") + write(path, "b", "a"))
    entries, clean = read_entries(Journal(path))
    assert (sorted(each.id for each in entries), clean) == (["a", "b"], False)


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    before = write(path, "a")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ledger = Journal(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        ledger.append(asdict(make_entry("b")))
    monkeypatch.undo()
    assert path.read_bytes() == before
    ledger.append(asdict(make_entry("c")))
    assert [each.id for each in read_entries(Journal(path))[0]] == ["a", "c"]


def test_differences(tmp_path):
    entry = make_entry("a")
    assert entry.differences(make_recipe()) == {}
    assert entry.differences(replace(make_recipe(), seed=99)) == {"seed": (entry.seed, 99)}


def test_a_manifest_with_a_local_models_path_is_continued():
    recipe = replace(make_recipe(), model="tiny", revision="0123456789ab")
    for old, same in (("/home/somebody/tiny", True), ("models/tiny", True), ("/home/somebody/other", False)):
        entry = Entry.of("a", "a.png", "0" * 64, 1, replace(recipe, model=old, revision=None))
        assert (entry.differences(recipe) == {}) is same
