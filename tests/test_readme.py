"""The README is true: its commands parse, its Python runs to the names it uses, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import mrflow
from mrflow import vista
from mrflow.cli.app import app
from mrflow.cli.outputs import subjects_of
from mrflow.request import make_jobs

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
    assert {shlex.split(line)[1] for line in COMMANDS} == set(get_command(app).commands)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    """Parse a line as the program would, without running it; an unknown option or a wrong type raises."""
    root = get_command(app)
    _, name, *arguments = shlex.split(line)
    root.commands[name].make_context(name, arguments)


def test_file_names_are_those_that_the_commands_make():
    drafting = next(line for line in COMMANDS if line.startswith("mrflow draft"))
    slug = subjects_of(make_jobs(shlex.split(drafting)[2], seed=3))[0].prompt
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
