"""How many workers of each stage keep each other busy, from what `mrflow bench` measured; and a batch on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from mrflow.batch.shards import PER_SHARD
from mrflow.errors import RequestError

DRAFT = ("text", "draft", "decode_draft")
FINISH = ("upscale", "encode", "refine", "decode", "rest")  # rest: tensors into images, hashes, recipes
BUSY = 0.95  # of the workers' time, at least, where the smallest balanced number of workers is looked for

# Assumptions of the calculation on paper, said where it is printed.
PER_COMMAND = 1_000_000  # rows; up to 3.5 GB of memory, see docs/scale.md
BYTES_PER_PIXEL = 1.3  # of a PNG file: 1.24 for vista's 256x256 pictures
LINE_BYTES = 800  # of the manifest, with a prompt of some 150 characters
READ_RATE = 500e6  # bytes a second that a resume hashes from one disk, with eight threads


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a picture costs, seconds of one worker. method, width, height, batch: as they were measured."""

    method: str
    width: int
    height: int
    batch: int
    draft: float
    finish: float

    @property
    def whole(self) -> float:
        """Seconds of both stages."""
        return self.draft + self.finish


@dataclass(frozen=True, kw_only=True)
class Split:
    """Workers of each stage, and what they make together. busy: the part of their time that is used."""

    draft_workers: int
    finish_workers: int
    pictures_per_second: float
    busy: float


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A batch of so many pictures, calculated. Bytes are estimates, see this module's assumptions."""

    pictures: int
    commands: int
    files_per_folder: int
    shards: int
    shard_bytes: int
    bytes: int
    manifest_bytes: int
    worker_hours: float
    days: float
    resume_hours: float
    put_requests: int
    get_requests: int


def read_costs(path: Path) -> list[Cost]:
    """Return the costs of all staged methods in a report of `mrflow bench`.

    Raises RequestError if the file is no such report or holds no staged method.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        costs = list(_costs(report))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise RequestError(f"{path} is no report of mrflow bench. Make one with --out.") from None
    if not costs:
        raise RequestError(f"{path} measured no staged method. Run: mrflow bench native 12+1 --out {path.name}")
    return costs


def split_workers(cost: Cost, workers: int) -> Split:
    """Return the fastest division of so many workers, at least two, among the stages."""
    if workers < 2:
        raise RequestError(f"workers is {workers}; two stages need at least 2. Try 2.")
    splits = [_split(cost, drafts, workers - drafts) for drafts in range(1, workers)]
    return max(splits, key=lambda split: split.pictures_per_second)


def balance_workers(cost: Cost) -> Split:
    """Return the smallest division that is busy for BUSY of its time.

    There always is one: twenty workers with one of them at the cheap stage lose a twentieth at most.
    """
    return next(each for workers in count(2) if (each := split_workers(cost, workers)).busy >= BUSY)


def calculate(cost: Cost, split: Split, pictures: int) -> Paper:
    """Return what so many pictures come to."""
    if not 1 <= pictures <= 10**12:
        raise RequestError(f"pictures is {pictures}; it must lie between 1 and 10**12. Try 1000000.")
    size = round(BYTES_PER_PIXEL * cost.width * cost.height)
    commands = math.ceil(pictures / PER_COMMAND)
    return Paper(
        pictures=pictures,
        commands=commands,
        files_per_folder=min(pictures, PER_COMMAND),
        shards=math.ceil(pictures / PER_SHARD),
        shard_bytes=size * min(pictures, PER_SHARD),
        bytes=size * pictures,
        manifest_bytes=LINE_BYTES * pictures,
        worker_hours=pictures * cost.whole / 3600,
        days=pictures / split.pictures_per_second / 86400,
        resume_hours=size * pictures / READ_RATE / 3600,
        put_requests=pictures + commands,  # a picture each, and each command's manifest
        get_requests=pictures,
    )


def _costs(report: dict[str, Any]) -> Iterator[Cost]:
    for group in report["groups"]:
        for method in group["methods"]:
            if method["kind"] == "staged" and "seconds" in method:
                seconds = {name: float(spread["median"]) for name, spread in method["seconds"].items()}
                costs = [sum(seconds[name] for name in names) / group["batch"] for names in (DRAFT, FINISH)]
                if not all(0 < cost < math.inf for cost in costs):
                    raise ValueError(costs)
                place = {name: int(group[name]) for name in ("width", "height", "batch")}
                yield Cost(method=str(method["name"]), draft=costs[0], finish=costs[1], **place)


def _split(cost: Cost, drafts: int, finishes: int) -> Split:
    rate = min(drafts / cost.draft, finishes / cost.finish)
    busy = rate * cost.whole / (drafts + finishes)
    return Split(draft_workers=drafts, finish_workers=finishes, pictures_per_second=rate, busy=busy)
