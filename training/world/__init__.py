"""Painted landscapes with captions: the world that the embedded model learns."""

from .captions import MAX_TOKENS, WORDS, caption, parse, split_words
from .paint import paint
from .scene import ATTRIBUTES, Scene, labels, sample_scene

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
