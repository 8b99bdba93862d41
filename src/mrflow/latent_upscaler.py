"""SesquiLSR's network, which enlarges latents by any ratio from 1 to 2, in PyTorch alone.

Source: LoganBooker/SesquiLSR (MIT), sesqui_lsr/upscaler.py at commit fbdd11d. Weights are published there, some 3
million in a .safetensors file each: upscaler_Flux (for FLUX.1's autoencoder, which Z-Image, Lumina 2 and Chroma
share), upscaler_Flux2, upscaler_Wan21 (Wan's, which Qwen-Image and Krea 2 share) and upscaler_SDXL. Parts are
named as there, so that those files fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mish, pixel_shuffle

_MARK = "upsample.base_taps"  # a name that no other network's weights have
_WIDTH = 128
_TAPS = (-1, 0, 1, 2)  # neighbours that a value is made of, along each side


def is_latent_network(weights: Mapping[str, Any]) -> bool:
    """Return whether the weights are of this network."""
    return _MARK in weights


class LatentNetwork(nn.Module):
    """Enlarges latents (B, C, h, w) to (B, C, height, width), at most twice as large; float32.

    FLUX's are (mode - shift) * scale, as its transformer has them, all others the autoencoder's own. channels: C.
    """

    def __init__(self, channels: int) -> None:
        """Make the network with random weights."""
        super().__init__()
        half = _WIDTH // 2
        self.channels = channels
        self.head_conv = nn.Sequential(_conv(channels, half, 3), nn.Mish(), _conv(half, _WIDTH, 3, bias=True))
        self.in_blocks = nn.Sequential(*(_Block(1.5, 0.75) for _ in range(8)))
        self.upsample = _Upsample()
        self.out_blocks = nn.Sequential(*(_Block(2.0, 1.0) for _ in range(6)))
        self.tail_conv = nn.Sequential(_conv(_WIDTH, half, 1), nn.Mish(), _conv(half, channels, 3, bias=True))
        self.skip_conv = _conv(channels, channels, 5)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> LatentNetwork:
        """Return the network with these weights; raises KeyError or RuntimeError where they are not all of it."""
        with torch.device("meta"):
            network = cls(int(weights["skip_conv.weight"].shape[0]))
        network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        return network.eval().requires_grad_(False)

    def forward(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Return the latents at height x width."""
        detail = self.upsample(self.in_blocks(self.head_conv(latents)), height, width)
        plain = interpolate(latents, (height, width), mode="bicubic", align_corners=False)
        return self.tail_conv(self.out_blocks(detail)) + self.skip_conv(plain)  # type: ignore[no-any-return]


class _Norm(nn.Module):
    """Standardises each picture as a whole; gives its deviation too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(_WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), unbiased=False, keepdim=True)
        deviation = (variance + 1e-6).sqrt()
        return (x - mean) / deviation * self.weight[:, None, None], deviation


class _Block(nn.Module):
    """A residual of many values, eight to a gate. wider, narrower: its inner widths, in widths."""

    def __init__(self, wider: float, narrower: float) -> None:
        super().__init__()
        gates = math.ceil(math.ceil(wider * _WIDTH / 9) / 8) * 8
        middle = math.ceil(_WIDTH * narrower)
        self._parts = [8 * gates, gates]
        self.norm = _Norm()
        self.up = _conv(_WIDTH, 9 * gates, 1)
        self.down = _conv(8 * gates, middle, 1)
        self.mix = _conv(middle, _WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, deviation = self.norm(x)
        values, gates = self.up(y).split(self._parts, dim=1)
        gated = mish(values) * torch.tanh(0.5 * gates).repeat_interleave(8, dim=1)
        change: Tensor = self.mix(self.down(gated)) * deviation
        return x + change


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(4))


class _Upsample(nn.Module):
    """Doubles the sides, then takes the size asked for by filters made for each place, in two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.ps_expand = _conv(_WIDTH, 4 * _WIDTH, 1, bias=True)
        self.lift_expand = _conv(_WIDTH, 4 * 64, 1)
        self.lift_mix = _conv(64, _WIDTH, 3)
        self.refine = _Block(2.0, 1.0)
        self.base_taps = nn.Parameter(torch.empty(2, 2, _WIDTH, len(_TAPS)))  # rank, axis, channel
        self.pe = _Frequencies()
        self.axis_emb = nn.Embedding(2, 8)
        self.rank_emb = nn.Embedding(2, 8)
        self.filter_net = nn.Sequential(nn.Linear(25, 64), nn.Mish(), nn.Linear(64, _WIDTH * len(_TAPS)))
        self.rank_gain = nn.Parameter(torch.empty(2))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        doubled = pixel_shuffle(self.ps_expand(x), 2) + self.lift_mix(pixel_shuffle(self.lift_expand(x), 2))
        doubled = self.refine(doubled)
        down, across = self._filters(doubled.shape[-2], height, 0), self._filters(doubled.shape[-1], width, 1)
        gains = self.rank_gain.sigmoid()
        ranks = [_filtered(_filtered(doubled, *across, k).mT, *down, k).mT * gains[k] for k in range(len(gains))]
        return ranks[0] + ranks[1]

    def _filters(self, before: int, after: int, axis: int) -> tuple[Tensor, Tensor]:
        """Return neighbours (n, 4) and weights (2, C, n, 4) of `after` places along an axis: 0 down, 1 across."""
        device = self.base_taps.device
        places = (torch.arange(after, device=device, dtype=torch.float32) + 0.5) * (before / after) - 0.5
        nearest = places.floor().long().clamp(0, before - 1)
        angles = (places - nearest)[:, None] * self.pe.freqs * math.pi
        ratio = angles.new_full((after, 1), math.log2(max(before / after, 0.01)))
        about = torch.cat([angles.sin(), angles.cos(), ratio, self.axis_emb.weight[axis].expand(after, -1)], 1)
        of_ranks = [torch.cat([about, rank.expand(after, -1)], 1) for rank in self.rank_emb.weight]
        change = 0.2 * torch.tanh(self.filter_net(torch.stack(of_ranks)).view(2, after, _WIDTH, -1))
        change = change - change.mean(-1, keepdim=True)
        taps = (change + self.base_taps[:, axis, None]).transpose(1, 2)
        neighbours = nearest[:, None] + torch.tensor(_TAPS, device=device)
        return neighbours.clamp(0, before - 1), taps


def _filtered(x: Tensor, neighbours: Tensor, taps: Tensor, rank: int) -> Tensor:
    """Return (B, C, h, w) at as many columns as there are filters."""
    return torch.einsum("bchnk,cnk->bchn", x[..., neighbours], taps[rank])


def _conv(inputs: int, outputs: int, side: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, padding_mode="reflect", bias=bias)
