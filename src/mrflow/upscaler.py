"""How pictures get larger: a pretrained network, or plain interpolation as a baseline, of pixels or of latents.

Networks of pixels come from files that spandrel recognises (Real-ESRGAN and its kin), given by path or by a known
name, those of latents from SesquiLSR's files, and from nowhere else: only tensors are read from them, never code.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mrflow.errors import UpscalerError, UpscalerNameError
from mrflow.jobs import Size
from mrflow.known_models import meant
from mrflow.known_upscalers import KNOWN, METHODS, KnownUpscaler, check, fetch, usual
from mrflow.latent_upscaler import LatentNetwork, is_latent_network
from mrflow.ncnn import read_ncnn
from mrflow.tiles import in_tiles

MAX_FILE_BYTES = 2**30  # the largest published networks (DAT, HAT-L) have less than 200 MB
TILE = 1024  # input pixels a side; larger pictures are cut, so that memory stays bounded
OVERLAP = 32  # input pixels shared by neighbouring tiles and blended
ALIGN = 32  # tiles begin on multiples of it, so that pixels fall into the same windows as in the whole

_NAMES = f"Known names: {', '.join((*METHODS, *KNOWN))}."


class Upscaler:
    """A way to enlarge pictures to an exact size, as pixels or as latents.

    name: file name, known name or method. sha256: of the file, None for interpolation. latents: whether it
    enlarges latents instead of pixels. channels: of the latents that a network enlarges. factor: of a network of
    pixels. pending: the known one that is still to be read.
    """

    def __init__(self, name: str, network: Any = None, sha256: str | None = None, *, tile: int = TILE) -> None:
        """Wrap a spandrel image network or one of latents, or the method `name` if there is none."""
        if network is None and name not in METHODS:
            raise UpscalerNameError(f"There is no method {name!r}. {_NAMES}")
        if tile <= 2 * OVERLAP:
            raise UpscalerError(f"tile is {tile}; it must be more than {2 * OVERLAP} pixels. Try {TILE}.")
        self.name = name
        self.sha256 = sha256
        self.channels: int | None = getattr(network, "channels", None)
        self.latents = self.channels is not None or (network is None and name == "latent")
        self.factor: int | None = None if network is None or self.latents else int(network.scale)
        self.tile = tile
        self.pending: KnownUpscaler | None = None
        self._network = network

    @property
    def network(self) -> Any:
        """spandrel's network, None for interpolation."""
        return self._network

    @classmethod
    def load(cls, source: Upscaler | str | Path, *, tile: int = TILE) -> Upscaler:
        """Return an upscaler from a method's or a known name or a .safetensors or .pth file (or `source` itself).

        Known names are those of `mrflow.known_upscalers`; their files are fetched on first use. Real-ESRGAN's in
        ncnn's format are a .bin with its .param beside it.

        Raises UpscalerError if the file is missing, too large, holds more than weights, or is neither a network of
        latents nor a 3-channel enlarging one that spandrel knows.
        """
        if isinstance(source, Upscaler):
            return source
        if isinstance(source, str) and source in METHODS:
            return cls(source)
        known = KNOWN.get(source) if isinstance(source, str) else None
        path = fetch(known) if known else Path(source)
        check_file(path)
        digest = _sha256(path)
        if known:
            check(known, digest)
        network = _build(_read_weights(path), path)
        return cls(known.name if known else path.name, network, digest, tile=tile)

    @classmethod
    def usual(cls) -> Upscaler:
        """Return the method's own, Real-ESRGAN as it is at hand; read, or fetched once, when first needed."""
        known = usual()
        made = cls("bicubic")
        made.name, made.sha256, made.pending = known.name, known.sha256, known
        return made

    def ready(self) -> Upscaler:
        """Return itself with its network read. Raises UpscalerError as `load` does."""
        if self.pending is not None:
            vars(self).update({**vars(Upscaler.load(self.pending.name)), "pending": None})
        return self

    @classmethod
    def from_weights(cls, weights: dict[str, Any], name: str) -> Upscaler:
        """Return an upscaler from a network's weights in memory; raises UpscalerError as `load` does."""
        return cls(name, _build(weights, Path(name)))

    def upscale(self, pixels: Tensor, width: int, height: int, tile: int | None = None) -> Tensor:
        """Return pixels at exactly width x height.

        pixels: (B, 3, h, w) in [0, 1]; the result is (B, 3, height, width) in [0, 1], float32, same device.
        The network runs as often as needed to reach the size; an antialiased resize takes the rest. Where no
        side grows, only the resize runs. tile: of the larger picture, pixels a side that a network makes at once.
        """
        self.ready()
        pixels = pixels.float()
        if self._network is not None:
            self._place(pixels.device)
            while pixels.shape[-1] < width or pixels.shape[-2] < height:
                pixels = self._enlarge(pixels, tile)
        if pixels.shape[-2:] == (height, width):
            return pixels
        if self._network is None and self.name == "lanczos":
            return _lanczos(pixels, height, width).clamp(0, 1)
        mode = cast("Literal['bicubic', 'bilinear']", "bicubic" if self._network is not None else self.name)
        return resize(pixels, width, height, mode).clamp(0, 1)

    def upscale_latents(self, latents: Tensor, before: Size, after: Size) -> Tensor:
        """Return latents (B, C, h, w) as those of a larger picture, float32, same device; for lifts of latents.

        before, after: of the pictures, width and height in pixels. A network runs as often as needed, for one
        picture at a time. Raises UpscalerError for less than 2 x 2.
        """
        latents = latents.float()
        width, height = (latents.shape[-1 - k] * after[k] // before[k] for k in (0, 1))
        if self._network is None:  # as latents have been enlarged wherever they are: without antialiasing
            return F.interpolate(latents, (height, width), mode="bicubic", align_corners=False)
        rows, columns = latents.shape[-2:]
        if min(rows, columns) < 2:
            raise UpscalerError(f"{self.name} needs latents of 2x2 or more; these are {columns}x{rows}.")
        self._network.to(latents.device)
        while (rows, columns) != (height, width):
            rows, columns = min(2 * rows, height), min(2 * columns, width)
            latents = torch.cat([self._network(row, rows, columns) for row in torch.split(latents, 1)])
        return latents

    def _place(self, device: torch.device) -> None:
        # Half precision only where hardware has it, and bfloat16 before float16, which overflows in some
        # networks. On a CPU without it, bfloat16 is many times slower than float32.
        half = device.type == "cuda" and self._network.supports_bfloat16 and has_bfloat16(device)
        dtype = torch.bfloat16 if half else torch.float32
        if self._network.device != device or self._network.dtype != dtype:
            self._network.to(device, dtype)
            layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
            self._network.model.to(memory_format=layout)  # what convolutions in half precision run fastest in

    def _enlarge(self, pixels: Tensor, most: int | None) -> Tensor:
        """Run the network once, whole or in overlapping tiles, `most` pixels a side of what it makes."""
        height, width = pixels.shape[-2:]
        tile = min(self.tile, max(most // cast("int", self.factor), 4 * OVERLAP)) if most else self.tile
        if height <= tile and width <= tile:
            return self._run(pixels)
        align = math.lcm(ALIGN, self._network.size_requirements.multiple_of)
        run = lambda y, x: self._run(pixels[..., y, x])  # noqa: E731
        return in_tiles(run, height, width, tile, OVERLAP, align, shrink=True)

    def _run(self, pixels: Tensor) -> Tensor:
        # One picture at a time: spandrel's contract, and a batch then equals its single pictures exactly.
        parts = [self._network(row.to(self._network.dtype)).float() for row in torch.split(pixels, 1)]
        made = torch.cat(parts)
        return made.clamp(0, 1) + made * 0  # what is infinite becomes nan, not white


def resize(pixels: Tensor, width: int, height: int, mode: Literal["bicubic", "bilinear"]) -> Tensor:
    """Return (B, C, h, w) pixels at another size, antialiased; on the CPU where the device cannot.

    A Mac's GPU cannot with the oldest torch that we allow (aten::_upsample_bicubic2d_aa, 2.7.1).
    """
    try:
        return F.interpolate(pixels, size=(height, width), mode=mode, antialias=True, align_corners=False)
    except NotImplementedError:
        if pixels.device.type == "cpu":
            raise
        return resize(pixels.cpu(), width, height, mode).to(pixels.device)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU computes in bfloat16 itself: NVIDIA's since Ampere (no T4, V100 or GTX 16), AMD's.

    Apple's does since macOS 14.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "mps" or bool(torch.backends.mps.is_macos_or_newer(14, 0))


def _lanczos(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 3, h, w) pixels at height x width by Lanczos' window of three lobes, as Pillow has it."""
    down, across = _lanczos_weights(pixels.shape[-2], height), _lanczos_weights(pixels.shape[-1], width)
    return down.to(pixels) @ pixels @ across.to(pixels).T


def _lanczos_weights(before: int, after: int) -> Tensor:
    """Return (after, before), what each old position adds to each new one along a side; wider where it shrinks."""
    ratio = before / after
    centers = (torch.arange(after, dtype=torch.float64) + 0.5) * ratio
    positions = torch.arange(before, dtype=torch.float64) + 0.5
    distance = (positions[None] - centers[:, None]) / max(ratio, 1.0)
    weights = torch.where(distance.abs() < 3, torch.sinc(distance) * torch.sinc(distance / 3), 0.0)
    return weights / weights.sum(1, keepdim=True)


def check_file(path: Path) -> None:
    """Raise UpscalerError unless `path` may be a weights file: there, of a known kind, not too large."""
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        known = f"{meant(path.name, KNOWN)} Give a .safetensors or .pth file. {_NAMES}"
        raise UpscalerNameError(f"There is no upscaler file {str(path) * bool(path.name)!r}.{known}")
    ncnn = path.suffix == ".bin" and path.with_suffix(".param").is_file()
    if path.suffix.lower() not in (".safetensors", ".pth") and not ncnn:
        raise UpscalerNameError(
            f"{path} ends in {path.suffix!r}; it must be a .safetensors or .pth file. {_NAMES}"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UpscalerError(f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read.")


def _read_weights(path: Path) -> dict[str, Any]:
    """Return what the file holds, tensors only: a pickle with any other object is refused unread."""
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        if path.suffix == ".bin":
            return dict(read_ncnn(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old zip-less files, which are fine
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file raises many kinds
        raise UpscalerError(
            f"{path} cannot be read as plain weights; it is damaged or holds more than weights. "
            "Take a .safetensors file from a source you trust."
        ) from error
    if not isinstance(weights, dict):
        raise UpscalerError(f"{path} holds a {type(weights).__name__}; it must hold a network's weights.")
    return weights


def _build(weights: dict[str, Any], path: Path) -> Any:
    if is_latent_network(weights):
        try:
            return LatentNetwork.of(weights)
        except Exception as error:  # whatever stands under those names
            raise UpscalerError(f"{path} is no whole network of SesquiLSR's. Take it from its makers.") from error
    from spandrel import ImageModelDescriptor, ModelLoader, canonicalize_state_dict

    try:
        network = ModelLoader().load_from_state_dict(canonicalize_state_dict(weights))
    except Exception as error:  # spandrel's detectors trip over foreign keys in many ways
        raise UpscalerError(f"{path} is no upscaler that spandrel knows. Try a Real-ESRGAN file.") from error
    if not isinstance(network, ImageModelDescriptor) or network.scale < 2:
        raise UpscalerError(f"{path} is a {network.architecture.name} network that does not enlarge pictures.")
    if (network.input_channels, network.output_channels) != (3, 3):
        raise UpscalerError(f"{path} works on {network.input_channels} channels; it must work on RGB, 3.")
    return network.eval()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UpscalerError(f"{path} cannot be read: {error.strerror}.") from error
