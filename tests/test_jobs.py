import pytest

from mrflow.errors import PromptError, RequestError, SizeError
from mrflow.jobs import MAX_PROMPT, ask, check_size, fit_size, make_seeds, nearest_sizes, parse_size
from mrflow.plan import Plan


def test_pictures_of_a_prompt_stand_side_by_side() -> None:
    asked = ask(["a", "b"], negative_prompt=["x", ""], seed=5, num_images=2)
    told = [(one.prompt, one.negative_prompt, one.seed) for one in asked]
    assert told == [("a", "x", 5), ("a", "x", 6), ("b", "", 7), ("b", "", 8)]


def test_seeds_count_up_or_are_given_or_drawn() -> None:
    assert make_seeds(7, 3) == [7, 8, 9]
    assert make_seeds(range(3), 3) == [0, 1, 2]
    drawn = make_seeds(None, 3)
    assert len(set(drawn)) == 3
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_several_seeds_for_one_prompt_make_several_pictures() -> None:
    assert [job.seed for job in ask("a", seed=range(4))] == [0, 1, 2, 3]
    assert [job.seed for job in ask("a", seed=(s for s in (9, 8)))] == [9, 8]


@pytest.mark.parametrize(
    "seed", [-1, 2**63, 1.5, True, "7", [1, 2, 3], [], [-1, 0], [None, 1], object(), 2**63 - 1]
)
def test_seeds_that_cannot_be_are_refused(seed: object) -> None:
    with pytest.raises(RequestError):
        ask(["a", "b"], seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "prompt", ["", "  \n", [], [""], ["a", " "], [None], None, 3, b"a", "x" * (MAX_PROMPT + 1), "a\ud800 lake"]
)
def test_prompts_that_say_nothing_are_refused(prompt: object) -> None:
    with pytest.raises(RequestError):
        ask(prompt)  # type: ignore[arg-type]


def test_an_empty_prompt_says_what_to_do() -> None:
    with pytest.raises(PromptError, match="say what the picture should show"):
        ask(" ")


@pytest.mark.parametrize("negative", [["a"], ["a", 3], 3, "x" * (MAX_PROMPT + 1), "\udfff"])
def test_negative_prompts_are_one_or_one_each(negative: object) -> None:
    with pytest.raises(RequestError):
        ask(["a", "b"], negative_prompt=negative)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "2", 10**6])
def test_counts_are_bounded(count: object) -> None:
    with pytest.raises(RequestError):
        ask("a", num_images=count)  # type: ignore[arg-type]


def test_an_endless_iterable_is_refused() -> None:
    from itertools import count

    with pytest.raises(RequestError, match="More than"):
        ask("a", seed=count())


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    import numpy as np
    import torch

    assert [one.seed for one in ask("a", seed=np.int64(3), num_images=np.int64(2))] == [3, 4]
    assert [one.seed for one in ask("a", seed=np.random.default_rng(0).integers(0, 9, 2))] == [7, 5]
    assert make_seeds(torch.tensor(3), 1) == [3]
    assert all(type(seed) is int for seed in make_seeds(np.arange(2), 2))
    assert check_size(np.int64(64), torch.tensor(48), 16) == (64, 48)
    with pytest.raises(RequestError):
        make_seeds(np.bool_(True), 1)


def test_a_generator_in_its_first_state_gives_its_seed_and_moves_on() -> None:
    import torch

    generator = torch.Generator().manual_seed(7)
    assert make_seeds(generator, 1) == [7]
    further = make_seeds(generator, 1)
    assert further != [7]
    again = torch.Generator().manual_seed(7)
    assert make_seeds(again, 2) == [7, *further]  # and what follows is drawn from it, the same each time
    assert make_seeds([torch.Generator().manual_seed(k) for k in (3, 5)], 2) == [3, 5]
    with pytest.raises(RequestError, match="2 seeds for 3 pictures"):
        make_seeds([torch.Generator(), torch.Generator()], 3)


# --- sizes ---


def test_the_picture_must_be_whole_patches_and_its_draft_takes_the_nearest() -> None:
    assert check_size(1008, 1024, 16) == (1008, 1024)
    with pytest.raises(SizeError, match=r"1000x1024; sides must be multiples of 16. Try 992x1024 or 1008x1024"):
        check_size(1000, 1024, 16)
    assert Plan().draft_size(1360, 768, 16) == (688, 384)  # half of 1360 is 42.5 patches
    assert Plan(scale=8).draft_size(16, 16, 16) == (16, 16)


@pytest.mark.parametrize("scale", [1, 1.25, 4 / 3, 1.5, 2, 2.5, 3, 4, 8])
@pytest.mark.parametrize("multiple", [4, 16])
def test_every_suggested_size_is_accepted_and_its_draft_is_whole_patches(scale: float, multiple: int) -> None:
    plan = Plan(scale=scale)
    for width, height in nearest_sizes(1000, 777, multiple):
        check_size(width, height, multiple)
        draft = plan.draft_size(width, height, multiple)
        assert draft[0] % multiple == draft[1] % multiple == 0
        exact = (width / plan.ratio, height / plan.ratio)
        assert all(abs(side - whole) <= multiple / 2 for side, whole in zip(draft, exact, strict=True))


@pytest.mark.parametrize("side", [0, -64, 15, 8193, 10**12, 64.0, "64", True, None])
def test_sides_that_cannot_be_are_refused(side: object) -> None:
    with pytest.raises(SizeError, match="width is"):
        check_size(side, 1024, 16)  # type: ignore[arg-type]


def test_suggestions_stay_within_the_limits() -> None:
    assert nearest_sizes(8191, 40, 32) == [(8160, 32), (8192, 64)]
    assert nearest_sizes(64, 64, 32) == [(64, 64)]


def test_fit_size_takes_whole_patches_within_the_scaled_image() -> None:
    assert fit_size(250, 131, 2.0, 16) == (496, 256)
    assert fit_size(3, 3, 2.0, 16) == (16, 16)
    with pytest.raises(SizeError, match="8192 pixels at most"):
        fit_size(5000, 100, 2.0, 16)


@pytest.mark.parametrize(
    ("text", "size"),
    [(None, (None, None)), ("256", (256, 256)), ("320x192", (320, 192)), (" 320 X 192 ", (320, 192))],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "256x", "-256", "256x192x3", "0", "25.6", "99999", "٢٥٦"])
def test_sizes_that_are_none(text):
    with pytest.raises(SizeError):
        parse_size(text)
