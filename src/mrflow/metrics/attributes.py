"""Does a picture of vista's world show what was asked? The inspector looks, attribute by attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrflow.errors import PromptError
from mrflow.vista.grammar import ATTRIBUTES, parse

if TYPE_CHECKING:
    from torch import Tensor

    from mrflow.vista.inspector import Inspector

GROUPS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in ATTRIBUTES},
    "scene": ("time", "season", "mountains", "foreground", "trees", "clouds"),
    "thing": ("object", "color", "side"),
    "all": tuple(ATTRIBUTES),
}
"""What shares are given for: each attribute, the scene, the coloured thing in it, and everything."""

_BATCH = 64


def asked(prompt: str, labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a picture of the prompt must show: the labels that came with it, else the prompt's own words.

    Raises PromptError for a label outside the grammar. A prompt that names no attribute asks for nothing, a
    prompt that names some asks for no object where it names none.
    """
    if labels is None:
        found = parse(prompt)
        return found if len(found) > 1 or found.get("object") != "none" else {}
    for name, value in labels.items():
        if value not in ATTRIBUTES.get(name, ()):
            known = ", ".join(ATTRIBUTES.get(name, ATTRIBUTES))
            raise PromptError(f"The label {name[:40]!r} is {value!r:.40}; known are {known}.")
    return dict(labels)


def as_indices(wanted: Sequence[Mapping[str, str]]) -> NDArray[np.int64]:
    """Return (pictures, attributes) indices into ATTRIBUTES' values, -1 where nothing is asked."""
    return np.array(
        [
            [values.index(row[name]) if name in row else -1 for name, values in ATTRIBUTES.items()]
            for row in wanted
        ],
        dtype=np.int64,
    )


def found(network: Inspector, images: Tensor) -> NDArray[np.int64]:
    """Return (pictures, attributes): what the inspector sees, as indices. images: (B, 3, H, W) in [0, 1]."""
    import torch

    return np.asarray(torch.cat([network.name(part * 2 - 1) for part in torch.split(images, _BATCH)]).numpy())


def hits(seen: NDArray[Any], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 where what is seen is wanted, 0 where not, NaN where nothing is asked (-1)."""
    return np.where(wanted >= 0, (seen == wanted).astype(np.float64), np.nan)


def features(network: Inspector, images: Tensor) -> NDArray[np.float64]:
    """Return (pictures, 256) of the inspector's features. images: (B, 3, H, W) in [0, 1]."""
    import torch

    with torch.no_grad():
        rows = torch.cat([network.features(part * 2 - 1) for part in torch.split(images, _BATCH)])
    return np.asarray(rows.double().numpy())


def patch_features(network: Inspector, images: Tensor) -> NDArray[np.float64]:
    """Return (pictures, patches, 256) of the features of patches at full resolution.

    images: (B, 3, H, W) in [0, 1], cut into squares of the inspector's own side from the top left, without what
    is left over at the right and bottom; none, shape (B, 0, 0), from smaller pictures. A whole picture is made
    smaller before the inspector looks, its patches are not: these features know texture, those of `features`
    know what a picture shows.
    """
    from mrflow.vista.inspector import SIDE

    rows = [
        features(network, images[..., y : y + SIDE, x : x + SIDE])
        for y in range(0, images.shape[2] - SIDE + 1, SIDE)
        for x in range(0, images.shape[3] - SIDE + 1, SIDE)
    ]
    return np.stack(rows, 1) if rows else np.empty((len(images), 0, 0))


def columns(group: str) -> list[int]:
    """Return the positions of a group's attributes."""
    names = list(ATTRIBUTES)
    return [names.index(name) for name in GROUPS[group]]
