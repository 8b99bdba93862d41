"""What a picture shows: the attributes of a scene, their rules, and a way to draw one at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrflow.vista.grammar import ATTRIBUTES


@dataclass(frozen=True)
class Scene:
    """One picture of the world: words for what it shows, numbers for where things stand.

    Positions are fractions, so that one scene can be painted at any size and shape. `color` and
    `side` belong to the object and are ignored without one; `many` belongs to the trees.
    Raises ValueError for a word outside ATTRIBUTES or a combination outside the world's rules.
    """

    time: str = "noon"
    season: str = "summer"
    mountains: str = "peaks"
    foreground: str = "lake"
    trees: str = "none"
    many: bool = False
    clouds: str = "clear"
    object: str = "none"
    color: str = "red"
    side: str = "left"
    seed: int = 0
    """Draws everything not named here: ridges, clouds, the place of each tree."""
    sun_x: float = 0.7
    """Sun or moon, as a fraction of the width; moved aside when an object would hide it."""
    sun_height: float = 0.5
    """0 to 1 within the band that suits the time of day."""
    horizon: float = 0.59
    """Fraction of the height, counted from the top."""
    object_inset: float = 0.25
    """From the object's own edge of the picture to its centre, as a fraction of the width."""
    object_height: float = 0.5
    """0 to 1 within the band where that object may float or stand; larger is lower."""
    object_size: float = 0.5
    """0 to 1 between the smallest and the largest such object."""

    def __post_init__(self) -> None:
        for attribute, values in ATTRIBUTES.items():
            value = getattr(self, attribute)
            if value not in values:
                raise ValueError(f"{attribute} is {value!r}; it must be one of {', '.join(values)}.")
        broken = find_broken_rule(self)
        if broken:
            raise ValueError(broken)


def find_broken_rule(scene: Scene) -> str:
    """Return the first rule of the world that a scene breaks, as a sentence, or an empty string."""
    if scene.foreground == "beach" and scene.season != "summer":
        return "A beach is always in summer."
    if scene.trees != "none" and (scene.foreground == "beach" or scene.season == "desert"):
        return "No trees grow on the beach or in the desert."
    if scene.object == "boat" and scene.foreground == "meadow":
        return "A boat needs water."
    if scene.object == "house" and scene.foreground == "beach":
        return "No houses stand on the beach."
    return ""


def sample_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene that keeps the rules; the same generator state gives the same scene."""
    foreground = _choose(rng, "foreground", (0.45, 0.37, 0.18))
    beach = foreground == "beach"
    season = "summer" if beach else _choose(rng, "season", (0.27, 0.25, 0.26, 0.22))
    bare = beach or season == "desert"
    tree_chances = (0.08, 0.42, 0.50) if season == "autumn" else (0.18, 0.42, 0.40)
    return Scene(
        time=_choose(rng, "time"),
        season=season,
        mountains=_choose(rng, "mountains", (0.5, 0.25, 0.25) if beach else (0.22, 0.34, 0.44)),
        foreground=foreground,
        trees="none" if bare else _choose(rng, "trees", tree_chances),
        many=bool(rng.random() < 0.5),
        clouds=_choose(rng, "clouds"),
        object=_sample_object(rng, foreground),
        color=_choose(rng, "color"),
        side=_choose(rng, "side"),
        seed=int(rng.integers(1, 2**31)),
        sun_x=float(rng.uniform(0.12, 0.88)),
        sun_height=float(rng.random()),
        horizon=float(rng.uniform(0.56, 0.62)),
        object_inset=float(rng.uniform(0.20, 0.30)),
        object_height=float(rng.random()),
        object_size=float(rng.random()),
    )


def labels(scene: Scene) -> dict[str, int]:
    """Return the index of each attribute's value in ATTRIBUTES, or -1 where it does not apply.

    Without an object, color and side are -1.
    """
    found = {name: values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()}
    if scene.object == "none":
        found["color"] = found["side"] = -1
    return found


def _sample_object(rng: np.random.Generator, foreground: str) -> str:
    possible = ["balloon"]
    if foreground != "meadow":
        possible.append("boat")
    if foreground != "beach":
        possible.append("house")
    return "none" if rng.random() < 0.20 else str(rng.choice(possible))


def _choose(rng: np.random.Generator, attribute: str, chances: tuple[float, ...] | None = None) -> str:
    return str(rng.choice(ATTRIBUTES[attribute], p=chances))
