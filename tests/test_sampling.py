from itertools import pairwise

import pytest
import torch

from mrflow.errors import PlanError
from mrflow.sampling import (
    add_noise,
    draft_generators,
    keep_colors,
    make_noise,
    refine_generators,
    refine_sigmas,
)

SHAPE = (16, 4, 6)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_refine_sigmas_go_evenly_from_sigma_to_zero(steps: int) -> None:
    sigmas = refine_sigmas(0.12, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 0.12
    assert sigmas[-1] == 0
    gaps = [a - b for a, b in pairwise(sigmas)]
    assert gaps == pytest.approx([0.12 / steps] * steps)


@pytest.mark.parametrize("sigma", [0.0, 1.0, -0.1, 1.4, float("nan")])
def test_sigmas_outside_are_refused(sigma: float) -> None:
    with pytest.raises(PlanError, match="between 0 and 1"):
        refine_sigmas(sigma, 1)
    with pytest.raises(PlanError, match="between 0 and 1"):
        add_noise(torch.zeros(1), sigma, torch.zeros(1))


def test_zero_refine_steps_are_refused() -> None:
    with pytest.raises(PlanError, match="at least 1"):
        refine_sigmas(0.12, 0)


def test_add_noise_mixes_in_exactly_sigma() -> None:
    latents, noise = torch.full((2, 3), 4.0), torch.full((2, 3), -1.0)
    assert torch.equal(add_noise(latents, 0.25, noise), torch.full((2, 3), 2.75))


def test_noise_is_one_generator_per_picture() -> None:
    batch = make_noise(SHAPE, refine_generators([5, 6, 7]))
    alone = make_noise(SHAPE, refine_generators([6]))
    assert batch.shape == (3, *SHAPE)
    assert torch.equal(batch[1:2], alone)
    assert batch.std() == pytest.approx(1, abs=0.1)


def test_draft_and_refine_noise_of_one_seed_are_unrelated() -> None:
    for seed in (0, 1, 2**63 - 1):
        draft = make_noise(SHAPE, draft_generators([seed])).flatten()
        refine = make_noise(SHAPE, refine_generators([seed])).flatten()
        assert abs(torch.corrcoef(torch.stack([draft, refine]))[0, 1]) < 0.2


def test_the_draft_stream_is_the_plain_pipelines() -> None:
    ours = draft_generators([11])[0].get_state()
    assert torch.equal(ours, torch.Generator("cpu").manual_seed(11).get_state())


def test_the_refine_stream_stays_what_it_was() -> None:
    # Recipes hold the seed alone: pictures would change if this derivation did.
    assert refine_generators([7])[0].initial_seed() == EXPECTED_REFINE_SEED


def test_global_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    make_noise(SHAPE, [*draft_generators([1]), *refine_generators([1])])
    assert torch.equal(torch.get_rng_state(), before)


EXPECTED_REFINE_SEED = 4626958101508668914


def waves(height: int, width: int, count: int = 5) -> torch.Tensor:
    """Return one smooth picture (2, 3, height, width), sampled at any size: cosines along both sides."""
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, count, count, generator=random, dtype=torch.float64) * 0.02
    weights[:, :, 0, 0] = 0.5
    down, across = (
        torch.cos(torch.pi * torch.arange(count)[:, None] * (torch.arange(side) + 0.5).double() / side)
        for side in (height, width)
    )
    return torch.einsum("bckl,kh,lw->bchw", weights, down, across).clamp(0, 1)


def test_colors_that_drifted_are_taken_back() -> None:
    """A picture at twice the size, dulled and tinted, has its own colours back: those of the closed form."""
    draft, large = waves(16, 24).float(), waves(40, 60).float()
    tint = torch.tensor([0.02, -0.03, 0.01])[:, None, None]
    drifted = large * 0.97 + tint
    kept = keep_colors(drifted, draft, 0.4)  # 7 and 10 of the frequencies, of which the picture has 5
    assert (drifted - large).abs().max() > 0.02
    assert (kept - large).abs().max() < 1e-3
    assert (kept.mean((2, 3)) - draft.mean((2, 3))).abs().max() < 1e-6
    smaller = keep_colors(draft * 0.97, large, 0.4)  # as where a given picture is made smaller
    assert (smaller - draft).abs().max() < 1e-3
    mean = keep_colors(drifted, draft, 1e-6)
    assert torch.allclose(mean - drifted, (mean - drifted).mean((2, 3), keepdim=True), atol=1e-6)


def test_texture_stays_and_low_frequencies_are_the_drafts() -> None:
    draft, large = waves(16, 24).float(), waves(32, 48).float()
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).tile(16, 24) * 0.008  # the finest there is
    drifted = (large * 0.95 + 0.01 + checks).clamp(0, 1)
    kept = keep_colors(drifted, draft, 0.4)
    fft = pytest.importorskip("scipy.fft")
    before, after = (fft.dctn(each.double().numpy(), axes=(2, 3), norm="ortho") for each in (drifted, kept))
    small = fft.dctn(draft.double().numpy(), axes=(2, 3), norm="ortho")
    change = abs(after - before)
    assert change[:, :, :7, :10].max() > 0.01  # of 16 rows and 24 columns .4 are 7 and 10
    assert change[:, :, 7:].max() < 1e-5
    assert change[:, :, :, 10:].max() < 1e-5
    assert abs(after[:, :, :7, :10] / 2 - small[:, :, :7, :10]).max() < 1e-4
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert torch.allclose(keep_colors(grey.tile(1, 1, 2, 2) * 0.9, grey, 0.5), torch.tensor(0.5))
