"""Write the ComfyUI nodes as a folder that stands alone, with the parts of mrflow that they import.

python -m tools.comfyui_pack ComfyUI/custom_nodes/mrflow-nodes
"""

from __future__ import annotations

import argparse
import ast
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACK, PACKAGE = ROOT / "comfyui", ROOT / "src" / "mrflow"


def main() -> None:
    """Write the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or to be replaced")
    folder = parser.parse_args().folder
    if not folder.resolve().parent.is_dir():
        parser.error(f"there is no folder {folder.resolve().parent}. Name one in ComfyUI's custom_nodes.")
    write(folder)
    print(f"wrote {folder}; restart ComfyUI")


def write(folder: Path) -> None:
    """Write the pack: its own files and, in `core/mrflow`, copies of those that it imports, with their tables.

    A folder that holds anything else than an earlier pack is left alone.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "core" / "mrflow").is_dir():
        raise SystemExit(
            f"{folder} holds something else than these nodes. Name a new folder, such as {folder}/mrflow-nodes."
        )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PACK, folder, ignore=shutil.ignore_patterns("__pycache__", "core"))
    shutil.copy(ROOT / "LICENSE", folder)
    core = folder / "core" / "mrflow"
    core.mkdir(parents=True)
    for path in (*core_files(), *PACKAGE.glob("*.toml")):
        shutil.copy(path, core / path.name)


def core_files() -> list[Path]:
    """Return the modules of mrflow that the nodes import, and those that these import."""
    known, waiting = set[Path](), list(PACK.glob("*.py"))
    while waiting:
        for path in map(_file, _imported(waiting.pop())):
            if path not in known:
                known.add(path)
                waiting.append(path)
    return sorted(known)


def _imported(path: Path) -> list[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    return [str(node.module) for node in nodes if str(node.module).startswith("mrflow.")]


def _file(module: str) -> Path:
    """Return the file of mrflow.NAME; the core has no folders, which would need an __init__.py of their own."""
    return PACKAGE / f"{module.removeprefix('mrflow.')}.py"


if __name__ == "__main__":
    main()
