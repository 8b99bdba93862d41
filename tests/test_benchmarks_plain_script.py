"""The plain script that staged sampling is timed against: it really makes the plan's picture, the plain way."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import plain_script
from PIL import Image

from mrflow import MrFlow, Plan
from mrflow.bench.random_weights import make_random
from mrflow.images import to_pil, to_tensor
from mrflow.upscaler import Upscaler
from support.architectures import shrink, small_flux

CPU = torch.device("cpu")


def specification(name: str) -> dict[str, Any]:
    return small_flux() if name == "flux-dev" else shrink(name)


@pytest.mark.parametrize(("name", "branches"), [("flux-dev", 1), ("qwen-image", 2)])
def test_the_plan_is_run_step_by_step(name: str, branches: int) -> None:
    """Qwen-Image's scheduler would make any single sigma its terminal 0.02, FLUX.1's would shift it."""
    fast = make_random(specification(name), CPU, torch.bfloat16)
    scheduler, seen, encoded = fast.pipe.scheduler, list[float](), Counter[str]()
    plan = plain_script.resolve(fast, Plan(steps=3))
    fast.pipe.transformer.register_forward_pre_hook(
        lambda _, given, named: seen.append(float(named["timestep"][0])), with_kwargs=True
    )
    fast.pipe.text_encoder.register_forward_pre_hook(lambda *_: encoded.update(["prompt"]))
    second = plain_script.image_to_image(fast.pipe)
    result = plain_script.plain_script(fast, second, plan, (64, 64), "a red boat", 1)
    assert result.images[0].size == (64, 64)
    assert list(result.seconds) == ["text to image", "upscale", "image to image", "total"]
    assert len(seen) == (3 + 1) * branches
    assert seen[-1] == pytest.approx(0.12, rel=0.01)
    assert seen[0] > seen[branches] > seen[2 * branches] >= 0.02
    assert second.scheduler.sigmas.tolist() == pytest.approx([0.12, 0.0])
    assert encoded["prompt"] == 2 * branches
    assert fast.pipe.scheduler is scheduler
    assert {part.dtype for part in (fast.pipe.transformer, second.vae)} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["flux-dev", "qwen-image"])
def test_the_report(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(plain_script, "read_architecture", specification)
    out = tmp_path / "report.json"
    arguments = ["--random-weights", name, "--size", "64", "--plan", "2+1", "--native-steps", "3"]
    plain_script.main([*arguments, "--repeats", "2", "--out", str(out)])
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert json.loads(out.read_text()) == report
    assert [line for line in printed.err.splitlines() if line.startswith("run:")] == [
        *("run: native:3", "run: 2+1", "run: plain script")
    ] * 2
    assert report["model"].endswith("random weights")
    assert (report["size"], report["plan"]["steps"], report["environment"]["device"]) == ([64, 64], 2, "cpu")
    for way in report["ways"].values():
        assert 0 < way["outside_transformer"]["low"] <= way["outside_transformer"]["high"] < 1
        assert way["seconds"]["transformer"]["high"] < way["seconds"]["total"]["high"]
        assert len(way["totals"]) == 2
    _, staged, plain = (way["seconds"]["total"]["median"] for way in report["ways"].values())
    assert report["speedup"]["2+1 over plain script"]["median"] == pytest.approx(plain / staged)


@pytest.mark.parametrize("size", [(96, 80), (48, 48), (130, 30)])
def test_tiles_join_without_a_seam(size: tuple[int, int], network_file: Path) -> None:
    fast = make_random(small_flux(), CPU, torch.float32, Upscaler.load(network_file))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    double = (size[0] * 2, size[1] * 2)
    whole = to_pil(fast.model.upscaler.upscale(to_tensor([picture]), *double))[0]
    tiled = plain_script.upscale(fast, picture, double, tile=48)
    assert np.abs(np.asarray(tiled, int) - np.asarray(whole, int)).max() <= 1
    assert plain_script.upscale(fast, picture, (50, 40), tile=48).size == (50, 40)


def test_passes_are_timed_and_the_hooks_taken_off() -> None:
    linear = torch.nn.Linear(4, 4)
    with plain_script.passes(linear, CPU) as total:
        assert total() == 0
        linear(torch.ones(1, 4))
        first = total()
        linear(torch.ones(1, 4))
        assert total() > first > 0
    linear(torch.ones(1, 4))
    assert not linear._forward_hooks
    assert not linear._forward_pre_hooks


def test_it_is_guided_in_all_steps_whatever_the_model_does_by_itself(fast: MrFlow) -> None:
    own = Plan(steps=4, true_cfg_scale=2.0, guidance_stop=0.5)
    defaults = dataclasses.replace(fast.model.defaults, plan=own)
    held = MrFlow(fast.pipe, "bicubic", defaults=defaults)
    assert held.model.resolve_plan("4+1").guided_steps == 2
    resolved = plain_script.resolve(held, Plan(steps=4))
    assert (resolved.guided_steps, resolved.true_cfg_scale) == (4, 2.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "64x50"], "Try 64x48 or 64x64"),
        (["--repeats", "0"], "repeats is 0"),
        (["--plan", "quick"], "no plan 'quick'"),
        (["--random-weights", "flux9"], "no architecture 'flux9'"),
        (["--random-weights", "z-image"], "ZImagePipeline; this script is written for FluxPipeline"),
    ],
)
def test_what_the_script_cannot_do_is_said(
    monkeypatch: pytest.MonkeyPatch, fast: MrFlow, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(MrFlow, "from_pretrained", lambda name, **options: fast)
    if "z-image" in arguments:
        monkeypatch.setattr(plain_script, "read_architecture", shrink)
    with pytest.raises(SystemExit, match=words):
        plain_script.main([*arguments, "--warm-up", "0"])
