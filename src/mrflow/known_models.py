"""Models known by a short name: where they are published, what they are, what they need.

Everybody who takes the name of a model asks here. No torch, and nothing is fetched.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

BITS = {"whole": 16, "8-bit": 8, "4-bit": 4}
"""Of a weight of the transformer and the text encoders, by how a model may be held."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A published checkpoint. name: to type. id: on the Hugging Face hub. pipeline: its class in diffusers.

    licence: "" where we don't know it. gated: to be accepted on its page by somebody who is logged in.
    architecture: a file in mrflow/architectures, "" for none. options: of the pipeline, as its model_index.json
    has them. steps: of the plain pipeline. parameters: billions by part: transformer, text, vae; empty where we
    don't know them. float32: the parts whose files hold 4 bytes a weight instead of 2.
    """

    name: str
    id: str
    pipeline: str
    licence: str = ""
    gated: bool = False
    architecture: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 50
    parameters: Mapping[str, float] = field(default_factory=dict)
    float32: tuple[str, ...] = ()

    @property
    def download(self) -> int | None:
        """Bytes that loading it fetches, calculated from the parameters; None where we don't know."""
        sizes = [self.stored(part, count * 1e9) for part, count in self.parameters.items()]
        return sum(sizes) if sizes else None

    def stored(self, part: str, count: float) -> int:
        """Return the bytes that so many weights of a component take in its files."""
        return round(count) * (4 if part.startswith(self.float32) else 2)

    def weights(self, held: str = "whole") -> int | None:
        """Return the bytes of its weights in memory, `held` as one of BITS; the autoencoder always whole.

        Quantised weights carry scales besides, up to an eighth more at 4 bits. None where we don't know.
        """
        bits = [count * (16 if part == "vae" else BITS[held]) for part, count in self.parameters.items()]
        return round(sum(bits) * 1e9 / 8) if bits else None


def _read() -> dict[str, KnownModel]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    tables = {name: {**table, "float32": tuple(table.get("float32", ()))} for name, table in tables.items()}
    return {name: KnownModel(name=name, **table) for name, table in tables.items()}


KNOWN: Mapping[str, KnownModel] = MappingProxyType(_read())
BY_ID: Mapping[str, KnownModel] = MappingProxyType({each.id.lower(): each for each in KNOWN.values()})
FILES = (".safetensors", ".gguf")
"""What the names of single files end in, of transformers or whole checkpoints."""


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_ADDRESS = re.compile(rf"(?:https?://)?(?:huggingface\.co|hf\.co)/({HUB_ID.pattern})(?:/tree/main)?/?", re.ASCII)


def find(name: str) -> KnownModel | None:
    """Return the model of a short name or a hub id."""
    return BY_ID.get(full_name(name).lower())


def is_file(source: str | Path) -> bool:
    """Return whether this is a single file of weights."""
    return str(source).lower().endswith(FILES) and os.path.isfile(source)


def full_name(name: str) -> str:
    """Return the hub id of a short name or of a page's address; anything else as it is."""
    name = found[1] if (found := _ADDRESS.fullmatch(name)) else name
    short = name.lower().replace("_", "-")
    return KNOWN[short].id if short in KNOWN else name


def meant(name: str, known: Iterable[str] = ("vista", "vista-turbo", *KNOWN)) -> str:
    """Return " Did you mean flux-dev?" with three known names that hold `name` or look like it, or nothing."""
    by_lower = {each.lower(): each for each in known}
    holding = sorted((each for each in by_lower if name and name.lower() in each), key=len)[:3]
    near = holding or get_close_matches(name.lower(), by_lower, cutoff=0.5)
    return f" Did you mean {' or '.join(by_lower[each] for each in near)}?" if near else ""
