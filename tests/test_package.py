"""What is installed: every file of the package goes into the wheel, and nothing is promised."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mrflow"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def data_files() -> set[str]:
    """Return what git keeps under src/mrflow and is no module."""
    listed = subprocess.run(["git", "ls-files", str(SOURCE)], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    return {str((ROOT / line).relative_to(SOURCE)) for line in listed.stdout.split() if not line.endswith(".py")}


def test_every_file_of_data_is_part_of_the_package():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["mrflow"]
    packed = {str(path.relative_to(SOURCE)) for pattern in patterns for path in SOURCE.glob(pattern)}
    assert data_files() <= packed
    assert all(list(SOURCE.glob(pattern)) for pattern in patterns)


def test_addresses_are_those_that_the_readme_has():
    assert all(url in (ROOT / "README.md").read_text() for url in PYPROJECT["project"]["urls"].values())


def test_nothing_promises_a_package_index():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*"), *SOURCE.rglob("*.py")]
    for page in (page for page in pages if page.is_file()):
        assert not re.search(r"pip install (-U |--upgrade )?['\"]?mrflow", page.read_text()), page


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_runs_without_the_clone(tmp_path):
    """Built from a copy, without the network: the build's own setuptools is this environment's."""
    subprocess.run(["git", "clone", "-q", "--depth", "1", ROOT.as_uri(), str(tmp_path / "clone")], check=True)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "clone", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {f"mrflow/{name}" for name in data_files()} <= set(names)
    assert all(name.startswith(("mrflow/", "mrflow-")) for name in names)
    assert wheel.stat().st_size < 30e6
    code = "import mrflow; from mrflow.cli import main; assert 'installed' in mrflow.__file__; main(['models'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": "", "MRFLOW_CONFIG": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "vista, in this installation" in done.stdout
