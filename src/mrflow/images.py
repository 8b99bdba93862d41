"""Pixels: images as tensors and back, crops, grids and the hash that tells two pictures apart.

An image is a Pillow image of mode RGB; a tensor is (B, 3, h, w), float32, in [0, 1].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from mrflow.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Return RGB images of one size as a (B, 3, h, w) float32 tensor in [0, 1] on the CPU.

    Raises ImageError if the sizes differ.
    """
    import numpy as np
    import torch

    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        shown = ", ".join(f"{w}x{h}" for w, h in sizes) or "none"
        raise ImageError(f"The images' sizes are {shown}; one batch has one size. Crop or resize them first.")
    rows = [torch.from_numpy(np.array(image.convert("RGB"))) for image in images]
    return torch.stack(rows).permute(0, 3, 1, 2).float() / 255


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Return (B, 3, h, w) pixels, clamped to [0, 1] and rounded to 8 bits, as RGB images."""
    levels = pixels.detach().float().clamp(0, 1).mul_(255).round_().byte()
    return [Image.fromarray(row.permute(1, 2, 0).contiguous().cpu().numpy()) for row in levels]


def crop_to_aspect(pixels: Tensor, width: int, height: int) -> Tensor:
    """Return the largest centred part of (B, 3, h, w) pixels with the aspect ratio of width x height."""
    h, w = pixels.shape[-2:]
    factor = min(w / width, h / height)
    new_w, new_h = (min(max(round(side * factor), 1), most) for side, most in ((width, w), (height, h)))
    left, top = (w - new_w) // 2, (h - new_h) // 2
    return pixels[..., top : top + new_h, left : left + new_w]


def make_grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 8) -> Image.Image:
    """Return the images on one white sheet, row by row, `gap` pixels apart, each in a cell of the largest size.

    columns: None makes the sheet about square. Raises ImageError if there are no images.
    """
    if not images:
        raise ImageError("There are 0 images; a grid needs at least one.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    w, h = max(i.width for i in images), max(i.height for i in images)
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (w + gap), row * (h + gap)))
    return sheet


def pixels_sha256(image: Image.Image) -> str:
    """Return the SHA-256 of the image's 8-bit RGB values, row by row, preceded by its size."""
    head = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(head + image.convert("RGB").tobytes()).hexdigest()
