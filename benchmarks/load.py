"""Load: many clients at once against `mrflow serve`, with batches and one at a time; a line of JSON in the end.

    python benchmarks/load.py --clients 200 --out benchmarks/load-vista-cpu.json

What it costs: with C pictures queued, the last one waits for all of them, so that p95 is nearly C / throughput,
and throughput is what batches change. Each server runs in a process of its own, gets one request to warm up, then
all clients at once, each from its own loopback address where the system has several, with its own prompt and seed.
`batched` is the server as it is by itself: on a CPU a worker for each core, drafts in eights. `one at a time` has
one worker with all cores and batches of one. Leave OMP_NUM_THREADS unset: it takes the cores from both.

A clean 429 is counted, and with --retry tried again. Anything else but a picture is a lost request, and makes the
exit code 1. Both servers get the same requests, so that each picture made under load is compared with the one made
alone: given are how many differ by more than 1/255 anywhere, and the largest difference.
Processor seconds are the server's own, and tell more than the clock on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from mrflow.bench.environment import describe_environment

PLACES = ("a lake", "a meadow", "a beach")
TIMES = ("at dawn", "at noon", "at sunset", "at night")
ALONE = ("--lanes", "1", "--batch-size", "1", "--finish-batch", "1")


@dataclass(frozen=True)
class Answer:
    """One client's fate: status (0: no answer), seconds it waited, and its picture's file if one came."""

    status: int
    seconds: float
    file: bytes | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both servers in turn and write the report."""
    options = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/load.py", *given]),
        "environment": describe_environment(torch.device("cpu"), torch.float32),
        "clients": options.clients,
        "plan": options.plan,
        "model": options.model,
        "runs": {},
    }
    pictures: list[list[bytes | None]] = []
    for name, more in (("batched", ()), ("one at a time", ALONE)):
        print(f"{name}: starting", file=sys.stderr)
        report["runs"][name], files = measure(options, more)
        pictures.append(files)
        print(f"{name}: {report['runs'][name]}", file=sys.stderr)
    batched, single = (report["runs"][name]["pictures_per_second"] for name in ("batched", "one at a time"))
    report["gain"] = round(batched / single, 3) if single else None
    report["equality"] = compare(*pictures)
    report["lost"] = sum(run["lost"] for run in report["runs"].values())
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 1 if report["lost"] or report["equality"]["different"] else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--plan", default="12+1")
    parser.add_argument("--model", default="vista")
    parser.add_argument("--queue", type=int, default=256, help="places in the server's line")
    parser.add_argument("--retry", action="store_true", help="come back after a 429, when the server says")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[dict[str, Any], list[bytes | None]]:
    """Return the figures of one server under load, and each client's picture."""
    command = [sys.executable, "-c", "from mrflow.cli import main; main()", "serve", "--no-page", "--port", "0"]
    command += ["--model", options.model, "--queue", str(options.queue), "--timeout", "3600", *arguments]
    begin = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    try:
        url = ready(server)
        startup = time.perf_counter() - begin
        httpx.post(f"{url}/v1/images/generations", json=body(0, "1+1"), timeout=3600).raise_for_status()
        used, begin = processor_seconds(server.pid), time.perf_counter()
        answers = asyncio.run(load(url, options))
        seconds, used = time.perf_counter() - begin, processor_seconds(server.pid) - used
        health = httpx.get(f"{url}/health", timeout=60).json()
        workers = {"startup_seconds": round(startup, 2), "workers": len(health["workers"])}
        return {**workers, **summary(answers, seconds, used)}, [answer.file for answer in answers]
    finally:
        server.terminate()
        server.communicate()


def ready(server: subprocess.Popen[str]) -> str:
    """Return the server's address once it takes requests."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"(http://\S+) is ready", line):
            return found[1]
        print(line, end="", file=sys.stderr)
    raise SystemExit("the server ended before it was ready")


def processor_seconds(pid: int) -> float:
    """Return what a process has used of all cores so far; NaN where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def body(number: int, plan: str) -> dict[str, Any]:
    """Return the request of client `number`: mixed prompts and seeds, one shape."""
    prompt = f"{PLACES[number % len(PLACES)]} {TIMES[number % len(TIMES)]} with mountains"
    return {"prompt": prompt, "seed": number, "plan": plan, "size": "256x256"}


async def load(url: str, options: argparse.Namespace) -> list[Answer]:
    """Return the answers of all clients, who begin at the same moment."""
    return await asyncio.gather(*(ask(url, number, options) for number in range(options.clients)))


async def ask(url: str, number: int, options: argparse.Namespace) -> Answer:
    """Return what one client got."""
    address = f"127.0.{1 + number // 250}.{1 + number % 250}" if sys.platform == "linux" else None
    transport = httpx.AsyncHTTPTransport(local_address=address)
    begin = time.perf_counter()
    async with httpx.AsyncClient(transport=transport, timeout=3600) as client:
        while True:
            try:
                answer = await client.post(f"{url}/v1/images/generations", json=body(number, options.plan))
            except httpx.HTTPError:
                return Answer(0, time.perf_counter() - begin)
            if answer.status_code != 429 or not options.retry:
                return Answer(answer.status_code, time.perf_counter() - begin, file_of(answer))
            await asyncio.sleep(float(answer.headers["retry-after"]))


def file_of(answer: httpx.Response) -> bytes | None:
    """Return the one picture that an answer holds, or None."""
    if answer.status_code != 200:
        return None
    (item,) = answer.json()["data"]
    return base64.b64decode(item["b64_json"])


def pixels(file: bytes) -> np.ndarray[Any, Any]:
    """Return a picture's pixels; raises if the file is not whole."""
    return np.asarray(Image.open(BytesIO(file)).convert("RGB"), dtype=np.int16)


def compare(loaded: Sequence[bytes | None], alone: Sequence[bytes | None]) -> dict[str, Any]:
    """Return how pictures made under load differ from those made alone, in units of 1/255."""
    pairs = [(a, b) for a, b in zip(loaded, alone, strict=True) if a is not None and b is not None]
    differences = [int(np.abs(pixels(a) - pixels(b)).max()) for a, b in pairs]
    return {
        "compared": len(pairs),
        "equal": differences.count(0),
        "different": sum(difference > 1 for difference in differences),
        "largest_difference": max(differences, default=None),
    }


def summary(answers: Sequence[Answer], seconds: float, used: float) -> dict[str, Any]:
    """Return counts, throughput and waits."""
    waits = sorted(answer.seconds for answer in answers if answer.file is not None)
    refused = sum(answer.status == 429 for answer in answers)
    return {
        "seconds": round(seconds, 2),
        "pictures": len(waits),
        "refused_429": refused,
        "lost": len(answers) - len(waits) - refused,
        "statuses": dict(Counter(str(answer.status) for answer in answers)),
        "pictures_per_second": round(len(waits) / seconds, 4),
        "processor_seconds_per_picture": round(used / len(waits), 4) if waits else None,
        "p50_seconds": round(statistics.median(waits), 2) if waits else None,
        "p95_seconds": round(waits[int(0.95 * (len(waits) - 1))], 2) if waits else None,
    }


if __name__ == "__main__":
    sys.exit(main())
