"""training/ is read from the bottom up: no module needs, even inside a function, one that needs it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TRAINING = Path(__file__).parent.parent / "training"


def imports(source: str, package: str) -> set[str]:
    """Return every module or name that a module of `package` imports, anywhere in it, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -(node.level - 1) or None] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


def graph(root: Path) -> dict[str, set[str]]:
    """Return which of the package's own modules each of them imports."""
    files = {".".join((root.name, *p.relative_to(root).with_suffix("").parts)): p for p in root.rglob("*.py")}
    needs = {
        name: imports(path.read_text(encoding="utf-8"), name.rpartition(".")[0]) for name, path in files.items()
    }
    return {name: {other for other in found if other in files} for name, found in needs.items()}


def test_no_module_of_training_imports_one_that_imports_it() -> None:
    found = graph(TRAINING)
    assert "training.flow_model" in found["training.flow"]
    list(TopologicalSorter(found).static_order())  # raises CycleError, which names the circle


def test_models_and_latents_know_no_training() -> None:
    trainings = {f"training.{name}" for name in ("flow", "autoencoder", "upscaler", "inspector")}
    found = graph(TRAINING)
    for name in ("evaluate", "redraw", "flow_model", "latents"):
        assert not found[f"training.{name}"] & trainings


def test_a_circle_is_found_inside_functions_and_through_relative_names(tmp_path: Path) -> None:
    root = tmp_path / "training"
    root.mkdir()
    (root / "a.py").write_text("def f():\n    from training import b\n")
    (root / "b.py").write_text("from .a import f\n")
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph(root)).static_order())
