"""Pictures beside others: the same seed by another method, other seeds of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrflow.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MAX_PSNR = 100.0
"""dB given for equal pictures, whose ratio is infinite."""
_SIDE = 64  # pixels at which pictures are told apart: what they show, not their grain
_MIN_SIDE = 11  # of the window of SSIM


def check_similarity() -> None:
    """Raise MissingExtraError unless scikit-image is installed."""
    from importlib.util import find_spec

    if find_spec("skimage") is None:
        raise MissingExtraError("scikit-image", "bench")


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB pictures of one size in dB, MAX_PSNR at most."""
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

    a, b = _array(image), _array(other)
    if mean_squared_error(a, b) == 0:
        return MAX_PSNR
    return min(float(peak_signal_noise_ratio(a, b, data_range=255)), MAX_PSNR)


def ssim(image: Image.Image, other: Image.Image) -> float | None:
    """Return the structural similarity of two RGB pictures of one size, None where a side is under 11 pixels.

    With the Gaussian window of the original. Source: Wang et al. 2004, through scikit-image.
    """
    from skimage.metrics import structural_similarity

    if min(image.size) < _MIN_SIDE:
        return None
    return float(
        structural_similarity(
            _array(image),
            _array(other),
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def reduce(image: Tensor) -> Tensor:
    """Return a picture (3, H, W) in [0, 1] at 64 x 64, where `diversity` looks."""
    from torch.nn.functional import interpolate

    return interpolate(image[None].double(), (_SIDE, _SIDE), mode="bilinear", antialias=True)[0]


def diversity(images: Sequence[Tensor]) -> float:
    """Return the mean distance of each two reduced pictures, at least 2.

    The distance is the root of the mean squared difference, in levels of 255.
    """
    pairs = [255 * float((a - b).square().mean().sqrt()) for a, b in combinations(images, 2)]
    return sum(pairs) / len(pairs)


def _array(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), dtype=np.float64)
