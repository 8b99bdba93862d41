"""Real-ESRGAN's networks in ncnn's two files, as the state dicts that spandrel knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_HALF = 0x01306B47  # the tag of float16; 0 is that of float32 (ncnn, src/modelbin.cpp)
_MAGIC = "7767517"


def read_ncnn(path: Path) -> dict[str, Tensor]:
    """Return the weights, float32, of the network in NAME.bin, whose layers stand in NAME.param beside it.

    Knows those of residual-in-residual dense blocks and the compact ones. Raises ValueError for any other file,
    OSError for one that is missing.
    """
    layers = list(_read_layers(path))
    compact = any("bias" not in layer for layer in layers)  # rectifiers with a slope for each channel
    names = [f"body.{k}" for k in range(len(layers))] if compact else _dense_names((len(layers) - 6) // 15)
    if len(names) != len(layers):
        raise ValueError(f"{len(layers)} layers are those of no network that is known here")
    return {
        f"{name}.{part}": each for name, layer in zip(names, layers, strict=True) for part, each in layer.items()
    }


def _dense_names(blocks: int) -> list[str]:
    ends = "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"
    inner = [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in (1, 2, 3) for k in range(1, 6)]
    return ["conv_first", *inner, *ends]


def _read_layers(path: Path) -> Iterator[dict[str, Tensor]]:
    """Yield each layer's weights in the order of the file: a convolution's and its bias, or a rectifier's."""
    magic, _, *lines = path.with_suffix(".param").read_text("ascii").splitlines()
    data, at = path.read_bytes(), 0
    if magic.strip() != _MAGIC:
        raise ValueError("the graph is of another format")

    def take(kind: str, count: int) -> Tensor:
        nonlocal at
        values = np.frombuffer(data, kind, count, at)
        at += (values.nbytes + 3) // 4 * 4
        return torch.from_numpy(values.astype(np.float32))

    for kind, _, inputs, outputs, *rest in filter(None, map(str.split, lines)):
        numbers = dict(each.split("=", 1) for each in rest[int(inputs) + int(outputs) :])
        if kind == "Convolution":
            count, side = int(numbers["0"]), int(numbers["1"])
            tag, at = int.from_bytes(data[at : at + 4], "little"), at + 4
            if tag not in (0, _HALF):
                raise ValueError(f"the weights are of the kind {tag:#x}")
            weight = take("<f2" if tag else "<f4", int(numbers["6"]))
            yield {"weight": weight.reshape(count, -1, side, side), "bias": take("<f4", count)}
        elif kind == "PReLU":
            yield {"weight": take("<f4", int(numbers["0"]))}
    if at != len(data):
        raise ValueError(f"{at} of its {len(data)} bytes are weights")
