"""The world of painted landscapes: pictures that repeat, captions that say what the pictures show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")

from training.world import ATTRIBUTES, MAX_TOKENS, WORDS, Scene, caption, labels, paint, parse, sample_scene
from training.world.captions import split_words
from training.world.palette import OBJECT_COLORS
from training.world.view import compose

BALLOON = Scene(time="noon", mountains="hills", trees="round", object="balloon", color="red", seed=5)


def sample_scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def halve(picture: np.ndarray) -> np.ndarray:
    """Return the picture averaged over 2 x 2 pixels."""
    height, width, _ = picture.shape
    return picture.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))


def test_the_same_generator_state_gives_the_same_scenes_and_bytes():
    scenes = sample_scenes(6)
    assert scenes == sample_scenes(6)
    pictures = paint(scenes, 64, 64)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, paint(scenes, 64, 64))
    assert np.array_equal(pictures[3:4], paint(scenes[3:4], 64, 64))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 128), (96, 80)])
def test_pictures_have_the_size_asked_for(width, height):
    assert paint(sample_scenes(2), width, height).shape == (2, height, width, 3)


@pytest.mark.parametrize(("width", "height"), [(100, 64), (64, 0), (256, 112)])
def test_other_sizes_are_refused(width, height):
    with pytest.raises(ValueError, match="The size is"):
        paint([BALLOON], width, height)


def test_a_small_picture_is_the_large_one_shrunk():
    scenes = sample_scenes(12, seed=2)
    small = paint(scenes, 128, 128).astype(float)
    large = np.stack([halve(picture) for picture in paint(scenes, 256, 256)])
    assert np.abs(small - large).mean((1, 2, 3)).max() < 6.0


def test_edges_are_smooth():
    """Along the rim of a red balloon before a blue sky there are pixels of neither colour."""
    scene = replace(BALLOON, object_size=0.37)  # so that the rim falls between two pixels
    picture = paint([scene], 128, 128)[0].astype(int)
    view = compose([scene], 128, 128)[0]
    row = picture[int(view["object_y"] * 128)]
    redness = row[:, 0] - row[:, 2]
    assert redness.max() > 100
    assert redness.min() < -50
    assert np.sum((redness > -100) & (redness < 100)) >= 2


@pytest.mark.parametrize(("width", "height"), [(256, 128), (128, 256), (192, 192)])
def test_the_sun_is_round_in_any_shape(width, height):
    scene = Scene(time="noon", mountains="none", seed=3, sun_height=0.4)
    disc = paint([scene], width, height)[0].astype(int)
    bright = disc[: height // 2].min(2) > 215
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert wide >= 7
    assert abs(tall - wide) <= 2


@pytest.mark.parametrize(("width", "height"), [(256, 128), (128, 256), (256, 256)])
def test_objects_stay_whole_and_on_their_side(width, height):
    scenes = [scene for scene in sample_scenes(300) if scene.object != "none"]
    for scene, view in zip(scenes, compose(scenes, width, height), strict=True):
        middle = view["width"] / 2
        assert view["left"] > 0
        assert view["right"] < view["width"]
        assert view["top"] > 0
        assert view["bottom"] < view["height"]
        assert view["right"] < middle if scene.side == "left" else view["left"] > middle


@pytest.mark.parametrize(
    ("attribute", "scene"),
    [
        ("time", BALLOON),
        ("season", replace(BALLOON, trees="none")),
        ("mountains", BALLOON),
        ("foreground", replace(BALLOON, trees="none")),
        ("trees", BALLOON),
        ("clouds", BALLOON),
        ("object", BALLOON),
        ("color", BALLOON),
        ("side", BALLOON),
    ],
)
def test_each_attribute_changes_the_picture(attribute, scene):
    scenes = [replace(scene, **{attribute: value}) for value in ATTRIBUTES[attribute]]
    pictures = paint(scenes, 64, 64).astype(float)
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(picture - other).max(2).mean() > 1.0


def test_many_trees_change_more_of_the_picture_than_few():
    bare, few, many = paint(
        [replace(BALLOON, trees="none"), BALLOON, replace(BALLOON, many=True)], 128, 128
    ).astype(int)
    assert np.abs(many - bare).sum() > 1.5 * np.abs(few - bare).sum()


@pytest.mark.parametrize("time", ATTRIBUTES["time"])
def test_objects_keep_their_color_at_every_hour(time):
    """The middle of the balloon is nearest, in hue, to the paint it was given."""
    scenes = [replace(BALLOON, time=time, color=color) for color in OBJECT_COLORS]
    view = compose(scenes, 128, 128)[0]
    x, y = int(view["object_x"] * 128), int(view["object_y"] * 128)
    paints = np.array(list(OBJECT_COLORS.values()))
    for picture, scene in zip(paint(scenes, 128, 128), scenes, strict=True):
        seen = picture[y - 3 : y + 4, x - 3 : x + 4].mean((0, 1))
        distance = np.linalg.norm(seen / seen.max() - paints / paints.max(1, keepdims=True), axis=1)
        assert list(OBJECT_COLORS)[int(distance.argmin())] == scene.color


def test_labels_name_all_nine_attributes():
    for scene in sample_scenes(200):
        found = labels(scene)
        assert list(found) == list(ATTRIBUTES)
        for name, label in found.items():
            if label < 0:
                assert name in ("color", "side")
                assert scene.object == "none"
            else:
                assert ATTRIBUTES[name][label] == getattr(scene, name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"time": "teatime"},
        {"foreground": "beach", "season": "winter"},
        {"season": "desert", "trees": "pines"},
        {"foreground": "meadow", "object": "boat"},
        {"foreground": "beach", "object": "house"},
    ],
)
def test_a_scene_keeps_the_rules(wrong):
    with pytest.raises(ValueError, match=r"\."):
        Scene(**wrong)


def test_the_vocabulary_is_small_and_starts_with_the_marks():
    assert WORDS[:2] == ("<pad>", "<eos>")
    assert len(set(WORDS)) == len(WORDS) <= 96


def test_captions_use_the_vocabulary_and_fit():
    rng = np.random.default_rng(1)
    used = set()
    for scene in sample_scenes(2000):
        for full in (False, True):
            words = split_words(caption(scene, rng, full))
            assert len(words) + 1 <= MAX_TOKENS
            used.update(words)
    assert used == set(WORDS[2:])


def test_parse_inverts_caption():
    rng = np.random.default_rng(1)
    for scene in sample_scenes(2000):
        found = parse(caption(scene, rng))
        assert found == {name: getattr(scene, name) for name in found}
        assert found["object"] == scene.object
        assert ("color" in found) == (scene.object != "none")


def test_a_full_caption_names_all_that_applies():
    rng = np.random.default_rng(1)
    for scene in sample_scenes(2000):
        found = parse(caption(scene, rng, full=True))
        expected = {name for name in ATTRIBUTES if getattr(scene, name) != "none"} | {"object"}
        if scene.object == "none":
            expected -= {"color", "side"}
        if scene.foreground == "beach":
            expected -= {"season"}
        assert set(found) == expected


def test_the_sentence_of_the_readme_is_understood():
    text = "a snowy lake at sunset with mountains, many pine trees and a red hot air balloon on the left"
    assert set(split_words(text)) <= set(WORDS)
    assert parse(text) == {
        "time": "sunset",
        "season": "winter",
        "mountains": "peaks",
        "foreground": "lake",
        "trees": "pines",
        "object": "balloon",
        "color": "red",
        "side": "left",
    }


def test_green_is_a_season_or_a_color():
    assert parse("a green lake")["season"] == "summer"
    assert "color" not in parse("a green lake")
    assert parse("an autumn lake with a green sailing boat")["color"] == "green"
    assert parse("an autumn lake with a green sailing boat")["season"] == "autumn"
