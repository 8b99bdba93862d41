"""A missing extra is named before any work, by every command that needs one, with a line that works from a clone."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from mrflow.cli.loading import ModelOptions
from support.cli import invoke

EXTRAS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("line", "module", "extra"),
    [
        ("estimate flux-dev --plot costs.png", "matplotlib", "bench"),
        ("bench --plot bench.png", "matplotlib", "bench"),
        ("bench native native:cache=cache-dit@0.1", "cache_dit", "caches"),
        ("compare native 12+1", "matplotlib", "bench"),
        ("compare native 12+1", "skimage", "bench"),
        ("compare native 12+1 --metric lpips", "torchmetrics", "metrics"),
        ("compare native 12+1 --metric image-reward", "ImageReward", "image-reward"),
        ("tune --at-least 1.3x --out fast.json", "skimage", "bench"),
        ("batch prompts.parquet --out pictures", "pyarrow", "batch"),
        ("batch prompts.txt --out s3://bucket/pictures --state here", "fsspec", "batch"),
        ("batch prompts.txt --out pictures --ray", "ray", "ray"),
        ("serve", "fastapi", "server"),
        ("serve", "gradio", "server"),
        ("serve --ray", "ray", "ray"),
    ],
)
def test_a_missing_extra_is_named_before_a_model_is_loaded(line, module, extra, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a lake\n")
    Path("prompts.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("a model is loaded"))
    result = invoke(line.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert extra in EXTRAS
    assert result.stderr.endswith(f" is not installed. In a clone of mrflow: pip install '.[{extra}]'\n")
