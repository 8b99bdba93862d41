"""README and pages are true: commands parse, Python names what exists, links lead on, figures are recorded."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from tools import write_results

import mrflow
from mrflow import vista
from mrflow.cli.app import app
from mrflow.cli.outputs import subjects_of
from mrflow.jobs import ask

ROOT = Path(__file__).parents[1]
README, CLI, PLANS = ((ROOT / name).read_text() for name in ("README.md", "docs/cli.md", "docs/plans.md"))
COMMANDS = re.findall(r"^    (?:\.venv/bin/)?(mrflow .+)$", README + CLI + PLANS, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README + PLANS, flags=re.DOTALL)
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{each.name}" for each in (ROOT / "docs").glob("*.md")),
]
LINKS = [
    (document, link)
    for document in DOCUMENTS
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


def test_the_faq_names_commands_and_options_that_there_are():
    faq = " ".join((ROOT / "docs/faq.md").read_text().split())
    lines = re.findall(r"`(mrflow [^`]+ [^`]+)`", faq)
    assert len(lines) > 3
    for line in lines:
        app.parse_args(shlex.split(line)[1:])
    options = {
        name
        for command in ("generate", "enhance")
        for each in app[command].assemble_argument_collection()
        for name in each.names
    }
    assert set(re.findall(r"--[a-z][a-z-]+", faq)) <= options


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_a_page_begins_with_what_can_be_done_after_it(page):
    heading, first, *_ = page.read_text().split("\n\n")
    assert heading.startswith("# ")
    assert first.startswith("After this page you can ")


def test_file_names_are_those_that_the_commands_make():
    drafting = next(line for line in COMMANDS if line.startswith("mrflow draft"))
    slug = subjects_of(ask(shlex.split(drafting)[2], seed=3))[0].prompt
    assert f"{slug}-3-draft.png" in CLI
    assert f"{slug}-3.png" in CLI


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


def test_figures_are_as_recorded():
    assert "| mrflow, 12+1 | " in README
    assert "(vista's 12+1: " in README
    assert write_results.readme(README, ROOT / "benchmarks") == README, "python -m tools.write_results"


def test_the_two_commands_of_a_newcomer_stand_there():
    assert re.findall(r"^    (make \w+)$", README, flags=re.MULTILINE) == ["make demo", "make test"]


def test_readme_is_short():
    prose = re.sub(r"```.*?```|^    .*?$|\]\([^)]*\)|[|]|-{3,}", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 1000


def test_exit_codes_are_all_named():
    """Each is held by a test of its own: test_cli_process.py, test_cli_refusals.py."""
    codes = ", ".join(re.findall(r"^\| ([\d, ]+) \|", CLI, flags=re.MULTILINE))
    assert codes == "0, 2, 1, 130, 143, 129"
