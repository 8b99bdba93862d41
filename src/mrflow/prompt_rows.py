"""Prompt files, read with suspicion: as rows for whoever goes on after a bad one, or whole for whoever may not.

`read_rows` takes JSON lines, text, CSV, Parquet or standard input, of any length, one row at a time. A row is what
the file says, not yet what it means (that is `mrflow.batch.tasks`). A line that can't be read is a row too, with
the reason, so that those around it are not lost.

`read_text` and `read_lines` take text files that are small and right: a prompt that were passed over would make
a benchmark's figures wrong.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mrflow.errors import MissingExtraError, MrFlowError, PromptError, RequestError
from mrflow.jobs import check_prompts

COLUMNS = (
    *("prompt", "negative_prompt", "seed", "width", "height"),
    *("plan", "loras", "references", "id", "num_images"),
)
FORMATS = ("jsonl", "txt", "csv", "parquet")
STDIN = "-"
MAX_LINE = 2**20  # characters; a prompt has at most 10,000 characters
MAX_BYTES = 16 * 2**20  # of a file that is read whole; the largest of the benchmarks' has less than 2 MB

_SUFFIXES = {".ndjson": "jsonl", ".text": "txt", ".pq": "parquet", **{f".{name}": name for name in FORMATS}}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

_Line = tuple[int, str, str | None]


@dataclass(frozen=True)
class Row:
    """One row as it was read.

    number: its line in text and JSON lines, else its place; from 1. values: column to value, without the
    columns that are empty. error: why it can't be read; values are empty then.
    """

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_rows(source: str | Path, form: str | None = None, column: str = "prompt") -> Iterator[Row]:
    """Return the rows of a file, or of standard input for "-". Blank lines are passed over.

    form: one of FORMATS; None goes by the file's suffix. Standard input is taken as JSON lines where a line
    begins with a brace, else as text. Text is UTF-8, or UTF-16 where a byte order mark says so; CR, LF and both
    together end a line. column: one that a table must have.
    Raises RequestError if the file is missing or its format unknown, MissingExtraError for Parquet without
    pyarrow, both before the first row; RequestError for a table whose head, or whose data, is broken.
    """
    form = _check_form(str(source), form)
    path = Path(source)
    if str(source) != STDIN and not os.path.isfile(path):
        what = "is no regular file" if os.path.exists(path) else "does not exist"
        raise RequestError(f"{path} {what}. Give a file of prompts ({', '.join(FORMATS)}), or - for stdin.")
    if str(source) == STDIN and sys.stdin is None:
        raise RequestError("Standard input is closed. Give a file of prompts, or pipe some in.")
    return _read_parquet(path, column) if form == "parquet" else _read_file(path, form, column)


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


def _read_file(path: Path, form: str | None, column: str) -> Iterator[Row]:
    try:
        lines = _lines(path)
        yield from _read_csv(lines, column) if form == "csv" else _read_lines(lines, form)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from error


def _read_lines(lines: Iterable[_Line], form: str | None) -> Iterator[Row]:
    for number, line, error in lines:
        if error is not None:
            yield Row(number, error=error)
        elif line.strip():
            as_json = form == "jsonl" or (form is None and line.lstrip().startswith("{"))
            yield _parse_json(number, line) if as_json else Row(number, {"prompt": line.strip()})


def _lines(path: Path) -> Iterator[_Line]:
    """Yield (number, line, why it can't be used or None). Of a line that is too long its open quote remains."""
    raw: Any = sys.stdin.buffer if str(path) == STDIN else path.open("rb")
    with io.BufferedReader(raw) as buffer:
        encoding = _encoding(buffer.peek())
        wrong = "surrogatepass" if encoding == "utf-16" else "surrogateescape"  # what is no text stays visible
        with io.TextIOWrapper(buffer, encoding, wrong, newline="") as text:
            number = 0
            try:
                while line := text.readline(MAX_LINE):
                    number += 1
                    yield number, *_checked(line, text)
            except UnicodeError:  # UTF-16 that ends within a character
                yield number + 1, "", "The line is cut short."


def _checked(line: str, text: IO[str]) -> tuple[str, str | None]:
    if len(line) == MAX_LINE and line[-1] not in "\r\n":
        quotes = line.count('"')
        while (rest := text.readline(MAX_LINE)) and rest[-1] not in "\r\n":
            quotes += rest.count('"')
        return '"' * ((quotes + rest.count('"')) % 2), f"The line has more than {MAX_LINE} characters."
    wrong = _NO_TEXT.search(line)
    return line, wrong and f"The line is no UTF-8 text: character {wrong.start() + 1} is none."


def _encoding(head: bytes) -> str:
    """Return how a text that begins so is encoded; raises PromptError for UTF-16 that does not say so."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = re.sub(rb"\0{3,}$", b"", head)  # what a power cut leaves, and no UTF-16 ends so
    if re.search(rb"\0[\r\n]|[\r\n]\0", head):
        raise PromptError("The file seems to be UTF-16 without a byte order mark. Save it as UTF-8.")
    return "utf-8-sig"


def _parse_json(number: int, line: str) -> Row:
    try:
        values = _load_json(line.strip())
    except (ValueError, RecursionError) as error:
        why: object = error
        if isinstance(error, json.JSONDecodeError):
            why = f"{error.msg.removesuffix(' starting at')} at character {error.pos + 1}"
        return Row(number, error=f"The line is not valid JSON: {why}.")
    if not isinstance(values, dict):
        return Row(number, error=f"The line is a JSON {type(values).__name__}; it must be an object.")
    return Row(number, _filled(values))


def _load_json(line: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) < len(pairs):
            raise ValueError("an object has one name twice")
        return values

    return json.loads(line, object_pairs_hook=once)


def _read_csv(lines: Iterable[_Line], column: str) -> Iterator[Row]:
    """Yield the records under a header line; a record that can't be read takes its number, too.

    After a cell that is wrongly quoted the next record begins where no quote is open: what may be the rest of the
    cell is never taken for a prompt.
    """
    taken: list[_Line] = []  # of the record in hand

    def texts() -> Iterator[str]:
        for each in lines:
            taken.append(each)
            yield each[1]

    def open_quote() -> bool:
        return sum(line.count('"') for _, line, _ in taken) % 2 == 1

    source = texts()
    reader = csv.reader(source, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        taken.clear()
        reason = None
        try:
            record = next(reader, None)
            if record is not None and open_quote():
                reason = 'A cell holds a single "; write it twice and the whole cell in quotes.'
        except csv.Error as error:
            record = []
            while open_quote() and next(source, None) is not None:
                pass
            place = f"lines {taken[0][0]} to {taken[-1][0]}: {error}"
            reason = f"The record is not valid CSV, {place}."
        if record is None:
            return
        reason = next((error for _, _, error in taken if error), reason)
        if header is None and (record or reason):
            if reason:
                raise RequestError(f"The CSV's first line must name the columns. {reason} Save it as UTF-8.")
            header = _check_header("The CSV's first line", record, column)
        elif record or reason:
            number += 1
            yield _csv_row(number, header or [], record, reason)


def _check_header(what: str, names: Sequence[str], column: str) -> list[str]:
    """Return the names of the columns, blank ones numbered; raises RequestError."""
    header = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    shown = repr(", ".join(header)[:200])
    if column not in header:
        raise RequestError(f"{what} is {shown}; it must name the columns, and one must be {column}.")
    if len(set(header)) < len(header):
        raise RequestError(f"{what} is {shown}; it names a column twice. Leave one out.")
    return header


def _csv_row(number: int, header: list[str], record: list[str], reason: str | None) -> Row:
    if reason is None and len(record) != len(header):
        reason = f"The record has {len(record)} fields; the header has {len(header)}."
    if reason is not None:
        return Row(number, error=reason)
    return Row(number, _filled({k: v.strip() for k, v in zip(header, record, strict=True)}))


def _read_parquet(path: Path, column: str) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "batch") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"{path} is no Parquet file that can be read: {_on_one_line(error)}.") from error
    _check_header(f"The list of columns of {path}", names, column)
    return _records(parquet.ParquetFile(path), path)


def _records(file: Any, path: Path) -> Iterator[Row]:
    number = 0
    with file:
        try:
            for batch in file.iter_batches(batch_size=1024):
                for index in range(batch.num_rows):
                    number += 1
                    yield _record(batch, index, number)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise RequestError(f"{path} is damaged behind row {number}: {_on_one_line(error)}.") from error


def _record(batch: Any, index: int, number: int) -> Row:
    """Return one row; of columns that are none of ours only whether they hold something."""
    cells = {name: cells[index] for name, cells in zip(batch.schema.names, batch.columns, strict=True)}
    try:
        values = {k: v.as_py() if k in COLUMNS else v.is_valid or None for k, v in cells.items()}
        return Row(number, _filled(values))
    except Exception as error:  # a text that is no UTF-8, a number that is too large for Python's kinds
        return Row(number, error=f"The row cannot be read: {_on_one_line(error)}.")


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are there: no None, no empty text, no nan (pandas writes it for a missing number)."""
    return {k: v for k, v in values.items() if v is not None and v != "" and v == v}


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, or UTF-16 that says so, without its mark; line ends become newlines.

    Raises PromptError if it is missing, too large or no UTF-8 text.
    """
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        raise PromptError(f"There is no prompt file {path}. Give a file of your copy of the benchmark.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PromptError(f"{path} has more than {MAX_BYTES} bytes; a prompt file is smaller.")
        text = data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is no UTF-8 text: byte {error.start} does not fit.") from None
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}.") from error
    if "\0" in text:
        raise PromptError(f"{path} holds NUL characters, so it is no text. Save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Return the lines of such a file, each with where it stands, for messages; at least one."""
    lines = read_text(path).rstrip("\n").split("\n")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def read_table(path: Path, column: str = "prompt") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a CSV or Parquet file, each with where it stands; raises PromptError for a wrong one."""
    try:
        rows = list(read_rows(path, column=column))
    except RequestError as error:
        raise PromptError(str(error)) from None
    for row in rows:
        where = f"{path}, row {row.number}"
        if row.error is not None:
            raise PromptError(f"{where}: {row.error}")
        yield where, row.values


def read_object(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a line, its "prompt" checked; raises PromptError."""
    try:
        values = _load_json(line)
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
