"""The Frechet distance of features to those of fresh renders, and the file with the renders' statistics.

Of whole pictures, as the FID has it, and of patches at full resolution, which alone tell sharp from soft.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrflow.errors import ModelError
from mrflow.metrics.intervals import Estimate, Floats, interval

ROUNDS = 100
"""Draws of an interval; each takes the roots of a D x D matrix."""

VIEWS = ("pictures", "patches")
"""What the statistics are of: whole pictures, and patches at full resolution."""


@dataclass(frozen=True)
class Gaussian:
    """Features taken as Gaussian. mean: (D,). covariance: (D, D). count: of the pictures they come from."""

    mean: Floats
    covariance: Floats
    count: int

    @classmethod
    def of(cls, features: Floats) -> Gaussian:
        """Return mean and covariance of (N, D) features, N at least 2."""
        return cls(features.mean(0), np.cov(features.T, dtype=np.float64), len(features))


class Reference:
    """What pictures are held against, prepared so that many distances to it cost little."""

    def __init__(self, gaussian: Gaussian) -> None:
        """Prepare the root of the covariance."""
        self.gaussian = gaussian
        values, vectors = np.linalg.eigh(gaussian.covariance)
        self._root = vectors * np.sqrt(values.clip(0)) @ vectors.T

    def distance(self, features: Floats) -> float:
        """Return the squared Frechet distance of (N, D) features, as the FID has it.

        |mean gap|^2 + tr(A) + tr(B) - 2 tr(sqrt(A B)), the last by the eigenvalues of sqrt(A) B sqrt(A). It is
        biased upwards by small N: compare sets of the same size only. Source: arXiv 1706.08500.
        """
        own, other = self.gaussian, Gaussian.of(features)
        gap = own.mean - other.mean
        cross = np.sqrt(np.linalg.eigvalsh(self._root @ other.covariance @ self._root).clip(0)).sum()
        return float(gap @ gap + np.trace(own.covariance) + np.trace(other.covariance) - 2 * cross)


@dataclass(frozen=True)
class Distance:
    """A Frechet distance. drawn: that of pictures drawn anew, the same draws for all sets of a size."""

    value: float
    drawn: Floats

    @classmethod
    def of(cls, features: Floats, reference: Reference, *, rounds: int = ROUNDS) -> Distance:
        """Return the distance of features (N, ..., D) of N pictures, each drawn with all that is of it."""
        rng = np.random.default_rng(0)
        count, depth = len(features), features.shape[-1]
        draws = (features[rng.integers(count, size=count)] for _ in range(rounds))
        drawn = [reference.distance(each.reshape(-1, depth)) for each in draws]
        return cls(reference.distance(features.reshape(-1, depth)), np.array(drawn))

    def less(self, other: Distance) -> Estimate:
        """Return this less another of as many pictures, in pairs."""
        return interval(self.value - other.value, self.drawn - other.drawn)


def renders_of(side: int) -> Path:
    """Return the file of the statistics of fresh renders of side x side, made by `python -m training.renders`.

    Mean and covariance of the inspector's features. Patches are seen at full resolution, so that each size has its
    own.
    """
    return Path(__file__).parents[1] / "vista" / f"renders-{side}.safetensors"


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes; raises ModelError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True)
class Renders:
    """What is known of fresh renders, by the inspector's features.

    pictures: of whole pictures. patches: of `patch_features`. accuracy: attribute to the share named rightly.
    """

    pictures: Gaussian
    patches: Gaussian
    accuracy: Mapping[str, float]


def read_renders(inspector: Path, path: Path) -> Renders:
    """Return the renders' statistics; raises ModelError if they are missing, damaged or of another inspector."""
    from safetensors import SafetensorError, safe_open

    way_out = "Make it with: python -m training.renders"
    if not path.is_file():
        raise ModelError(f"There is no {path}, the statistics of fresh renders. {way_out}")
    try:
        with safe_open(path, framework="np") as file:
            notes = file.metadata() or {}
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
        accuracy = json.loads(notes["accuracy"])
        gaussians = {
            name: Gaussian(arrays[f"{name}.mean"], arrays[f"{name}.covariance"], int(notes[f"{name}.count"]))
            for name in VIEWS
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path} holds no statistics of renders: {error}. {way_out}") from None
    if notes.get("inspector_sha256") != file_sha256(inspector):
        raise ModelError(f"{path} was made with another inspector than {inspector.name}. {way_out}")
    return Renders(**gaussians, accuracy=accuracy)
