"""Batches of tiny pictures: their rows, how they are run, and what they leave in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mrflow import MrFlow
from mrflow.batch.output import Output
from mrflow.batch.run import Summary, run_batch
from mrflow.batch.tasks import Request, read_request
from mrflow.prompt_rows import Row

TINY = {"width": 32, "height": 32, "plan": "1+1"}
ROWS = [
    {"id": "boat", "prompt": "a red boat", "seed": 7},
    {"id": "house", "prompt": "a blue house"},
    {"id": "lake", "prompt": "a lake", "num_images": 2, "width": 64},
]
IDS = ["boat", "house", "lake-1", "lake-2"]


def request(*rows: dict[str, Any]) -> Request:
    return read_request(Row(number, {**TINY, **row}) for number, row in enumerate(rows or ROWS, 1))


def run(model: MrFlow, out: Path | str, *rows: dict[str, Any], **options: Any) -> tuple[int, int, int]:
    summary = run_summary(model, out, *rows, **options)
    assert summary.left == 0
    return summary.made, summary.skipped, summary.failed


def run_summary(model: MrFlow, out: Path | str, *rows: dict[str, Any], **options: Any) -> Summary:
    place = {name: options.pop(name) for name in ("form", "state", "per_shard") if name in options}
    return run_batch(model, request(*rows), Output(out, **place), **options)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix not in (".jsonl", ".lock")}


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def errors(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]


def assert_complete(out: Path, whole: Path) -> None:
    """The pictures are those of an undisturbed run, bit for bit; nothing else is there, each has one line."""
    assert files(out) == files(whole)
    assert sorted(entry["id"] for entry in manifest(out)) == IDS
    assert {e["id"]: e["sha256"] for e in manifest(out)} == {e["id"]: e["sha256"] for e in manifest(whole)}
