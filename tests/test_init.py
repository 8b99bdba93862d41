import subprocess
import sys

import mrflow


def test_every_public_name_is_there() -> None:
    assert sorted(mrflow.__all__) == dir(mrflow)
    for name in mrflow.__all__:
        assert getattr(mrflow, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(mrflow, "no_such_name")


def test_importing_takes_no_heavy_library_along() -> None:
    rooms = ("plan", "jobs", "recipe", "errors", "vista", "files", "prompt_rows")
    light = "import mrflow, " + ", ".join(f"mrflow.{room}" for room in rooms)
    code = (
        f"import sys; {light}; print([n for n in ('torch', 'numpy', 'diffusers', 'spandrel') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env())
    assert result.stdout.strip() == "[]"


def test_the_version_is_the_packages() -> None:
    from mrflow.recipe import library_versions

    assert library_versions()["mrflow"] == mrflow.__version__


def _env() -> dict[str, str]:
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(mrflow.__file__).parents[1])}
