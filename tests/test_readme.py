"""The README is true: its commands parse, its Python runs to the names it uses, its links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

import mrflow
from mrflow import vista
from mrflow.cli.app import app
from mrflow.cli.outputs import subjects_of
from mrflow.jobs import ask

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (?:\.venv/bin/)?(mrflow .+)$", README, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LINKS = [
    (document, link)
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text())
]


def test_there_are_commands():
    assert {shlex.split(line)[1] for line in COMMANDS} == {
        name for name in app.resolved_commands() if not name.startswith("-")
    }


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    """Parse a line as the program would, without running it; an unknown option or a wrong type raises."""
    app.parse_args(shlex.split(line)[1:])


def test_file_names_are_those_that_the_commands_make():
    drafting = next(line for line in COMMANDS if line.startswith("mrflow draft"))
    slug = subjects_of(ask(shlex.split(drafting)[2], seed=3))[0].prompt
    assert f"{slug}-3-draft.png" in README
    assert f"{slug}-3.png" in README


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_names_what_exists(block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "mrflow":
            assert all(hasattr(mrflow, name.name) for name in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fast":
            assert hasattr(mrflow.MrFlow, node.attr)


@pytest.mark.parametrize(("document", "link"), LINKS)
def test_links_lead_somewhere(document, link):
    if not vista.available() and link.endswith("demo.png"):
        pytest.skip("the picture comes with vista's weights, which are not in this installation")
    assert (ROOT / document).parent.joinpath(link).exists(), f"{document} links to {link}"


COMPARED = {
    "native, 50 steps": "native",
    "mrflow, 12+1": "12+1",
    "12+1 as published: Euler, guided throughout": "12+1:solver=own,guidance_stop=1",
    "mrflow, 6+1, half the draft guided": "6+1:guidance_stop=0.5",
    "bicubic instead of the GAN": "12+1:upscaler=bicubic",
    "latents enlarged instead of pixels": "12+1:upscaler=latent",
    "upscaled, not refined": "12+0",
    "native, 5 steps: the same time": "native:5",
    "native, 6 steps with UniPC": "native:6,solver=unipc",
    "native, TaylorSeer, every 4th step": "native:cache=taylorseer@4",
    "native, TaylorSeer, every 16th": "native:cache=taylorseer@16",
}
BENCHED = {
    "native | 50": "native",
    "native, guided in the first 17 steps | 50": "native:50,guidance_stop=0.33",
    "native, as few steps | 12": "native:12",
    "mrflow | 12+1": "12+1",
    "mrflow | 20+1": "20+1",
    "mrflow, half the draft guided | 6+1": "6+1:guidance_stop=0.5",
}


def recorded(name):
    return json.loads((ROOT / "benchmarks" / name).read_text())


def figure(value, style):
    """Write a number as the README does: without a zero before the point, with a true minus."""
    return re.sub(r"\b0\.", ".", format(value, style)).replace("-", "\N{MINUS SIGN}")


def interval(estimate, style):
    middle, low, high = (figure(each, style) for each in estimate.values())
    return middle if low == high else f"{middle} ({low} to {high})"


def test_quality_is_as_recorded():
    scores = recorded("compare-vista-cpu.json")["scores"]
    assert sorted(COMPARED.values()) == sorted(row["name"] for row in scores["methods"])
    for label, method in COMPARED.items():
        row = next(row for row in scores["methods"] if row["name"] == method)
        quality, native, plan = row["quality"], method == "native", method == scores["plan"]
        cells = [
            "1" if native else interval(row["speed"]["speedup"], "#.3g"),
            interval(quality["found"]["all"], ".3f"),
            "1" if native else interval(quality["sharpness"], ".2f"),
            interval(quality["composite"], ".3f"),
            "" if plan else interval(quality["composite_to_plan"], "+.3f"),
            figure(quality["frechet"]["value"], ".1f"),
            figure(quality["patch_frechet"]["value"], ".2f"),
        ]
        assert f"| {label} | {' | '.join(cells)} |" in README


def test_speed_is_as_recorded():
    (group,) = recorded("bench-vista-cpu.json")["groups"]
    assert [*BENCHED.values()] == [row["name"] for row in group["methods"]]
    for (label, method), row in zip(BENCHED.items(), group["methods"], strict=True):
        faster = "1" if method == "native" else interval(row["speedup"], "#.3g")
        assert f"| {label} | {figure(row['seconds']['total']['median'], '.2f')} | {faster} |" in README


def test_what_a_draft_costs_is_as_recorded():
    native, *_, staged = (row["seconds"] for row in recorded("bench-vista-cpu.json")["groups"][0]["methods"][:4])
    draft = sum(staged[stage]["median"] for stage in ("text", "draft", "decode_draft"))
    whole, plain = (figure(seconds["total"]["median"], ".2f") for seconds in (staged, native))
    assert f"(vista's 12+1: {figure(draft, '.2f')} of {whole} s, native {plain} s)" in README


def test_exit_codes_are_all_named():
    """Each is held by a test of its own: test_cli_process.py, test_cli_refusals.py."""
    told = " ".join(README.split()).partition("The exit code is ")[2].partition(" Input and output")[0]
    assert re.findall(r"\d+", told) == ["0", "2", "1", "130", "143", "129"]
