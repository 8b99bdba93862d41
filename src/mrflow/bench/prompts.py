"""The prompts that methods are compared on: vista's own, or a file's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrflow.errors import PromptError
from mrflow.prompt_rows import check_prompt, read_lines, read_object, read_table

VISTA = Path(__file__).parents[1] / "vista" / "prompts.jsonl"
"""Captions of 256 scenes that nothing is trained on, with labels; made by `python -m training.heldout`."""
VISTA_TUNING = VISTA.with_name("tuning.jsonl")
"""64 others, to choose a plan by that is then judged on the former."""
MAX_PROMPTS = 10_000


@dataclass(frozen=True)
class Question:
    """A prompt. labels: what its picture must show, by the words of vista's grammar; None if nobody says."""

    prompt: str
    labels: Mapping[str, str] | None = None


def read_questions(path: Path | None, limit: int | None = None) -> list[Question]:
    """Return the prompts of a file, the first `limit` of them; path None: vista's own.

    A .jsonl file has an object a line, with "prompt" and perhaps "labels", a .csv or .parquet file a column
    "prompt"; any other file has a prompt a line.
    Raises PromptError for a file or a line that is not as it must be.
    """
    path = VISTA if path is None else path
    rows: list[tuple[str, Any]]
    if path.suffix.lower() in (".csv", ".parquet"):
        rows = [(where, row.get("prompt", "")) for where, row in read_table(path)]
    else:
        rows = [(where, line.strip()) for where, line in read_lines(path) if line.strip()]
    if not rows:
        raise PromptError(f"{path} holds no prompts. Give one a line.")
    if len(rows[:limit]) > MAX_PROMPTS:
        text = f"{path} holds {len(rows)} prompts; at most {MAX_PROMPTS} are compared"
        raise PromptError(f"{text}. Set limit (--limit).")
    if path.suffix.lower() == ".jsonl":
        return [_read_object(line, where) for where, line in rows[:limit]]
    return [Question(check_prompt(prompt, where)) for where, prompt in rows[:limit]]


def _read_object(line: str, where: str) -> Question:
    from mrflow.metrics.attributes import asked

    row = read_object(line, where)
    labels = row.get("labels")
    if labels is not None:
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise PromptError(f'{where} has labels that are no object of texts, such as {{"time": "noon"}}.')
        try:
            asked("", labels)
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
    return Question(row["prompt"], labels)
