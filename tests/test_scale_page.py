"""docs/scale.md shows what `mrflow balance` prints, as it prints it today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.cli import invoke

ROOT = Path(__file__).parents[1]
SHOWN = re.findall(
    r"^    \$ mrflow (balance .*)\n((?:    .*\n)+)", (ROOT / "docs/scale.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_output_of_balance_is_today_s(command: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = invoke(command.split())
    assert result.exit_code == 0
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == "..." else f"{re.escape(line)} *\n" for line in lines)
    assert re.fullmatch(pattern, result.stdout)


def test_both_are_found() -> None:
    assert len(SHOWN) == 2
