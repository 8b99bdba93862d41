from fractions import Fraction

import pytest

from mrflow.errors import SizeError
from mrflow.jobs import check_size, draft_size, fit_size, nearest_sizes, parse_size, size_unit
from mrflow.plan import Plan


def test_both_the_picture_and_its_draft_must_be_whole_patches() -> None:
    check_size(1024, 1024, 16, Plan())
    check_size(1008, 1024, 16)  # no draft to fit
    with pytest.raises(
        SizeError, match=r"1008x1024; at scale 2 sides must be multiples of 32. Try 992x1024 or 1024x1024"
    ):
        check_size(1008, 1024, 16, Plan())


@pytest.mark.parametrize("scale", [1, 1.25, 4 / 3, 1.5, 2, 2.5, 3, 4, 8])
@pytest.mark.parametrize("multiple", [4, 16])
def test_every_suggested_size_is_accepted_and_its_draft_fits(scale: float, multiple: int) -> None:
    plan = Plan(scale=scale)
    unit = size_unit(multiple, plan)
    for width, height in nearest_sizes(1000, 777, unit):
        check_size(width, height, multiple, plan)
        draft = draft_size(width, height, plan)
        assert draft[0] % multiple == draft[1] % multiple == 0
        assert Fraction(width, draft[0]) == Fraction(height, draft[1]) == plan.ratio


@pytest.mark.parametrize("side", [0, -64, 16, 8193, 10**12, 64.0, "64", True, None])
def test_sides_that_cannot_be_are_refused(side: object) -> None:
    with pytest.raises(SizeError, match="width is"):
        check_size(side, 1024, 16, Plan())  # type: ignore[arg-type]


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
