import pytest
import torch

from mrflow.progress import Clock, Progress


def test_a_stage_tells_its_beginning_steps_and_end() -> None:
    seen: list[Progress] = []
    clock = Clock(torch.device("cpu"), seen.append)
    with clock.stage("draft", 2, 1, 3) as stage:
        stage.step(1)
        stage.step(2)
    assert [(p.stage, p.step, p.steps, p.batch, p.batches) for p in seen] == [
        ("draft", 0, 2, 1, 3),
        ("draft", 1, 2, 1, 3),
        ("draft", 2, 2, 1, 3),
    ]


def test_a_stage_shows_its_pixels_at_the_end() -> None:
    seen: list[Progress] = []
    pixels = torch.zeros(1, 3, 2, 2)
    with Clock(torch.device("cpu"), seen.append).stage("decode") as stage:
        stage.pixels = pixels
    assert [p.step for p in seen] == [0, 1]
    assert seen[0].pixels is None
    assert seen[1].pixels is pixels


def test_seconds_add_up_over_batches() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock.stage("encode"):
            pass
    totals = clock.totals()
    assert list(totals) == ["encode", "total"]
    assert 0 < totals["encode"] < totals["total"]


def test_a_failed_stage_sends_no_end() -> None:
    seen: list[Progress] = []
    with pytest.raises(KeyError), Clock(torch.device("cpu"), seen.append).stage("refine"):
        raise KeyError
    assert [p.step for p in seen] == [0]
