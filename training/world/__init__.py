"""Painted landscapes with captions: the world that the embedded model learns."""

from mrflow.vista.grammar import ATTRIBUTES, parse, split_words

from .captions import MAX_TOKENS, WORDS, caption
from .paint import paint
from .scene import Scene, labels, sample_scene

__all__ = [
    "ATTRIBUTES",
    "MAX_TOKENS",
    "WORDS",
    "Scene",
    "caption",
    "labels",
    "paint",
    "parse",
    "sample_scene",
    "split_words",
]
