"""Batch sizes: found by trying, halved when memory runs out, one bad item alone to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mrflow import MrFlow, read_recipe
from mrflow.batches import MOST, BatchSize, BatchSizes, in_batches, is_out_of_memory
from support.batches import run as run_rows
from support.families import CASES


def run(items: list[int], size: BatchSize, work: Any) -> tuple[list[int], list[int], list[int]]:
    """Return what was made, what failed, and the sizes that were tried."""
    tried: list[int] = []
    failed: list[int] = []

    def noted(part: list[int]) -> list[int]:
        tried.append(len(part))
        return work(part)

    made = list(in_batches(items, size, noted, lambda item, _: failed.append(item), lambda: None))
    return made, failed, tried


def test_every_item_once_in_order():
    assert run(list(range(7)), BatchSize(3, grow=False), list) == (list(range(7)), [], [3, 3, 1])


def test_memory_that_runs_out_halves_the_size_and_is_remembered():
    size = BatchSize(8, grow=True)

    def work(part: list[int]) -> list[int]:
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part

    assert run(list(range(10)), size, work) == (list(range(10)), [], [8, 4, 2, 2, 2, 2, 2])
    assert size.size == 2


def test_a_picture_too_large_for_the_memory_fails_alone():
    def work(part: list[int]) -> list[int]:
        if 3 in part:
            raise MemoryError
        return part

    made, failed, _ = run(list(range(6)), BatchSize(4, grow=False), work)
    assert (made, failed) == ([0, 1, 2, 4, 5], [3])


def test_one_bad_item_fails_alone_and_the_size_stays():
    size = BatchSize(4, grow=False)

    def work(part: list[int]) -> list[int]:
        if 1 in part:
            raise ValueError("bad")
        return part

    assert run(list(range(8)), size, work) == ([0, 2, 3, 4, 5, 6, 7], [1], [4, 1, 1, 1, 1, 4])
    assert size.size == 4


def test_ctrl_c_is_no_failure():
    def work(part: list[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([1, 2], BatchSize(2, grow=False), work)


def test_growing_while_it_pays():
    size = BatchSize(4, grow=True)
    for count, seconds in ((4, 4.0), (8, 4.0), (16, 8.0)):  # 1, 2, then 2 pictures a second: no gain
        size.worked(count, seconds)
    assert size.size == 16
    size.worked(16, 9.0)
    assert size.size == 16


def test_going_back_where_it_is_slower():
    size = BatchSize(4, grow=True)
    size.worked(4, 1.0)
    size.worked(8, 4.0)
    assert size.size == 4


def test_growing_ends():
    size = BatchSize(4, grow=True)
    for _ in range(20):
        size.worked(size.size, 1.0)
    assert size.size == MOST


def test_each_stage_and_kind_has_its_own():
    sizes = BatchSizes(4, grow=False)
    sizes.of("draft", "small").ran_out(4)
    assert sizes.of("draft", "small").size == 2
    assert sizes.of("draft", "large").size == 4
    sizes.of("finish", "large")
    assert sizes.found() == {"draft": 2, "finish": 4}


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (torch.OutOfMemoryError(), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error, yes):
    assert is_out_of_memory(error) is yes


def test_prompts_of_any_length_share_a_batch_where_padding_is_masked(tmp_path: Path) -> None:
    """Qwen-Image's transformer is told where a text ends; four rows of other lengths are one batch, not four."""
    prompts = [
        "a red boat",
        "a red boat and a",
        "a red boat and a blue house",
        "a red boat and a blue house at dusk",
    ]
    fast = MrFlow(CASES["QwenImagePipeline"].make(), "bicubic", batch_size=4)
    rows = [{"id": f"r{k}", "prompt": text, "width": 64, "height": 64} for k, text in enumerate(prompts)]
    assert run_rows(fast, tmp_path, *rows, batch_size=4) == (4, 0, 0)
    assert {read_recipe(tmp_path / f"r{k}.png").batch for k in range(4)} == {4}
