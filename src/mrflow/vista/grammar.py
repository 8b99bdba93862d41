"""What a picture of vista's world can be asked for, and what a prompt asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_TABLES = tomllib.loads(Path(__file__).with_name("grammar.toml").read_text("utf-8"))
ATTRIBUTES: dict[str, tuple[str, ...]] = {name: tuple(values) for name, values in _TABLES["attributes"].items()}
"""Every attribute a picture can be asked about, with its values in label order."""


def split_words(text: str) -> list[str]:
    """Return the words of a caption in order, in lower case, with commas as words of their own."""
    return re.findall(r"[a-z]+|,", text.lower())


def parse(text: str) -> dict[str, str]:
    """Return the attributes that a caption asks for, as words from ATTRIBUTES.

    An attribute that is not named is absent, except `object`, which is then "none". Words outside the
    vocabulary are passed over.
    """
    words = split_words(text)
    found: dict[str, str] = {}
    for word in words:
        attribute, value = _MEANINGS.get(word, ("", ""))
        if attribute:
            found[attribute] = value
    _read_object(words, found)
    if "trees" in words:
        if "pine" in words:
            found["trees"] = "pines"
        elif "round" in words:
            found["trees"] = "round"
    if found.get("season") == "desert" and "foreground" not in found:
        found["foreground"] = "meadow"
    if found.get("foreground") == "meadow" and "dunes" in words:
        found["season"] = "desert"
    return found


_MEANINGS: dict[str, tuple[str, str]] = {
    word: (attribute, value)
    for attribute, values in _TABLES["words"].items()
    for value, words in values.items()
    for word in words
}


def _read_object(words: list[str], found: dict[str, str]) -> None:
    """Add the object and its colour; a "green" that belongs to no object means summer."""
    found["object"] = "none"
    painted = -1
    for index, word in enumerate(words):
        if word not in ATTRIBUTES["object"][1:]:
            continue
        found["object"] = word
        start = index - 1
        while start >= 0 and words[start] in ("hot", "air", "sailing"):
            start -= 1
        if start >= 0 and words[start] in ATTRIBUTES["color"]:
            painted = start
            found["color"] = words[start]
    if any(word == "green" and index != painted for index, word in enumerate(words)):
        found.setdefault("season", "summer")
    if found["object"] == "none":
        found.pop("side", None)
