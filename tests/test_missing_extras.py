"""A missing extra is named before any work, by every command that needs one, with a line for a clone."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mrflow import MrFlow
from support.cli import invoke

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


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
        ("mcp", "mcp", "mcp"),
        ("generate lake --model flux-dev --lora boats.safetensors", "peft", "lora"),
        ("generate lake --model flux.gguf", "gguf", "gguf"),
        ("serve --ray", "ray", "ray"),
    ],
)
def test_a_missing_extra_is_named_before_a_model_is_loaded(line, module, extra, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a lake\n")
    Path("prompts.parquet").write_bytes(b"PAR1")
    save_file({"x.lora_A.weight": torch.zeros(4, 4)}, "boats.safetensors")
    Path("flux.gguf").write_bytes(b"GGUF")
    for name in {module, *(name for name in sys.modules if name.startswith(f"{module}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda *_, **__: pytest.fail("a model is loaded"))
    result = invoke(line.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert extra in PROJECT["optional-dependencies"]
    assert result.stderr.endswith(f' is not installed. In a clone of mrflow: pip install ".[{extra}]"\n')
