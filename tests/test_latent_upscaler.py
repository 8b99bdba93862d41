"""The network of latents, held against its makers' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from mrflow import Upscaler
from mrflow.errors import UpscalerError
from mrflow.latent_upscaler import LatentNetwork
from support.latents import make_weights, write_network


@pytest.mark.parametrize(
    ("height", "width", "wanted", "mean", "deviation"),
    [
        (12, 16, [0.62929, -0.29378, -1.23726, -0.64468, 0.77602, -0.60521], 0.0315168, 0.8485602),
        (9, 12, [0.63351, -0.22023, -1.22804, -0.67724, 0.80743, -0.62107], 0.0321196, 0.8484271),
    ],
)
def test_it_gives_what_its_makers_code_gives(
    height: int, width: int, wanted: list[float], mean: float, deviation: float
) -> None:
    """The numbers come from LoganBooker/SesquiLSR, sesqui_lsr/upscaler.py, commit fbdd11d, with these weights."""
    network = LatentNetwork.of(make_weights())
    assert sum(weight.numel() for weight in network.parameters()) == 3_091_378
    latents = torch.sin(torch.arange(16 * 6 * 8, dtype=torch.float64) * 0.7).reshape(1, 16, 6, 8).float()
    made = network(latents, height, width)
    assert made.shape == (1, 16, height, width)
    assert torch.allclose(made.flatten()[:: made.numel() // 6][:6], torch.tensor(wanted), atol=1e-4)
    assert (float(made.mean()), float(made.std())) == pytest.approx((mean, deviation), abs=1e-5)


def test_without_detail_it_is_bicubic_interpolation() -> None:
    weights = make_weights(4)
    for name in ("tail_conv.2.weight", "tail_conv.2.bias", "skip_conv.weight"):
        weights[name] = torch.zeros_like(weights[name])
    torch.nn.init.dirac_(weights["skip_conv.weight"])
    latents = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    made = LatentNetwork.of(weights)(latents, 8, 14)
    plain = interpolate(latents.double(), (8, 14), mode="bicubic", align_corners=False)
    assert (made - plain).abs().max() < 1e-5


def test_it_runs_as_often_as_needed_and_picture_by_picture(tmp_path: Path) -> None:
    upscaler = Upscaler.load(write_network(tmp_path / "sesqui.safetensors", 4))
    assert (upscaler.latents, upscaler.channels, upscaler.factor) == (True, 4, None)
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    made = upscaler.upscale_latents(latents, (48, 32), (144, 96))
    twice = LatentNetwork.of(make_weights(4))
    alone = torch.cat([twice(twice(row, 8, 12), 12, 18) for row in latents.split(1)])
    assert torch.equal(made, alone)
    with pytest.raises(UpscalerError, match="2x2 or more; these are 1x4"):
        upscaler.upscale_latents(latents[..., :1], (8, 32), (16, 64))


@pytest.mark.parametrize("spoilt", ["missing", "more", "shape", "scalar", "name only"])
def test_what_is_no_whole_network_is_refused(tmp_path: Path, spoilt: str) -> None:
    weights = make_weights(4)
    if spoilt == "missing":
        del weights["tail_conv.0.weight"]
    elif spoilt == "more":
        weights["tail_conv.9.weight"] = torch.zeros(3)
    elif spoilt == "shape":
        weights["in_blocks.0.up.weight"] = torch.zeros(3, 3)
    elif spoilt == "scalar":
        weights["skip_conv.weight"] = torch.tensor(1.0)
    else:
        weights = {"upsample.base_taps": torch.zeros(1)}
    save_file(weights, tmp_path / "spoilt.safetensors")
    with pytest.raises(UpscalerError, match="no whole network of SesquiLSR's"):
        Upscaler.load(tmp_path / "spoilt.safetensors")
