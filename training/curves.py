"""Draw the training logs: `python -m training.curves` writes docs/images/training.png."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

from training.track import LOGS
from training.world import ATTRIBUTES

FILE = Path("docs/images/training.png")


def read_log(name: str) -> list[dict[str, float]]:
    """Return the reports of one training, oldest first."""
    return [json.loads(line) for line in (LOGS / f"{name}.jsonl").read_text().splitlines()]


def series(log: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Return minutes of training and values of `key` where it was reported."""
    found = [(line["seconds"] / 60, line[key]) for line in log if key in line]
    return [x for x, _ in found], [y for _, y in found]


def main() -> None:
    """Draw loss and scores of the flow, and the quality of decoder and upscaler, over minutes of training."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    flow = read_log("flow")
    for key, label in (("small", "128"), ("large", "256"), ("largest", "384 and 512")):
        axes[0, 0].plot(*series(flow, key), label=label, linewidth=1)
    axes[0, 0].set(title="Flow: velocity error, by pixels of a side", ylabel="mean square", ylim=(0.25, 1.0))
    for name in (*ATTRIBUTES, "mean"):
        style = {"color": "black", "linewidth": 2} if name == "mean" else {"linewidth": 1}
        axes[0, 1].plot(*series(flow, name), label=name, marker=".", **style)
    axes[0, 1].set(title="Flow: asked attributes found by the inspector", ylim=(0, 1.02))
    axes[1, 0].plot(*series(read_log("autoencoder"), "psnr"), color="tab:green")
    axes[1, 0].set(title="Decoder, held-out pictures at 256", ylabel="PSNR in dB")
    for name, key, label in (
        ("upscaler", "net_edges", "upscaler"),
        ("upscaler", "bicubic_edges", "bicubic"),
        ("autoencoder", "edges", "decoder"),
    ):
        axes[1, 1].plot(*series(read_log(name), key), label=label)
    axes[1, 1].set(title="Edge energy relative to the truth")
    for axis in axes.flat:
        axis.set_xlabel("minutes of training")
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8, ncols=2)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FILE, dpi=110)


if __name__ == "__main__":
    main()
