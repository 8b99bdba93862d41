"""The judge of looks: it tells what can be told, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

pytest.importorskip("numba")

from training.data import to_tensor
from training.evaluate import prompts, scenes
from training.judge import auc, tell, views
from training.world import ATTRIBUTES, labels, paint


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
