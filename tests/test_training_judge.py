"""The judge of looks: it tells what can be told, and nothing where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

pytest.importorskip("numba")

from training.data import to_tensor
from training.evaluate import prompts, scenes
from training.judge import auc, read_compared, tell, views
from training.world import ATTRIBUTES, labels, paint

from mrflow.bench.ledger import folder_name
from mrflow.bench.prompts import read_questions


@pytest.fixture(scope="module")
def renders() -> torch.Tensor:
    """Return 48 renders (48, 3, 128, 128) in [-1, 1]."""
    return to_tensor(paint(scenes(48, seed=11), 128, 128))


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    made, real = rng.integers(6, size=40), rng.integers(5, size=30)
    pairs = np.subtract.outer(made, real)
    assert auc(made, real) == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    assert auc(made, made) == 0.5
    assert auc(made + 10, real) == 1


def test_patches_are_cut_where_they_lie(renders: torch.Tensor) -> None:
    seen = views(renders[:2], patches=True)
    assert seen.shape == (2, 4, 3, 64, 64)
    assert torch.equal(seen[1, 2], renders[1, :, 64:, :64])
    assert views(renders[:2], patches=False).shape == (2, 1, 3, 128, 128)


def test_renders_cannot_be_told_from_renders(renders: torch.Tensor) -> None:
    others = to_tensor(paint(scenes(48, seed=12), 128, 128))
    for patches in (False, True):
        assert 0.25 < tell(others, renders, patches).auc < 0.75


def test_a_loss_of_texture_is_told_by_patches_and_a_wrong_form_by_the_whole(renders: torch.Tensor) -> None:
    soft = avg_pool2d(renders, 3, 1, 1, count_include_pad=False)
    by_patches = tell(soft, renders, patches=True)
    assert by_patches.auc > 0.9
    assert by_patches.low <= by_patches.auc <= by_patches.high
    broken = renders.clone()
    broken[:, :, 40:88, 64:] = renders[:, :, 48:96, 64:]  # the right half slips by eight pixels
    assert tell(broken, renders, patches=False).low > 0.55


def test_scenes_are_those_of_the_prompts() -> None:
    _, wanted = prompts(20, seed=4)
    assert [[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes(20, 4)] == wanted.tolist()


def test_pictures_of_a_comparison_are_judged_beside_their_own_scenes(tmp_path: Path) -> None:
    methods = {"native": (0, 3, 5), "4:solver=unipc": (1, 3, 5)}
    for name, items in methods.items():
        (folder := tmp_path / "pictures" / folder_name(name)).mkdir(parents=True)
        for item in items:
            Image.new("RGB", (64, 64), (item, 0, 0)).save(folder / f"{item:05}.png")
    (tmp_path / "course.json").write_text(json.dumps({"methods": list(methods)}))
    world, pictures = read_compared(tmp_path, 256)
    assert {name: [each.getpixel((0, 0))[0] for each in made] for name, made in pictures.items()} == {
        name: [3, 5] for name in methods
    }
    asked = read_questions(None)
    told = (
        {name: labels(scene)[name] for name in asked[k].labels} for k, scene in zip((3, 5), world, strict=True)
    )
    assert [{name: ATTRIBUTES[name][value] for name, value in each.items()} for each in told] == [
        asked[k].labels for k in (3, 5)
    ]
