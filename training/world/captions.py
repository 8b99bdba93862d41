"""Captions: how a scene is put into words."""

from __future__ import annotations

import numpy as np

from mrflow.vista.grammar import split_words

from .scene import Scene

MAX_TOKENS = 24
"""Longest caption in tokens, the end mark included."""

WORDS: tuple[str, ...] = (
    "<pad>", "<eos>", ",", "a", "an", "the", "and", "with", "on", "in", "at", "of", "by", "over", "under",
    "dawn", "sunrise", "noon", "midday", "bright", "day", "sunset", "dusk", "night", "moon",
    "green", "summer", "autumn", "snowy", "winter", "desert",
    "hills", "rolling", "mountains", "mountain", "jagged", "peaks",
    "lake", "meadow", "field", "dunes", "beach", "sandy", "sea",
    "few", "many", "pine", "round", "trees",
    "clear", "cloudy", "sky", "clouds",
    "hot", "air", "balloon", "sailing", "boat", "house",
    "red", "blue", "yellow", "white", "purple", "left", "right",
)  # fmt: skip
"""The closed vocabulary; "green" is a season before a place and a colour before an object."""

TIMES = {
    "dawn": ("at dawn", "at sunrise"),
    "noon": ("at noon", "at midday", "on a bright day"),
    "sunset": ("at sunset", "at sunset", "at dusk"),
    "night": ("at night", "at night", "under the moon"),
}
SEASONS = {
    "summer": ("green", "summer"),
    "autumn": ("autumn",),
    "winter": ("snowy", "winter"),
    "desert": ("desert",),
}
PLACES = {
    "lake": ("lake",),
    "meadow": ("meadow", "field"),
    "beach": ("beach", "sandy beach", "beach by the sea"),
}
MOUNTAINS = {"hills": ("hills", "rolling hills"), "peaks": ("mountains", "jagged mountains", "peaks")}
TREES = {"pines": "pine trees", "round": "round trees"}
CLOUDS = {
    "clear": ("under a clear sky", ", clear sky"),
    "cloudy": ("under a cloudy sky", ", cloudy sky", "under clouds"),
}
OBJECTS = {
    "balloon": ("hot air balloon", "balloon"),
    "boat": ("sailing boat", "boat"),
    "house": ("house",),
}
NEAR = {
    ("balloon", "lake"): "over", ("balloon", "meadow"): "over", ("balloon", "beach"): "over",
    ("boat", "lake"): "on", ("boat", "beach"): "by",
    ("house", "lake"): "by", ("house", "meadow"): "in",
}  # fmt: skip

MENTION = {"season": 0.93, "time": 0.94, "mountains": 0.94, "trees": 0.94, "many": 0.85, "side": 0.90}
"""How often a caption names what applies; the object and its colour are always named, so that a
caption without an object means a scene without one."""
MENTION_CLOUDS = 0.60


def caption(scene: Scene, rng: np.random.Generator, full: bool = False) -> str:
    """Return one of many ways to say what a scene shows, at most MAX_TOKENS tokens long.

    full: name every attribute that applies; otherwise some are left out now and then.
    """
    while True:  # most drafts fit, and short phrasings always do
        text = _draft(scene, rng, full)
        if len(split_words(text)) < MAX_TOKENS:
            return text


def _draft(scene: Scene, rng: np.random.Generator, full: bool) -> str:
    """Return one phrasing, perhaps too long."""

    def is_said(attribute: str) -> bool:
        return full or rng.random() < MENTION[attribute]

    place = _describe_place(scene, rng, is_said("season"))
    extras = []
    if scene.mountains == "peaks" and scene.foreground == "lake" and rng.random() < 0.3:
        place = place.replace("lake", "mountain lake")
    elif scene.mountains != "none" and is_said("mountains"):
        extras.append(_pick(rng, MOUNTAINS[scene.mountains]))
    if scene.trees != "none" and is_said("trees"):
        count = ("many " if scene.many else "a few ") if is_said("many") else ""
        extras.append(count + TREES[scene.trees])
    place = _with_article(place)
    time = _pick(rng, TIMES[scene.time]) if is_said("time") else ""
    thing = _describe_object(scene, rng, is_said("side"))
    if thing and rng.random() < 0.2:
        place = f"{thing} {NEAR[scene.object, scene.foreground]} {place}"
    elif thing:
        extras.append(thing)
    early = rng.random() < 0.75
    parts = [place, time if early else "", _join(extras), "" if early else time]
    text = " ".join(part for part in parts if part)
    if full or rng.random() < MENTION_CLOUDS:
        text += " " + _pick(rng, CLOUDS[scene.clouds])
    return text.replace(" ,", ",")


def _describe_place(scene: Scene, rng: np.random.Generator, with_season: bool) -> str:
    if scene.foreground == "beach":
        return _pick(rng, PLACES["beach"])
    if scene.foreground == "meadow" and scene.season == "desert":
        return _pick(rng, ("desert", "desert dunes", "desert of dunes"))
    place = _pick(rng, PLACES[scene.foreground])
    return f"{_pick(rng, SEASONS[scene.season])} {place}" if with_season else place


def _describe_object(scene: Scene, rng: np.random.Generator, with_side: bool) -> str:
    if scene.object == "none":
        return ""
    side = f" on the {scene.side}" if with_side else ""
    return f"a {scene.color} {_pick(rng, OBJECTS[scene.object])}{side}"


def _with_article(place: str) -> str:
    if place == "desert dunes":
        return place
    return f"an {place}" if place[0] in "aeiou" else f"a {place}"


def _join(extras: list[str]) -> str:
    """Return "with a, b and c"."""
    if not extras:
        return ""
    *first, last = extras
    return "with " + (f"{', '.join(first)} and {last}" if first else last)


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
