from itertools import pairwise

import pytest
import torch

from mrflow.errors import PlanError
from mrflow.sampling import add_noise, draft_generators, make_noise, refine_generators, refine_sigmas

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
