"""kill -9 at random moments: afterwards the folder is that of a run that nobody disturbed, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mrflow import vista
from support.batches import files, manifest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

HERE = Path(__file__).parent


class Worker:
    """A process of tests/support/batch_worker.py."""

    def __init__(self, model: str = "tiny") -> None:
        paths = os.pathsep.join([str(HERE), str(HERE.parent / "src")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.batch_worker", model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._read() == "ready"

    def start(self, *arguments: str | Path | int) -> int:
        """Begin a batch and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(["batch", *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        """Return how the batch ended: an exit code, or a signal as a negative number."""
        return os.waitstatus_to_exitcode(int(self._read()))

    def _read(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        return self.process.stdout.readline().strip() or pytest.fail(self.process.stderr.read())

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


def kill_again_and_again(
    worker: Worker, folder: Path, form: str, pictures: int, rounds: int, size: int = 32, lanes: int = 1
) -> int:
    """Return how many of the kills met a running batch; asserts that nothing is lost, twice or left over.

    lanes: of the runs that are killed; the whole one that they are compared with has one.
    """
    rows = [
        json.dumps({"prompt": ("a big lake at dusk", "a red house")[k % 2], "id": f"p{k}"})
        for k in range(pictures)
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    usual = [folder / "rows.jsonl", "--size", str(size), "--plan", "1+1", "--format", form, "--per-shard", "7"]
    worker.start(*usual, "--out", folder / "whole")
    assert worker.wait() == 0
    draw = random.Random(pictures)
    killed = 0
    for _ in range(rounds):
        child = worker.start(*usual, "--out", folder / "out", "--lanes", lanes)
        wait_for_lines(folder / "out" / "manifest.jsonl", child, draw.randrange(2 * pictures // (3 * rounds) + 1))
        time.sleep(draw.random() * 0.1)  # about what a picture takes
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(child, signal.SIGKILL)
        killed += worker.wait() == -signal.SIGKILL
    worker.start(*usual, "--out", folder / "out")
    assert worker.wait() == 0
    assert files(folder / "out") == files(folder / "whole")
    one, other = (
        sorted((e["id"], e["path"], e["sha256"]) for e in manifest(folder / n)) for n in ("out", "whole")
    )
    assert one == other
    assert len(one) == pictures
    return killed


def wait_for_lines(path: Path, child: int, count: int) -> None:
    """Wait until the manifest has grown by `count` lines since its batch began, or the batch has ended."""

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    before = lines()
    deadline = time.monotonic() + 300
    while lines() < before + count and not ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended(child: int) -> bool:
    """Return whether the process is no more, or only waits to be waited for."""
    try:
        status = Path(f"/proc/{child}/stat").read_text() if Path("/proc/self/stat").exists() else ""
        os.kill(child, 0)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return ") Z" in status


@pytest.mark.parametrize(("form", "lanes"), [("png", 1), ("wds", 3)])
def test_killed_at_random_moments(worker, tmp_path, form, lanes):
    assert kill_again_and_again(worker, tmp_path, form, pictures=12, rounds=3, lanes=lanes) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "wds"])
def test_killed_twenty_times_during_two_hundred_pictures(worker, tmp_path, form):
    assert kill_again_and_again(worker, tmp_path, form, pictures=200, rounds=20) >= 15


@pytest.mark.slow
@pytest.mark.skipif(not vista.available(), reason="vista's weights are not in this installation")
def test_killed_twenty_times_during_two_hundred_pictures_of_vista(tmp_path):
    worker = Worker("vista")
    try:
        assert kill_again_and_again(worker, tmp_path, "png", pictures=200, rounds=20, size=256) >= 15
    finally:
        worker.stop()


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(worker, tmp_path):
    (tmp_path / "rows.txt").write_text("a big lake at dusk\n" * 3)
    usual = [tmp_path / "rows.txt", "--size", "64", "--out", tmp_path / "out"]
    child = worker.start(*usual, "--steps", "300")
    wait_for_lines(tmp_path / "out" / "manifest.jsonl", child, 1)
    os.kill(child, signal.SIGINT)
    assert worker.wait() == 130
    made = len(manifest(tmp_path / "out"))
    assert 1 <= made < 3
    assert len(files(tmp_path / "out")) == made
    worker.start(*usual, "--steps", "300")
    assert worker.wait() == 0
    assert len(manifest(tmp_path / "out")) == 3
