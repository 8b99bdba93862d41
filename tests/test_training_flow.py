"""The flow's training: which pictures a step has, what a run leaves to the next, where its tensors lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from training import flow, guide, precision
from training.data import SHARES
from training.flow import Bucket, Trainer, batches, chances, step_shares
from training.flow_model import Flow, make_transformer
from training.text import make_encoders, make_tokenizer, tokenize
from training.track import Clock, save_state

TEXTS = ["a lake at night", "a green meadow with a red house on the left", "a beach"]


def bucket(rows: int = 2, columns: int = 3, count: int = 3) -> Bucket:
    """Return random pictures with captions."""
    texts = (TEXTS * count)[:count]
    return Bucket(
        torch.randn(count, rows * columns, 96).half(), tokenize(make_tokenizer(), texts),
        torch.ones(count, rows * columns), torch.randn(count, guide.CHANNELS, 8, 8).half(), chances(texts),
        rows, columns,
    )  # fmt: skip


def trainer(place: str = "cpu", dtype: torch.dtype = torch.float32) -> Trainer:
    """Return a training of a small random flow."""
    torch.manual_seed(0)
    return Trainer(Flow(*make_encoders(), make_transformer()), torch.device(place), dtype, 1e-3, 1e-3)


def test_steps_have_as_many_tokens_whatever_the_size() -> None:
    buckets = {
        ((256, 256), True): bucket(8, 8),
        ((256, 256), False): bucket(16, 16),
        ((512, 512), False): bucket(32, 32),
    }
    drawn = batches(buckets, torch.Generator().manual_seed(0), 2048, (0.5, 0.3, 0.2))
    for _ in range(20):
        one, chosen = next(drawn)
        assert one.area * len(chosen) == 2048


def test_sizes_share_the_steps_of_their_class() -> None:
    buckets = {
        ((256, 256), True): bucket(8, 8), ((256, 256), False): bucket(16, 16), ((512, 512), True): bucket(16, 16),
        ((512, 512), False): bucket(32, 32),
    }  # fmt: skip
    small, large, halved, largest = step_shares(buckets, (0.5, 0.4, 0.1)).tolist()
    assert (small, largest) == pytest.approx((0.5, 0.1))
    assert large + halved == pytest.approx(0.4)
    assert large / halved == pytest.approx(SHARES[256, 256] / SHARES[512, 512])  # as there are pictures


def test_what_is_hard_is_shown_more_often() -> None:
    night, house, beach = chances(TEXTS).tolist()
    assert house > night > beach == 1


def test_a_flow_learns_its_pictures() -> None:
    work, pictures, nothing = trainer(), bucket(), tokenize(make_tokenizer(), [""])
    rng, chosen = torch.Generator().manual_seed(0), torch.arange(3)
    first = work.step(pictures, chosen, nothing, rng)
    for _ in range(4):
        last = work.step(pictures, chosen, nothing, rng)
    assert last["apart"] < 0.95 * first["apart"]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_bfloat16_gives_nearly_the_same_errors() -> None:
    pictures, nothing = bucket(), tokenize(make_tokenizer(), [""])
    exact, rounded = (
        trainer(dtype=dtype).errors(pictures, torch.arange(3), nothing, torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=0.02)
        assert other.dtype == torch.float32


def test_a_run_goes_on_with_the_average_and_the_guides_head_of_the_last(tmp_path: Path) -> None:
    work, pictures, nothing = trainer(), bucket(), tokenize(make_tokenizer(), [""])
    rng = torch.Generator().manual_seed(0)
    for _ in range(2):
        work.step(pictures, torch.arange(3), nothing, rng)
    save_state(tmp_path, work.modules, work.optimizers)
    other = trainer()
    other.load(tmp_path)
    for name in ("flow", "average", "alignment"):
        pairs = zip(work.modules[name].parameters(), other.modules[name].parameters(), strict=True)
        assert all(torch.equal(one, another) for one, another in pairs)
    before = [parameter.clone() for parameter in other.average.model.parameters()]
    other.step(pictures, torch.arange(3), nothing, rng)
    moved = [(a - b).norm() for a, b in zip(before, other.average.model.parameters(), strict=True)]
    far = [(a - b).norm() for a, b in zip(before, other.flow.parameters(), strict=True)]
    assert sum(moved) < 0.01 * sum(far)  # a fresh average would have jumped to the flow


def test_all_that_a_step_needs_goes_to_the_device() -> None:
    """Tensors without memory stand for a GPU's: an operation on two devices raises, as it would there."""
    nothing, rng = tokenize(make_tokenizer(), [""]), torch.Generator().manual_seed(0)
    found = trainer("meta").errors(bucket(), torch.arange(3), nothing, rng)
    assert {each.device.type for each in found} == {"meta"}


def test_a_compiler_that_fails_is_done_without(monkeypatch, capsys) -> None:
    work = trainer()

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("no compiler here")

    def broken(**_options: object) -> None:
        for block in work.flow.transformer.transformer_blocks:
            block._compiled_call_impl = fail

    monkeypatch.setattr(work.flow.transformer, "compile_repeated_blocks", broken)
    assert not precision.compile_blocks(work.flow.transformer, lambda: flow.example(work))
    assert "no compiler here" in capsys.readouterr().err
    flow.example(work)  # runs as before


@pytest.mark.parametrize(("fast", "expected"), [(80.0, torch.float32), (1 / 8, torch.bfloat16)])
def test_bfloat16_is_for_machines_that_have_it(monkeypatch, fast: float, expected: torch.dtype) -> None:
    monkeypatch.setattr(
        precision, "products_per_second", lambda dtype, **_: 1.0 if dtype == torch.float32 else 1 / fast
    )
    assert precision.faster_dtype(torch.device("cpu")) == expected


def test_pauses_do_not_count(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("training.track.time.monotonic", lambda: now[0])
    clock = Clock()
    for later in (102.0, 4000.0, 4003.0):
        now[0] = later
        clock.tick()
    assert clock.seconds == pytest.approx(2 + 60 + 3)
