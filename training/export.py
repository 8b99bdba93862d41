"""Write the averaged weights of a flow's training as a pipeline, whenever it is: the training may go on meanwhile.

python -m training.export runs/flow --out runs/flow/export
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL

from training.flow_model import WEIGHTS, Flow, load_flow, save_pipeline
from training.text import make_tokenizer


def load_average(run: Path) -> Flow:
    """Return the flow with the averaged weights of a run's last checkpoint."""
    flow = load_flow()[0].eval()
    state = torch.load(run / "state.pt", weights_only=True, map_location="cpu", mmap=True)
    flow.load_state_dict(state["modules"]["average"])
    return flow


def main(
    run: Annotated[Path, typer.Argument(help="Where the training keeps its state.")] = Path("runs/flow"),
    out: Annotated[Path, typer.Option(help="Where to write; the package's own folder ships them.")] = WEIGHTS,
) -> None:
    """Write the pipeline."""
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", dtype=torch.float32)
    save_pipeline(load_average(run), vae, make_tokenizer(), out)
    print(out)


if __name__ == "__main__":
    typer.run(main)
