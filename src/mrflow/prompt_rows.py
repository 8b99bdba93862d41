"""Prompt files, read with suspicion: as rows for whoever goes on after a bad one, or whole for whoever may not.

`read_rows` takes JSON lines, text, CSV, Parquet or standard input, of any length, one row at a time. A row is what
the file says, not yet what it means (that is `mrflow.batch.tasks`). A line that can't be read is a row too, with
the reason, so that those around it are not lost.

`read_text` and `read_lines` take text files that are small and right: a prompt that were passed over would make
a benchmark's figures wrong.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mrflow.errors import MissingExtraError, MrFlowError, PromptError, RequestError
from mrflow.jobs import check_prompts

COLUMNS = ("prompt", "negative_prompt", "seed", "width", "height", "plan", "id", "num_images")
FORMATS = ("jsonl", "txt", "csv", "parquet")
STDIN = "-"
MAX_LINE = 2**20  # bytes; a prompt has at most 10,000 characters
MAX_BYTES = 16 * 2**20  # of a file that is read whole; the largest of the benchmarks' has less than 2 MB

_SUFFIXES = {".ndjson": "jsonl", ".text": "txt", ".pq": "parquet", **{f".{name}": name for name in FORMATS}}


@dataclass(frozen=True)
class Row:
    """One row as it was read.

    number: its line in text and JSON lines, else its place; from 1. values: column to value, without the
    columns that are empty. error: why it can't be read; values are empty then.
    """

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(source: str | Path, form: str | None = None) -> Iterator[Row]:
    """Return the rows of a file, or of standard input for "-". Blank lines are passed over.

    form: one of FORMATS; None goes by the file's suffix. Standard input is taken as JSON lines where a line
    begins with a brace, else as text.
    Raises RequestError if the file is missing or its format unknown, MissingExtraError for Parquet without
    pyarrow; both before the first row.
    """
    form = _check_form(str(source), form)
    if str(source) == STDIN:
        return _read_lines(sys.stdin.buffer, form)
    path = Path(source)
    if not os.path.isfile(path):
        what = "is no regular file" if os.path.exists(path) else "does not exist"
        raise RequestError(f"{path} {what}. Give a file of prompts ({', '.join(FORMATS)}), or - for stdin.")
    return _read_parquet(path) if form == "parquet" else _read_file(path, form)


def _check_form(source: str, form: str | None) -> str | None:
    if form is not None and form not in FORMATS:
        raise RequestError(f"The format is {form!r:.80}; it must be one of {', '.join(FORMATS)}.")
    if source == STDIN:
        if form == "parquet":
            raise RequestError("Parquet can't be read from standard input, only from a file.")
        return form
    form = form or _SUFFIXES.get(Path(source).suffix.lower())
    if form is None:
        raise RequestError(f"{source} has no known suffix. Say what it is: {', '.join(FORMATS)}.")
    return form


def _read_file(path: Path, form: str | None) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            yield from _read_lines(file, form)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from error


def _read_lines(file: IO[bytes], form: str | None) -> Iterator[Row]:
    lines = _lines(file)
    if form == "csv":
        yield from _read_csv(lines)
        return
    for number, line in lines:
        if isinstance(line, Row):
            yield line
        elif line.strip():
            as_json = form == "jsonl" or (form is None and line.lstrip().startswith("{"))
            yield _parse_json(number, line) if as_json else Row(number, {"prompt": line.strip()})


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str | Row]]:
    """Yield (number, line), or a row with the reason for a line that is too long or no UTF-8."""
    number = 0
    while data := file.readline(MAX_LINE):
        number += 1
        if len(data) == MAX_LINE and not data.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, Row(number, error=f"The line has more than {MAX_LINE} bytes.")
            continue
        try:
            yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, Row(number, error=f"The line is no UTF-8 text (byte {error.start}).")


def _parse_json(number: int, line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(number, error=f"The line is not valid JSON: {error}.")
    if not isinstance(values, dict):
        return Row(number, error=f"The line is a JSON {type(values).__name__}; it must be an object.")
    return Row(number, _filled(values))


def _read_csv(lines: Iterator[tuple[int, str | Row]]) -> Iterator[Row]:
    """Yield the records under a header line; a record that can't be read takes its number, too."""
    broken: list[str] = []

    def texts() -> Iterator[str]:
        for _, line in lines:
            if isinstance(line, Row):
                broken.append(line.error or "")
                yield "\n"  # the csv reader passes over blank lines
            else:
                yield line

    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            record = next(reader, None)
            reason = broken.pop() if broken else None
        except csv.Error as error:
            record, reason = [], f"The record is not valid CSV: {error}."
        if record is None:
            return
        if header is None and reason is None and record:
            header = [name.strip() for name in record]
            _check_header(header)
        elif reason is not None or record:
            number += 1
            yield _csv_row(number, header or [], record, reason)


def _check_header(header: list[str]) -> None:
    if "prompt" not in header:
        shown = ", ".join(header)[:200]
        raise RequestError(f"The CSV's first line is {shown!r}; it must name the columns, and one must be prompt.")


def _csv_row(number: int, header: list[str], record: list[str], reason: str | None) -> Row:
    if reason is None and len(record) != len(header):
        reason = f"The record has {len(record)} fields; the header has {len(header)}."
    if reason is not None:
        return Row(number, error=reason)
    return Row(number, _filled({k: v.strip() for k, v in zip(header, record, strict=True)}))


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "batch") from None
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"{path} is no Parquet file that can be read: {error}.") from error
    if "prompt" not in file.schema_arrow.names:
        file.close()
        raise RequestError(f"{path} has the columns {', '.join(file.schema_arrow.names)}; one must be prompt.")
    return _records(file)


def _records(file: Any) -> Iterator[Row]:
    with file:
        batches: Iterable[Any] = file.iter_batches(batch_size=1024)
        number = 0
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield Row(number, _filled(values))


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are there: no None, no empty text, no nan (pandas writes it for a missing number)."""
    return {k: v for k, v in values.items() if v is not None and v != "" and v == v}


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark; line ends become newlines.

    Raises PromptError if it is missing, too large or no UTF-8 text.
    """
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        raise PromptError(f"There is no prompt file {path}. Give a file of your copy of the benchmark.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PromptError(f"{path} has more than {MAX_BYTES} bytes; a prompt file is smaller.")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is no UTF-8 text: byte {error.start} does not fit.") from None
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Return the lines of such a file, each with where it stands, for messages; at least one."""
    lines = read_text(path).rstrip("\n").split("\n")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def read_object(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a line, its "prompt" checked; raises PromptError."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise PromptError(f'{where} is no JSON. Give objects such as {{"prompt": "a lake"}}.') from None
    if not isinstance(values, dict) or "prompt" not in values:
        raise PromptError(
            f'{where} has no "prompt"; it must be an object where that must be text, as {{"prompt": "a lake"}}.'
        )
    check_prompt(values["prompt"], where)
    return values


def check_prompt(prompt: object, where: str) -> str:
    """Return the prompt; raises PromptError, which says where it stands."""
    try:
        return check_prompts([prompt])[0]  # type: ignore[list-item]
    except MrFlowError as error:
        raise PromptError(f"{where}: {error}") from None
