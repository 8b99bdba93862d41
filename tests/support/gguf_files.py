"""Files of packed weights."""

from __future__ import annotations

from pathlib import Path

import torch


def write_gguf(path: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write weights, those that can be in 8 bits, and return them as they are then."""
    import gguf

    kind, rounded = gguf.GGMLQuantizationType.Q8_0, {}
    writer = gguf.GGUFWriter(path, "flux")
    for name, weight in weights.items():
        data = weight.numpy()
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(data, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            rounded[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        else:
            writer.add_tensor(name, data)
            rounded[name] = weight
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded
