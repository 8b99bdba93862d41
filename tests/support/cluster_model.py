"""The models that the workers of test_batch_cluster.py load, in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conftest import make_fast, make_pipe
from mrflow import MrFlow, batches

UNLUCKY = 13  # a seed


def load(folder: Path, device: str) -> MrFlow:
    """Return the tiny model, on which seed 13 can't be finished. folder: gets a file named by the process."""
    assert device == "cpu"
    finish = batches.finish_drafts

    def picky(run: Any, drafts: Any) -> Any:
        if drafts[0].base_recipe.seed == UNLUCKY:
            raise RuntimeError("no thirteens")
        return finish(run, drafts)

    batches.finish_drafts = picky
    (folder / str(os.getpid())).touch()
    return make_fast(make_pipe())


def load_nothing(device: str) -> MrFlow:
    """Raise what a worker without the model's files would."""
    raise OSError("the shared folder is not mounted")
