"""What rows mean: one task per picture, checked, with an id that no other has and a seed that is always the same.

Checked twice: what needs no model when the rows are read, the rest (does the size fit, what guidance runs)
once one is loaded. A row that can't be made is a Failure; the others are unharmed.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from threading import Lock
from typing import TYPE_CHECKING, Any

from mrflow.errors import BatchError, MrFlowError, MrFlowWarning, PlanError, RequestError
from mrflow.jobs import Asked, Job, Reference, ask, check_size, read_loras
from mrflow.plan import DEFAULT_PLAN, Plan, get_plan, shown
from mrflow.prompt_rows import COLUMNS, Row

if TYPE_CHECKING:
    from mrflow.model import Model

MAX_ID_BYTES = 180  # a file name holds 255; the suffix and the temporary name need some
_ID = re.compile(r"\w[\w.-]*")
MAX_FAILURES_IN_A_ROW = 20  # so many different rows don't fail by chance: the machine is broken, not they
_SEEDS = 2**32  # short enough to type, as the seeds that are drawn elsewhere


@dataclass(frozen=True)
class RowDefaults:
    """What a row takes that does not say: None is the model's own. seed: changes all seeds that are made up.

    Raises RequestError for a number that no row could take.
    """

    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers as a row's own are checked."""
        ask(["any"], None, self.seed, self.num_images)


@dataclass(frozen=True)
class Wanted:
    """One picture as it is asked for; where it says no plan or size, the run's own stands."""

    id: str
    row: int
    asked: Asked


@dataclass(frozen=True)
class Task:
    """One picture to make: everything that shapes it is settled."""

    id: str
    row: int
    job: Job


@dataclass(frozen=True)
class Failure:
    """A picture, or a whole row, that can't be made. id: None where not even that is known."""

    row: int
    id: str | None
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as plain JSON values."""
        return {"row": self.row, "id": self.id, "error": self.error}


@dataclass
class Request:
    """What a file of prompts asks for. unused: columns that are none of ours, with the rows that have them."""

    wanted: list[Wanted] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)


def read_request(rows: Iterable[Row], defaults: RowDefaults | None = None, *, dots: bool = True) -> Request:
    """Return what the rows ask for, in their order, several pictures of one row side by side.

    A row without an id is named by its number, six digits or more; the pictures of a row with num_images are
    id-1, id-2, ... Of two pictures with one id the first counts, also where they differ only in capitals,
    which some disks do not tell apart. dots: whether an id may hold a dot (keys of WebDataset may not).
    """
    request = Request()
    taken: dict[str, int] = {}
    for row in rows:
        request.unused.update(name for name in row.values if name not in COLUMNS)
        try:
            if row.error is not None:
                raise RequestError(row.error)
            for wanted in _read_row(row, defaults or RowDefaults(), dots=dots):
                key = wanted.id.casefold()
                if (first := taken.get(key)) is not None:
                    text = f"The id {wanted.id!r} is taken by row {first}; each picture needs its own."
                    request.failures.append(Failure(row.number, wanted.id, text))
                else:
                    taken[key] = row.number
                    request.wanted.append(wanted)
        except Exception as error:  # whatever it is, the rows around it are unharmed
            request.failures.append(Failure(row.number, _plain_id(row), _reason(error)))
    return request


def resolve_wanted(
    model: Model, wanted: Iterable[Wanted], plan: Plan | None = None
) -> tuple[list[Task], list[Failure], Counter[str]]:
    """Return the tasks for this model, those that it can't make, and what it warns of with the number of rows.

    plan: of the rows without one; None is the model's own.
    """
    tasks: list[Task] = []
    failures: list[Failure] = []
    warned: Counter[str] = Counter()
    for one in wanted:
        asked = one.asked if one.asked.plan is not None else replace(one.asked, plan=plan)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                tasks += [Task(one.id, one.row, job) for job in model.resolve([asked])]
            except Exception as error:
                failures.append(Failure(one.row, one.id, _reason(error)))
        warned.update({str(each.message) for each in caught if issubclass(each.category, MrFlowWarning)})
    return tasks, failures, warned


class Streak:
    """Counts failures in a row, whichever threads they happen in."""

    def __init__(self) -> None:
        self._length = 0
        self._lock = Lock()

    def worked(self) -> None:
        """End the streak: a picture was made."""
        with self._lock:
            self._length = 0

    def failed(self, reason: str) -> None:
        """Count a failure; raises BatchError if it is one too many."""
        with self._lock:
            self._length += 1
            length = self._length
        if length >= MAX_FAILURES_IN_A_ROW:
            raise BatchError(
                f"{length} pictures in a row failed, the last with {reason} "
                "Something is wrong with the machine or the model; put it right and run the command again."
            )


def kind_of(task: Task) -> Hashable:
    """Return what pictures in one batch have in common."""
    return task.job.kind


def by_kind(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks grouped by kind, the kinds and those within in their order."""
    kinds: dict[Hashable, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(kind_of(task), []).append(task)
    return [task for group in kinds.values() for task in group]


def next_window(line: Sequence[Task], begin: int, most: int) -> Sequence[Task]:
    """Return the tasks of one kind, `most` at most, that stand at `begin` in a line."""
    end = begin
    while end < len(line) and end - begin < most and kind_of(line[end]) == kind_of(line[begin]):
        end += 1
    return line[begin:end]


def describe_error(error: Exception) -> str:
    """Return an error as errors.jsonl has it."""
    return " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, MrFlowError) else describe_error(error)


def make_seed(base: int, id: str) -> int:
    """Return the seed of a picture whose row has none: the same for the same base and id, wherever it is made."""
    digest = hashlib.sha256(f"mrflow batch {base} {id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SEEDS


def _read_row(row: Row, defaults: RowDefaults, *, dots: bool) -> list[Wanted]:
    values = row.values
    if "prompt" not in values:
        raise RequestError(f"The row has no prompt; it has {', '.join(map(repr, values)) or 'nothing'}.")
    count = _whole(values, "num_images", defaults.num_images)
    seed = _whole(values, "seed", None)
    negative = values.get("negative_prompt", defaults.negative_prompt)
    negatives = None if negative is None else [negative]
    width, height = (_whole(values, name, getattr(defaults, name)) for name in ("width", "height"))
    for side in (width, height):
        if side is not None:
            check_size(side, side, multiple=1)
    plan = _read_plan(values.get("plan"))
    # one call of the code that checks for everyone; seeds that are made up come below
    count = 1 if count is None else count
    some = 0 if seed is None else seed
    told: dict[str, Any] = {
        "plan": plan,
        "width": width,
        "height": height,
        "loras": read_loras(values.get("loras")),
        "references": _read_references(values.get("references")),
    }
    all_asked = ask([values["prompt"]], negatives, some, count, **told)
    ids = _make_ids(_check_id(_given_id(row), dots=dots), len(all_asked))
    if seed is None:
        all_asked = [
            replace(one, seed=make_seed(defaults.seed, id)) for id, one in zip(ids, all_asked, strict=True)
        ]
    return [Wanted(id, row.number, one) for id, one in zip(ids, all_asked, strict=True)]


def _make_ids(id: str, count: int) -> Sequence[str]:
    return [id] if count == 1 else [f"{id}-{k}" for k in range(1, count + 1)]


def _check_id(value: object, *, dots: bool) -> str:
    value = _exact(value)
    id = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not _ID.fullmatch(id) or len(id.encode()) > MAX_ID_BYTES:
        raise RequestError(
            f"The id is {shown(value)}; it must be letters, digits, '-', '_' and '.', beginning with a letter or "
            f"digit, and have at most {MAX_ID_BYTES} bytes."
        )
    if "." in id and not dots:
        raise RequestError(f"The id is {id!r}; WebDataset ends a key at the first dot. Leave the dots out.")
    return id


def _given_id(row: Row) -> object:
    return row.values.get("id", f"{row.number:06}")


def _plain_id(row: Row) -> str | None:
    id = None if row.error is not None else _given_id(row)
    return str(id)[:MAX_ID_BYTES] if isinstance(id, (str, int)) else None


def _read_plan(value: object) -> Plan | None:
    if isinstance(value, Mapping):  # in a Parquet struct all fields are there, and whole numbers may be floats
        given = {name: _exact(each) for name, each in value.items() if each is not None and each == each}
        return Plan.from_dict({**vars(DEFAULT_PLAN), **given}) if given or not value else None
    if value is not None and not isinstance(value, str):
        raise PlanError(f"plan is {shown(value)}; it must be a name such as '12+1', or an object with its fields.")
    return None if value is None else get_plan(value)


def _read_references(value: object) -> tuple[Reference, ...]:
    """Return the pictures of one path, or of a list of them, which are read again when their row is made."""
    if not value:
        return ()
    from mrflow.arguments import read_references

    paths = value if isinstance(value, list) else [value]
    return tuple(Reference(one.sha256, path) for one, path in zip(read_references(paths), paths, strict=True))


def _exact(value: Any) -> Any:
    """Return whole numbers as int where they were read as floats (a column with gaps), else the value itself."""
    exact = isinstance(value, (float, Decimal)) and -(2**53) < value < 2**53 and value == int(value)
    return int(value) if exact else value


def _whole(values: Mapping[str, Any], name: str, default: int | None) -> int | None:
    """Return a whole number, also where it was read as text (CSV) or as pandas writes it in a column with gaps."""
    value = _exact(values.get(name, default))
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,20}(\.0)?", value.strip(), flags=re.ASCII):
        whole = int(value.strip().removesuffix(".0"))
        value = whole if abs(whole) < 2**53 or not value.strip().endswith(".0") else value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RequestError(f"{name} is {shown(value)}; it must be a whole number.")
    return value
