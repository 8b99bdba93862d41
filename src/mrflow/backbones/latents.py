"""The few layouts of latents that families share, and the few autoencoders: which one is data of a family.

A layout knows how latents (B, C, H, W) go into a pipeline and come out of it; an autoencoder how pixels become
latents in which a sigma means what it says, that is with about unit variance, and back.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mrflow.backbones import Pipeline


class Layout(Protocol):
    """How a pipeline takes and gives latents. about: a few words for the documentation."""

    about: str

    def multiple(self, pipe: Pipeline) -> int:
        """Return the pixels by whose multiples picture sides are whole patches."""

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents as the pipeline takes them."""

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline gives as latents for the autoencoder, of a width x height picture."""


class Packed:
    """Tokens of 2x2 latents, (B, H/2 * W/2, 4C), by the pipeline's own `_pack_latents`."""

    about = "packed 2x2"

    def multiple(self, pipe: Pipeline) -> int:
        """Return 16 for an autoencoder of factor 8."""
        return int(pipe.vae_scale_factor) * 2

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents as tokens."""
        return cast("Tensor", pipe._pack_latents(latents, *latents.shape))

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return tokens as (B, C, H, W) latents, (B, C, 1, H, W) where the autoencoder is one of videos."""
        return cast("Tensor", pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor))


class Plain:
    """Latents as they are. patches: latents per side of a patch."""

    about = "plain"

    def __init__(self, patches: int = 1) -> None:
        self._patches = patches

    def multiple(self, pipe: Pipeline) -> int:
        """Return the autoencoder's factor times the transformer's patch."""
        return int(pipe.vae_scale_factor) * self._patches

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the latents."""
        return latents


class Autoencoder(Protocol):
    """Pixels in [0, 1] to latents of about unit variance, and back. about: a few words for the documentation."""

    about: str

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) pixels as float32 latents (B, C, H, W): the posterior's mode, normalised."""

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents, as a layout unpacks them, as float32 pixels in [0, 1]."""


class ScaledVae:
    """AutoencoderKL: (mode - shift_factor) * scaling_factor. AutoencoderDC, which has no posterior, alike."""

    about = "scale and shift"

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return pixels as latents: (mode - shift) * scale."""
        encoded = vae.encode((pixels * 2 - 1).to(vae.dtype))
        mode = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return cast("Tensor", (mode.float() - _shift(vae)) * vae.config.scaling_factor)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as pixels."""
        raw = latents / vae.config.scaling_factor + _shift(vae)
        return to_unit(vae.decode(raw.to(vae.dtype)).sample)


class StandardisedVae:
    """A video autoencoder with a mean and a deviation per channel; a picture is a video of one frame."""

    about = "mean and std per channel, 5-D"

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return pixels as latents: (mode - mean) / std."""
        mode = vae.encode((pixels * 2 - 1).unsqueeze(2).to(vae.dtype)).latent_dist.mode().float()
        mean, std = _statistics(vae, mode)
        return cast("Tensor", ((mode - mean) / std).squeeze(2))

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return (B, C, 1, H, W) latents as pixels."""
        mean, std = _statistics(vae, latents)
        raw = self.scaled(latents, std) + mean
        return to_unit(vae.decode(raw.to(vae.dtype)).sample[:, :, 0])

    def scaled(self, latents: Tensor, std: Tensor) -> Tensor:
        """Return latents * std, as most pipelines compute it to the last bit."""
        return latents / (1.0 / std)


def to_unit(pixels: Tensor) -> Tensor:
    """Return pixels in [-1, 1] as float32 in [0, 1], clamped."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (vae.config.latents_mean, vae.config.latents_std))
    return mean.to(like.device, like.dtype), std.to(like.device, like.dtype)
