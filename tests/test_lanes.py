"""Lanes: how many, what they share, and the cores divided between them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow, lanes
from mrflow.errors import RequestError
from mrflow.lanes import Cores, check_lanes, copy_lane, weights_id


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return make_fast(make_pipe())


def test_small_models_get_a_lane_for_each_thread(fast, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert check_lanes(fast.model, None) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert check_lanes(fast.model, None) == lanes.MOST
    monkeypatch.setattr(lanes, "SMALL", 0)
    assert check_lanes(fast.model, None) == 1


def test_models_that_keep_state_between_calls_get_one_lane(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    fast = make_fast(make_pipe())
    fast.pipe.transformer.compile()
    assert check_lanes(fast.model, None) == 1
    with pytest.raises(RequestError, match=r"lanes is 2; a model that is offloaded.* Try 1\."):
        check_lanes(fast.model, 2)
    assert check_lanes(fast.model, 1) == 1


def test_a_cached_transformer_gets_one_lane(monkeypatch):
    from diffusers import FirstBlockCacheConfig

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    fast = make_fast(make_pipe())
    assert check_lanes(fast.model, None) == 4
    fast.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    assert check_lanes(fast.model, None) == 1
    fast.pipe.transformer.disable_cache()
    assert check_lanes(fast.model, None) == 4


@pytest.mark.parametrize("count", [0, -1, 65, 10**9])
def test_numbers_that_make_no_sense(fast, count):
    with pytest.raises(RequestError, match=f"lanes is {count}"):
        check_lanes(fast.model, count)


def test_a_lane_shares_weights_and_no_attributes(fast):
    lane = copy_lane(fast.model)
    assert lane.pipe is not fast.pipe
    assert lane.pipe.transformer is not fast.pipe.transformer
    assert weights_id(lane) == weights_id(fast.model) != weights_id(make_fast(make_pipe()).model)
    lane.pipe.vae.use_tiling, lane.pipe.scheduler = True, None
    assert not fast.pipe.vae.use_tiling
    assert fast.pipe.scheduler is not None


@pytest.mark.skipif(
    "backend: OpenMP" not in torch.__config__.parallel_info(), reason="this torch has one number for all threads"
)
def test_cores_are_divided_between_those_at_work_and_nobody_else_is_touched():
    """A thread that is alone has all, two have half of them each, and more than there are have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        cores, seen = Cores(), {}
        met = threading.Barrier(2)

        def work(name: str) -> None:
            met.wait(30)
            with cores.at_work():
                met.wait(30)  # both have begun
                cores.divide()
                seen[name] = torch.get_num_threads()
                met.wait(30)
            met.wait(30)  # both have ended
            with cores.at_work():
                pass

        def alone() -> None:
            with cores.at_work():
                seen["alone"] = torch.get_num_threads()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(alone).result()
        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {"alone": 4, "a": 2, "b": 2}
        assert torch.get_num_threads() == 4  # of this thread, which did not work
        cores.total = 1
        with cores.at_work():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
