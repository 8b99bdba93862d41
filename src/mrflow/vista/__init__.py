"""vista: the small model inside the package, of FLUX's architecture, for seeing and measuring the method.

It paints landscapes from captions of a small grammar, and nothing else; see weights/README.md, its model
card. `MrFlow.from_pretrained("vista")` loads it, `"vista-turbo"` its student of four steps without guidance.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from mrflow.errors import ModelError
from mrflow.plan import Defaults, Plan

_HERE = Path(__file__).parent

_VISTA = Defaults(
    width=512,
    height=512,
    # Guided where it pays, in the first steps of the draft (training/README.md); each other step costs half.
    # With 3 no more is found, and pictures are told from renders more often. UniPC's drafts are sharper and nearer
    # to renders than Euler's, at the same cost (docs/log.md).
    plan=Plan(true_cfg_scale=2.0, refine_true_cfg_scale=1.0, guidance_stop=0.33, solver="unipc"),
    max_sequence_length=24,  # captions of the grammar are shorter; trained at this length
)
_TURBO = replace(_VISTA, plan=Plan(steps=4, true_cfg_scale=1.0), native_steps=4, learned_steps=4)
DEFAULTS = {"vista": _VISTA, "vista-turbo": _TURBO}
"""Of the models in this package, by name."""
_FOLDERS = {"vista": "weights", "vista-turbo": "turbo"}


def available() -> bool:
    """Return whether the weights are in this installation."""
    folders = all((_HERE / each / "model_index.json").is_file() for each in _FOLDERS.values())
    return folders and _upscaler().is_file()


def folder(name: str = "vista") -> Path:
    """Return a model's folder, in diffusers' layout; raises ModelError if the weights are missing."""
    return _present(_HERE / _FOLDERS[name], "model_index.json")


def upscaler() -> Path:
    """Return the file of its x2 upscaler network; raises ModelError if it is missing."""
    return _present(_upscaler())


@cache
def words() -> frozenset[str]:
    """Return the words that vista knows, from its tokenizer's vocabulary."""
    with _present(folder() / "tokenizer_2", "tokenizer.json").joinpath("tokenizer.json").open("rb") as file:
        vocabulary = json.load(file)["model"]["vocab"]
    return frozenset(word for word in vocabulary if word.isalpha())


@cache
def revision(name: str = "vista") -> str:
    """Return 12 hexadecimal digits that change whenever the model's files do."""
    digest = hashlib.sha256()
    for path in sorted(folder(name).rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.relative_to(_HERE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _upscaler() -> Path:
    return _HERE / "upscaler" / "vista-x2.safetensors"


def _present(path: Path, inside: str = "") -> Path:
    if not (path / inside).exists():
        raise ModelError(
            f"vista's file {path / inside} is missing from this installation. Install mrflow again, "
            "or make the model with the commands in training/README.md."
        )
    return path
