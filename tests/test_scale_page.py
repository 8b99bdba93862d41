"""docs/scale.md shows what `mrflow balance` prints, as it prints it today."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mrflow.batch.tasks import read_request
from mrflow.prompt_rows import read_rows
from support.cli import invoke

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/scale.md").read_text()
SHOWN = re.findall(r"^    \$ mrflow (balance .*)\n((?:    .*\n)+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_output_of_balance_is_today_s(command: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = invoke(command.split())
    assert result.exit_code == 0
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == "..." else f"{re.escape(line)} *\n" for line in lines)
    assert re.fullmatch(pattern, result.stdout)


def test_parts_have_the_ids_and_seeds_of_the_whole(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a lake"},
        {"prompt": "a beach", "id": "mine"},
        *[{"prompt": f"a boat {k}"} for k in range(8)],
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (code,) = re.findall(r"^    (python -c '.*\n(?:    .*\n)+?)    mrflow batch part-aa", PAGE, re.MULTILINE)
    code = code.replace("\n    ", "\n").replace("python -c", f"{sys.executable} -c")
    subprocess.run(["bash", "-ec", code], cwd=tmp_path, check=True, timeout=60)
    whole, *parts = (
        [(each.id, each.asked.seed) for each in read_request(read_rows(tmp_path / name)).wanted]
        for name in ("prompts.jsonl", "part-aa.jsonl", "part-ab.jsonl")
    )
    assert [*parts[0], *parts[1]] == whole
    assert all(parts)


def test_both_are_found() -> None:
    assert len(SHOWN) == 2
