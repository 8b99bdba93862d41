"""The families as data, from families.toml: pipeline class, backbone, guidance, what a reader should know.

docs/models.md is written from this; see tools/write_models.py. No torch here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """One family. backbone: "module:class" in mrflow.backbones.

    guidance: how a Plan's guidance reaches the pipeline, and its default. note: what differs from the others.
    positions: of tiles: "true", those in the whole picture; "restart", of a picture of their own; "none".
    largest: pixels of the largest picture that is refined whole unless a plan says so, 0 where we don't know.
    """

    name: str
    backbone: str
    guidance: str
    note: str = ""
    positions: str = "true"
    largest: int = 0


TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))

FAMILIES: Mapping[str, FamilyFacts] = MappingProxyType(
    {name: FamilyFacts(**table) for name, table in TABLES["families"].items()}
)
VARIANTS: Mapping[str, list[str]] = MappingProxyType(TABLES["variants"])
"""Other pipeline classes of a family: class to the family's own class and its backbone."""
NOT_POSSIBLE: Mapping[str, str] = MappingProxyType(TABLES["not_possible"])
"""What cannot work, and why."""
WRONG_ARGUMENTS: Mapping[str, str] = MappingProxyType(TABLES["wrong_arguments"])
"""What cannot work with any pipeline whose call takes these arguments, and why."""
NOT_YET: Mapping[str, str] = MappingProxyType(TABLES["not_yet"])
"""Text-to-image pipelines that nobody has tried here, and what would be new about them."""
_INDEXED = 2**23
"""Pixels, of which the 256 channels of a usual autoencoder are 2**31 values: GPU kernels that count in 32 bits
(torch 2.7's upsampling among them) go no further."""


def largest_whole(pipeline_class: str) -> int:
    """Return the most pixels of a picture that a pipeline's networks are given whole unless a plan says so."""
    name = VARIANTS[pipeline_class][0] if pipeline_class in VARIANTS else pipeline_class
    return (FAMILIES[name].largest if name in FAMILIES else 0) or _INDEXED
