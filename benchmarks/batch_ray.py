"""What Ray adds to a picture: `mrflow batch` by itself against `--ray` with workers of both stages.

    OMP_NUM_THREADS=1 python benchmarks/batch_ray.py   # vista, 60 pictures each way, one worker for each stage
    python benchmarks/batch_ray.py                     # the same against a lane for each core

Both ways write the same pictures into empty folders, synced; Ray is started here and stopped. Rates are those of
the later half of the pictures, so that neither loading counts nor what one worker did while another was loading;
`start` is when the first was safe. Ray's overhead is the seconds between two saved pictures less those in which a
worker of the busier stage really worked on one: carrying, scheduling, packing, writing. The last line of stdout is
JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mrflow import MrFlow
from mrflow.batch.cluster import Cluster
from mrflow.batch.output import Output
from mrflow.batch.run import News, run_batch
from mrflow.batch.tasks import read_request
from mrflow.bench.environment import describe_run
from mrflow.lanes import check_lanes
from mrflow.prompt_rows import Row

DRAFTING = ("text", "draft", "decode_draft")
FINISHING = ("upscale", "encode", "refine", "decode")


@dataclass
class Watch:
    """When pictures became safe, and the seconds of their stages."""

    begin: float = field(default_factory=time.perf_counter)
    saved: list[float] = field(default_factory=list)
    stages: list[Mapping[str, float]] = field(default_factory=list)

    def __call__(self, news: News) -> None:
        """Take the news of a batch."""
        if news.entry is not None:
            self.saved.append(time.perf_counter() - self.begin)
            self.stages.append(news.entry.seconds)

    def describe(self) -> dict[str, float]:
        """Return seconds: until the first picture, between two later ones, and of each stage's work on one."""
        half = len(self.saved) // 2
        drafting, finishing = (
            fmean(sum(stages.get(name, 0.0) for name in names) for stages in self.stages[half:])
            for names in (DRAFTING, FINISHING)
        )
        between = (self.saved[-1] - self.saved[half]) / (len(self.saved) - 1 - half)
        return {
            "start": self.saved[0],
            "between_pictures": between,
            "pictures_per_second": 1 / between,
            "drafting": drafting,
            "finishing": finishing,
            "total": self.saved[-1],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and then the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vista")
    parser.add_argument("--pictures", type=int, default=60, help="of each way; at least 3")
    parser.add_argument("--draft-workers", type=int, default=1)
    parser.add_argument("--finish-workers", type=int, default=1)
    asked = parser.parse_args(arguments)
    cluster = Cluster(
        load=partial(load, asked.model),
        draft_workers=asked.draft_workers,
        finish_workers=asked.finish_workers,
    )
    report = measure(load(asked.model, "cpu"), cluster, asked.pictures)
    for name, way in report["ways"].items():
        print(f"{name:12} {way['pictures_per_second']:7.3f} a second, the first after {way['start']:.1f} s")
    print(f"Ray adds {report['overhead_per_picture']:.3f} s to a picture")
    print(json.dumps(report))


def load(model: str, device: str) -> MrFlow:
    """Return the model, here or in a worker."""
    fast = MrFlow.from_pretrained(model, device=device)
    fast.pipe.set_progress_bar_config(disable=True)
    return fast


def make_rows(count: int) -> list[dict[str, Any]]:
    """Return so many rows from vista's world."""
    times = ("dawn", "noon", "sunset", "night")
    usual = {"width": 256, "height": 256}
    return [
        {"id": str(k), "prompt": f"a lake at {times[k % 4]} with pines", "seed": k, **usual} for k in range(count)
    ]


def measure(fast: MrFlow, cluster: Cluster, pictures: int) -> dict[str, Any]:
    """Return the report: environment, seconds of each way, Ray's overhead, and whether all files were the same."""
    ways: dict[str, dict[str, Any]] = {"one process": {}, "ray": {"cluster": cluster}}
    seconds: dict[str, dict[str, float]] = {}
    files: list[dict[str, bytes]] = []
    for name, options in ways.items():
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            rows = (Row(k + 1, row) for k, row in enumerate(make_rows(pictures)))
            watch = Watch()
            summary = run_batch(fast, read_request(rows), Output(Path(folder)), on_news=watch, **options)
            if summary.made != pictures:
                raise SystemExit(f"{name}: {summary}")
            seconds[name] = watch.describe()
            files.append({path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.png"))})
    workers = {"drafting": cluster.draft_workers, "finishing": cluster.finish_workers}
    alone, on_ray = (seconds[name]["between_pictures"] for name in ways)
    busy = max(seconds["ray"][stage] / count for stage, count in workers.items())
    return {
        **describe_run(fast),
        "pictures": pictures,
        "lanes": check_lanes(fast.model, None),
        "workers": workers,
        "same_files": all(made == files[0] for made in files),
        "ways": seconds,
        "overhead_per_picture": on_ray - busy,
        "speedup_over_one_process": alone / on_ray,
    }


if __name__ == "__main__":
    main()
