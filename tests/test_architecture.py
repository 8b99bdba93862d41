"""docs/architecture.md is true: its list of files is complete, and imports run in its direction only.

Tests stand by themselves: none imports from another.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mrflow"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LAYERS = [line.split() for line in DOCUMENT.split("```layers\n")[1].split("```")[0].splitlines()]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
HOME = {
    name.name: node.module.split(".")[0]
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    if isinstance(node, ast.ImportFrom) and node.module
    for name in node.names
}

# outside library: the rooms that may import it
OUTSIDE = {
    "diffusers": {
        "backbones",
        "bench",
        "loading",
        "modular",
        "offloading",
        "progress",
        "schedulers",
        "single_files",
        "weights",
    },
    "matplotlib": {"bench"},
    "spandrel": {"upscaler"},
    "skimage": {"metrics"},
    "torchmetrics": {"metrics"},
    "cyclopts": {"cli"},
    "rich": {"cli"},
    "fastapi": {"server"},
    "uvicorn": {"server"},
    "prometheus_client": {"server"},
    "mcp": {"server"},
    "httpx2": {"server"},
    "ray": {"ray_connection", "server"},
    "fsspec": {"batch"},
    "pyarrow": {"batch", "prompt_rows"},
}


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def imports_of(file: str) -> Iterator[str]:
    """Yield the dotted names that a file imports, also inside functions."""
    return names_imported(PACKAGE / file)


def names_imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            yield from (f"{module}.{name.name}" for name in node.names)


def test_the_document_lists_every_file_once_and_nothing_else() -> None:
    assert sorted(re.findall(r"^- `([\w/]+\.py)`: \S", DOCUMENT, flags=re.MULTILINE)) == FILES


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_imports_run_one_way(file: str) -> None:
    room = room_of(file)
    assert room in RANK, f"{room} is missing from the layers in docs/architecture.md"
    for name in imports_of(file):
        library, _, rest = name.partition(".")
        if library == "mrflow" and rest not in ("", "__version__"):
            first = rest.split(".")[0]
            other = HOME.get(first, first)  # a public name stands for the room it lives in
            assert other == room or RANK[other] < RANK[room], f"{file} imports {name}"
        assert room in OUTSIDE.get(library, {room}), f"{file} imports {name}"


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) != "cli"])
def test_a_library_neither_prints_nor_exits(file: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "quit", "sys.exit", "os._exit"), f"{file} calls {called}"


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_no_test_file_imports_another(path: Path) -> None:
    """What two of them need stands in tests/support or conftest.py."""
    for name in names_imported(path):
        assert not any(part.startswith("test_") for part in name.split(".")), f"{path.name} imports {name}"
