"""Load: many clients at once against `mrflow serve`, with batches and one at a time; a line of JSON in the end.

    python benchmarks/load.py --clients 200 --out benchmarks/load-vista-cpu.json

What it costs: with C pictures queued, the last one waits for all of them, so that p95 is nearly C / throughput,
and throughput is what batches change. Each server runs in a process of its own, gets one request to warm up, then
all clients at once, each from its own loopback address where the system has several, with its own prompt and seed.
A clean 429 is counted, and with --retry tried again. Anything else but a picture is a lost request, and makes the
exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx

PLACES = ("a lake", "a meadow", "a beach")
TIMES = ("at dawn", "at noon", "at sunset", "at night")


@dataclass(frozen=True)
class Answer:
    """One client's fate: status, seconds it waited, whether a whole picture came."""

    status: int
    seconds: float
    picture: bool


def main() -> int:
    """Run both servers in turn and write the report."""
    options = parse()
    report: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "clients": options.clients,
        "plan": options.plan,
        "model": options.model,
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "runs": {},
    }
    alone = ("--batch-size", "1", "--finish-batch", "1")
    for name, arguments in (("batched", ()), ("one at a time", alone)):
        print(f"{name}: starting", file=sys.stderr)
        report["runs"][name] = measure(options, arguments)
        print(f"{name}: {report['runs'][name]}", file=sys.stderr)
    batched, single = (report["runs"][name]["pictures_per_second"] for name in ("batched", "one at a time"))
    report["gain"] = round(batched / single, 3) if single else None
    report["lost"] = sum(run["lost"] for run in report["runs"].values())
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 1 if report["lost"] else 0


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--plan", default="12+1")
    parser.add_argument("--model", default="vista")
    parser.add_argument("--queue", type=int, default=256, help="places in the server's line")
    parser.add_argument("--retry", action="store_true", help="come back after a 429, when the server says")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def measure(options: argparse.Namespace, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of one server under load."""
    command = [sys.executable, "-c", "from mrflow.cli import main; main()", "serve", "--no-page", "--port", "0"]
    command += ["--model", options.model, "--queue", str(options.queue), "--timeout", "3600", *arguments]
    begin = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    try:
        url = ready(server)
        startup = time.perf_counter() - begin
        httpx.post(f"{url}/v1/images/generations", json=body(0, "1+1"), timeout=3600).raise_for_status()
        begin = time.perf_counter()
        answers = asyncio.run(load(url, options))
        return summary(answers, time.perf_counter() - begin, startup)
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


def body(number: int, plan: str) -> dict[str, Any]:
    """Return the request of client `number`: mixed prompts and seeds, one shape."""
    prompt = f"{PLACES[number % len(PLACES)]} {TIMES[number % len(TIMES)]} with mountains"
    return {"prompt": prompt, "seed": number, "plan": plan, "output_format": "webp", "output_compression": 90}


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
                return Answer(0, time.perf_counter() - begin, picture=False)
            if answer.status_code != 429 or not options.retry:
                return Answer(answer.status_code, time.perf_counter() - begin, picture=is_picture(answer))
            await asyncio.sleep(float(answer.headers["retry-after"]))


def is_picture(answer: httpx.Response) -> bool:
    """Return whether the answer holds one picture that can be decoded."""
    from PIL import Image

    if answer.status_code != 200:
        return False
    (item,) = answer.json()["data"]
    Image.open(BytesIO(base64.b64decode(item["b64_json"]))).load()
    return True


def summary(answers: list[Answer], seconds: float, startup: float) -> dict[str, Any]:
    """Return counts, throughput and waits."""
    waits = sorted(answer.seconds for answer in answers if answer.picture)
    refused = sum(answer.status == 429 for answer in answers)
    return {
        "startup_seconds": round(startup, 2),
        "seconds": round(seconds, 2),
        "pictures": len(waits),
        "refused_429": refused,
        "lost": len(answers) - len(waits) - refused,
        "statuses": dict(Counter(str(answer.status) for answer in answers)),
        "pictures_per_second": round(len(waits) / seconds, 4),
        "p50_seconds": round(statistics.median(waits), 2) if waits else None,
        "p95_seconds": round(waits[int(0.95 * (len(waits) - 1))], 2) if waits else None,
    }


if __name__ == "__main__":
    sys.exit(main())
