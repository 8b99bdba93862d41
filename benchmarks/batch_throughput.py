"""Pictures a second: `MrFlow` called in a loop, one prompt at a time, against the engine of `mrflow batch`.

    python benchmarks/batch_throughput.py                    # vista, three ways, five turns of 12 pictures

The ways: `loop`, a call and a saved file for each prompt; `one lane`, what the batch wins by encoding texts and
files beside the model; `lanes`, what `mrflow batch` does by itself on this machine. All make the same pictures
into empty folders, synced, in one process, in turn (A B C A B C), after one picture each to warm up; given are
the medians with the smallest and the largest. Leave OMP_NUM_THREADS unset: with one thread there is one lane.
The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mrflow import MrFlow, save_image
from mrflow.batch.output import Output
from mrflow.batch.run import run_batch
from mrflow.batch.tasks import read_request
from mrflow.bench.environment import describe_run
from mrflow.bench.timing import Spread
from mrflow.lanes import check_lanes
from mrflow.prompt_rows import Row

SIZE = {"width": 256, "height": 256}
Way = Callable[[MrFlow, Sequence[str], Path], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and then the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vista")
    parser.add_argument("--pictures", type=int, default=12, help="of each way and turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns")
    asked = parser.parse_args(arguments)
    report = measure(MrFlow.from_pretrained(asked.model), asked.pictures, asked.rounds)
    for name, way in report["ways"].items():
        shown = "{median:8.3f} [{low:.3f}, {high:.3f}]".format
        print(f"{name:9} {shown(**way['pictures_per_second'])} a second   x{shown(**way['speedup'])}")
    print(json.dumps(report))


def measure(fast: MrFlow, pictures: int, rounds: int) -> dict[str, Any]:
    """Return the report: environment, rates of each way, and whether all files were the same."""
    fast.pipe.set_progress_bar_config(disable=True)
    prompts = make_prompts(pictures)
    count = check_lanes(fast.model, None)
    ways: dict[str, Way] = {
        "loop": loop,
        "one lane": partial(batch, lanes=1),
        "lanes": partial(batch, lanes=count),
    }
    for way in ways.values():
        timed(way, fast, prompts[:1])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    files: list[dict[str, bytes]] = []
    for turn in range(rounds):
        for name, way in ways.items():
            print(f"turn {turn + 1} of {rounds}: {name}", file=sys.stderr)
            taken, made = timed(way, fast, prompts)
            seconds[name].append(taken)
            files.append(made)
    return {
        **describe_run(fast),
        "pictures": pictures,
        "lanes": count,
        "same_files": all(made == files[0] for made in files),
        "ways": {name: describe(taken, seconds["loop"], pictures) for name, taken in seconds.items()},
    }


def describe(taken: Sequence[float], baseline: Sequence[float], pictures: int) -> dict[str, Any]:
    """Return the rates, and the speed-up: of the medians, with the extremes of single turns."""
    ratios = [one / other for one, other in zip(baseline, taken, strict=True)]
    median = Spread.of(baseline).median / Spread.of(taken).median
    return {
        "pictures_per_second": Spread.of([pictures / each for each in taken]).to_dict(),
        "speedup": Spread(median, min(ratios), max(ratios)).to_dict(),
        "seconds": list(taken),
    }


def make_prompts(count: int) -> list[str]:
    """Return so many prompts from vista's world."""
    times, seasons = ("dawn", "noon", "sunset", "night"), ("summer", "autumn", "winter")
    return [f"a lake at {times[k % 4]} in {seasons[k % 3]} with mountains and pines" for k in range(count)]


def timed(way: Way, fast: MrFlow, prompts: Sequence[str]) -> tuple[float, dict[str, bytes]]:
    """Return the seconds that a way takes in an empty folder, and the pictures' files."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        way(fast, prompts, Path(folder))
        taken = time.perf_counter() - begin
        return taken, {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))}


def loop(fast: MrFlow, prompts: Sequence[str], folder: Path) -> None:
    """Make one picture after the other."""
    for number, prompt in enumerate(prompts):
        result = fast(prompt, seed=number, **SIZE)
        save_image(result.images[0], folder / f"{number}.png", result.recipes[0])


def batch(fast: MrFlow, prompts: Sequence[str], folder: Path, *, lanes: int) -> None:
    """Make them as a batch."""
    rows = (Row(k + 1, {"id": str(k), "prompt": prompt, "seed": k, **SIZE}) for k, prompt in enumerate(prompts))
    summary = run_batch(fast, read_request(rows), Output(folder), lanes=lanes)
    assert summary.made == len(prompts), summary


if __name__ == "__main__":
    main()
