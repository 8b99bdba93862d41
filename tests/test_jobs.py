import pytest

from mrflow.errors import PromptError, RequestError
from mrflow.jobs import MAX_PROMPT, Job, ask, make_seeds


def test_pictures_of_a_prompt_stand_side_by_side() -> None:
    jobs = ask(["a", "b"], negative_prompt=["x", ""], seed=5, num_images=2)
    assert jobs == [Job("a", "x", 5), Job("a", "x", 6), Job("b", "", 7), Job("b", "", 8)]


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
    "prompt", ["", "  \n", [], [""], ["a", " "], [None], None, 3, b"a", "x" * (MAX_PROMPT + 1)]
)
def test_prompts_that_say_nothing_are_refused(prompt: object) -> None:
    with pytest.raises(RequestError):
        ask(prompt)  # type: ignore[arg-type]


def test_an_empty_prompt_says_what_to_do() -> None:
    with pytest.raises(PromptError, match="say what the picture should show"):
        ask(" ")


@pytest.mark.parametrize("negative", [["a"], ["a", 3], 3, "x" * (MAX_PROMPT + 1)])
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
