"""What steps of a full-size transformer cost here, and their memory, beside what `mrflow estimate` counts.

    python benchmarks/full_size.py flux2-klein-4b --plan 1+1 --out benchmarks/full-size-flux2-klein-4b-cpu.json

Its weights are random, on a CPU. All other networks are hollow, so that it fits into memory: they answer at once,
with ones of the true shape. Seconds are the processor's, of all threads, for others may share the cores. Memory
is the process's own, at most, less what it had before the networks. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from mrflow import MrFlow, estimate
from mrflow.architectures import assemble, make_component, read_architecture
from mrflow.bench.environment import describe_environment
from mrflow.bench.random_weights import fill
from mrflow.costs import Tally
from mrflow.loading import DTYPES
from mrflow.memory import PeakMemory
from mrflow.progress import Progress

CPU = torch.device("cpu")


def make_model(name: str, dtype: torch.dtype) -> MrFlow:
    """Return a known architecture whose transformer has random weights, the other networks none."""
    spec, tally = read_architecture(name), Tally()
    parts = {part: make_component(about) for part, about in spec["components"].items()}
    for part, network in parts.items():
        if part == "transformer":
            fill(network, CPU, dtype)
            torch.nn.Module.to(network, dtype)  # tables, as loading has them
        elif isinstance(network, torch.nn.Module):
            tally.hollow(part, network, dtype)
    return MrFlow(assemble(spec, parts), "bicubic")


class Watch:
    """The processor's seconds of each step, as a callback."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._begin = 0.0

    def __call__(self, news: Progress) -> None:
        now = time.process_time()
        if news.step:
            self.seconds.setdefault(news.stage, []).append(now - self._begin)
        self._begin = now


def main(arguments: Sequence[str] | None = None) -> None:
    """Make one picture, and print what was measured beside what is counted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--plan", default="1+1")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    dtype, side, watch = DTYPES[options.dtype], options.size, Watch()
    counted = estimate(
        options.name,
        width=side,
        height=side,
        plans=[options.plan],
        native_steps=1,
        upscaler="bicubic",
        dtype=dtype,
    )
    way, before = counted.ways[1], psutil.Process().memory_info().rss
    fast = make_model(options.name, dtype)
    peak = PeakMemory(CPU)
    peak.reset()
    fast("a lake at dusk", seed=0, plan=options.plan, width=side, height=side, callback=watch)
    memory = counted.memory(way, offload="model", device="cpu")
    calls = {"draft": fast.model.resolve_plan(options.plan).steps, "refine": 1}
    each = {stage: way.stages[stage].operations / steps for stage, steps in calls.items()}
    seconds = {stage: statistics.median(watch.seconds[stage]) for stage in each}
    report = {
        "environment": describe_environment(CPU, dtype),
        "model": options.name,
        "size": side,
        "plan": options.plan,
        "steps": {
            stage: {
                "processor_seconds": seconds[stage],
                "all": watch.seconds[stage],
                "operations": each[stage],
                "operations_per_second": each[stage] / seconds[stage],
            }
            for stage in each
        },
        "ratio": {"measured": seconds["refine"] / seconds["draft"], "counted": each["refine"] / each["draft"]},
        "memory": {
            "measured": (peak.read() or 0) - before,
            "counted": max(memory[stage] for stage in each),
        },
    }
    text = json.dumps(report)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
