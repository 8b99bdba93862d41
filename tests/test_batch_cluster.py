"""Batches on Ray: the pictures of a run without it, whoever is killed.

Ray runs on this machine. A worker imports torch and diffusers, so that a run takes some ten seconds; one such
test is among the usual ones, the others are marked slow.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow, batches, ray_connection
from mrflow.batch import workers
from mrflow.batch.cluster import Cluster, ClusterEngine
from mrflow.batch.run import News
from mrflow.batch.tasks import MAX_FAILURES_IN_A_ROW, Failure, resolve_wanted
from mrflow.batch.workers import DraftWorker, FinishWorker, Setting, identify, pack, unpack
from mrflow.batch.writer import Encoded
from mrflow.cli.loading import ModelOptions
from mrflow.cli.ray_options import _loader
from mrflow.errors import BatchError, ClusterError, MissingExtraError, ModelError, RequestError
from support import cluster_model
from support.batches import errors, files, manifest, request, run
from support.loras import of_kohya, write


def on_ray(test: Any) -> Any:
    """Mark a test that starts Ray, which leaves sockets and processes to the collector."""
    for mark in (
        pytest.mark.skipif(find_spec("ray") is None, reason='Ray is not installed: pip install ".[ray]"'),
        pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        pytest.mark.usefixtures("collected", "ray_finds_tests"),
    ):
        test = mark(test)
    return test


ROWS: list[dict[str, Any]] = [
    {"id": "boat", "prompt": "a red boat", "seed": 7},
    {"id": "unlucky", "prompt": "a big lake", "seed": cluster_model.UNLUCKY},
    {"id": "lake", "prompt": "a lake at dusk", "num_images": 4, "width": 64},
    {"id": "house", "prompt": "a blue house"},
]


@pytest.fixture(scope="module")
def model() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """Return the folder of a batch made without Ray."""
    out = tmp_path_factory.mktemp("whole")
    assert run(model, out, *ROWS) == (7, 0, 0)
    return out


@pytest.fixture
def collected() -> Iterator[None]:
    """See that what Ray leaves to the collector is collected here, and blamed on no other test."""
    yield
    gc.collect()


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    """Return two workers on this machine that write their process ids into tmp_path/pids."""
    (tmp_path / "pids").mkdir()
    return Cluster(load=partial(cluster_model.load, tmp_path / "pids"))


def pids(tmp_path: Path) -> set[int]:
    return {int(path.name) for path in (tmp_path / "pids").iterdir()}


@on_ray
def test_pictures_made_by_workers_are_those_of_one_process(model, whole, cluster, tmp_path):
    """Begun without Ray, gone on with by two workers, completed without Ray."""
    out = tmp_path / "out"
    assert run(model, out, ROWS[0]) == (1, 0, 0)
    assert run(model, out, *ROWS, cluster=cluster) == (5, 1, 1)
    assert len(pids(tmp_path)) == 2
    assert os.getpid() not in pids(tmp_path)
    assert errors(out) == [{"row": 2, "id": "unlucky", "error": "RuntimeError: no thirteens"}]
    assert set(manifest(out)[-1]["seconds"]) == set(manifest(whole)[0]["seconds"])
    assert run(model, out, *ROWS) == (1, 6, 0)
    assert files(out) == files(whole)
    assert sorted(entry["id"] for entry in manifest(out)) == sorted(entry["id"] for entry in manifest(whole))


@on_ray
@pytest.mark.slow
def test_workers_that_are_killed_lose_nothing_and_make_nothing_twice(model, whole, cluster, tmp_path):
    killed: list[int] = []

    def kill(news: News) -> None:
        if news.entry is not None and len(killed) < 2:
            victim = min(pids(tmp_path) - set(killed))
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    out = tmp_path / "out"
    rows = [row for row in ROWS if row["id"] != "unlucky"]
    assert run(model, out, *rows, {"prompt": "a boat", "num_images": 8}, cluster=cluster, on_news=kill) == (
        14,
        0,
        0,
    )
    assert len(pids(tmp_path)) == 4
    made = {name: data for name, data in files(out).items() if not name[0].isdigit()}
    assert made == {name: data for name, data in files(whole).items() if name != "unlucky.png"}
    assert len({entry["id"] for entry in manifest(out)}) == len(manifest(out)) == 14


@on_ray
@pytest.mark.slow
def test_shards_and_several_workers_of_a_stage(model, tmp_path, cluster):
    cluster = Cluster(load=cluster.load, draft_workers=2, finish_workers=1)
    rows = [row for row in ROWS if row["id"] != "unlucky"]
    assert run(model, tmp_path / "out", *rows, cluster=cluster, form="wds", per_shard=4) == (6, 0, 0)
    assert len(pids(tmp_path)) == 3
    assert sorted(files(tmp_path / "out")) == ["shard-000000.tar", "shard-000001.tar"]
    assert run(model, tmp_path / "out", *rows, form="wds", per_shard=4) == (0, 6, 0)


@on_ray
@pytest.mark.slow
def test_workers_that_can_not_start_are_one_line(model, tmp_path):
    with pytest.raises(ClusterError, match=r"workers can't go on: .*the shared folder is not mounted"):
        run(model, tmp_path, *ROWS, cluster=Cluster(load=cluster_model.load_nothing))
    assert not list(tmp_path.glob("*.png"))


@on_ray
def test_no_ray_at_the_address(model, tmp_path):
    with pytest.raises(ClusterError, match=r"No Ray answers at 127\.0\.0\.1:1"):
        run(model, tmp_path, *ROWS, cluster=Cluster(load=cluster_model.load_nothing, address="127.0.0.1:1"))


def test_what_ray_tells_of_lost_nodes_is_not_among_the_data(capsys):
    worker = pytest.importorskip("ray._private.worker")
    tell = worker.print_to_stdstream
    with ray_connection._news_on_stderr():
        worker.print_to_stdstream(
            {"lines": ["A node was lost."], "pid": "raylet", "is_err": False}, ignore_prefix=False
        )
    streams = capsys.readouterr()
    assert not streams.out
    assert "A node was lost." in streams.err
    assert worker.print_to_stdstream is tell


def test_nothing_to_do_starts_no_ray(model, whole):
    assert run(model, whole, *ROWS, cluster=Cluster(load=cluster_model.load_nothing)) == (0, 7, 0)


def test_without_ray_the_way_to_it_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[ray\]"'):
        run(model, tmp_path, *ROWS, cluster=Cluster(load=cluster_model.load_nothing))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("draft_workers", 0),
        ("finish_workers", -1),
        ("worker_threads", 0),
        ("draft_gpus", -0.5),
        ("finish_gpus", 1.5),
    ],
)
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(RequestError, match=f"{name} is {value}"):
        Cluster(load=cluster_model.load_nothing, **{name: value})


def test_a_batch_does_not_go_through_ray_s_client():
    with pytest.raises(RequestError, match=r"The address is ray://here:1; .* with --ray auto"):
        Cluster(load=cluster_model.load_nothing, address="ray://here:1")


def test_what_comes_twice_counts_once_and_failures_in_a_row_stop_the_run(model):
    """What Ray hands over is taken as it comes; a window made again after a node was lost may come again."""
    got: list[Encoded] = []
    failed: list[Failure] = []
    setting = Setting(
        load=cluster_model.load_nothing, identity=(), threads=1, batch_size=1, grow=False, suffix=".png"
    )
    engine = ClusterEngine(Cluster(load=setting.load), setting, got.append, failed.append, batch_size=None)
    tasks, _, _ = resolve_wanted(model.model, request({"prompt": "a boat", "num_images": 40}).wanted)
    left = {task.id: task for task in tasks}
    picture = Encoded(tasks[0], b"png", model.model.recipe("staged", tasks[0].job), {})
    for _ in range(2):
        engine._take(picture, left)
    assert len(got) == 1
    failures = [Failure(task.row, task.id, "RuntimeError: no") for task in tasks[1 : 1 + MAX_FAILURES_IN_A_ROW]]
    for failure in failures[:-1]:
        engine._take(failure, left)
    with pytest.raises(BatchError, match="20 pictures in a row failed, the last with RuntimeError: no"):
        engine._take(failures[-1], left)
    assert failed == failures


def test_workers_give_the_pictures_of_one_process(model, whole, cluster, monkeypatch):
    """Without Ray, whose part of it is only to carry what is packed."""
    monkeypatch.setattr(batches, "finish_drafts", batches.finish_drafts)  # what the worker changes is put back
    setting = Setting(
        load=cluster.load, identity=identify(model.model), threads=1, batch_size=1, grow=False, suffix=".png"
    )
    draft, finish = DraftWorker(setting, "cpu"), FinishWorker(setting, "cpu")
    tasks, _, _ = resolve_wanted(model.model, request(*ROWS).wanted)
    items = [item for task in tasks for item in unpack(finish(draft(pack([task]))))]
    failures = [item for item in items if isinstance(item, Failure)]
    assert [(failure.id, failure.error) for failure in failures] == [("unlucky", "RuntimeError: no thirteens")]
    assert {item.task.id: item.data for item in items if isinstance(item, Encoded)} == {
        name.removesuffix(".png"): data for name, data in files(whole).items() if name != "unlucky.png"
    }


def test_workers_wear_loras(tmp_path, monkeypatch):
    """By whole paths, for they may work in other folders, and the same files, by their hashes."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    make_pipe().save_pretrained(tmp_path / "tiny")
    write(tmp_path / "style.safetensors")
    (tmp_path / "loras").mkdir()
    write(tmp_path / "loras" / "dusk.safetensors", of_kohya(3))
    options = ModelOptions(
        model=str(tmp_path / "tiny"),
        upscaler="bicubic",
        device="cpu",
        lora=("style.safetensors:0.5",),
        loras_dir=(Path("loras"),),
    )
    row = {"prompt": "a red boat", "seed": 7}
    rows = [{**row, "id": "usual"}, {**row, "id": "none", "loras": []}, {**row, "id": "dusk", "loras": ["dusk"]}]
    fast, load = options.load(), _loader(options)
    assert run(fast, tmp_path / "whole", *rows) == (3, 0, 0)
    assert len(set(files(tmp_path / "whole").values())) == 3
    tasks, _, _ = resolve_wanted(fast.model, request(*rows).wanted)
    monkeypatch.chdir("/")
    about: dict[str, Any] = {"load": load, "threads": 1, "batch_size": 1, "grow": False, "suffix": ".png"}
    setting = Setting(identity=identify(fast.model), **about)
    draft, finish = DraftWorker(setting, "cpu"), FinishWorker(setting, "cpu")
    items = [item for task in tasks for item in unpack(finish(draft(pack([task]))))]
    assert {f"{item.task.id}.png": item.data for item in items} == files(tmp_path / "whole")
    write(tmp_path / "style.safetensors", of_kohya(4))  # as another node may have it
    with pytest.raises(ModelError, match="the rows were checked with"):
        DraftWorker(setting, "cpu")


def test_a_window_that_a_worker_can_not_hand_on_says_why(model, cluster, monkeypatch):
    monkeypatch.setattr(batches, "finish_drafts", batches.finish_drafts)
    setting = Setting(
        load=cluster.load, identity=identify(model.model), threads=1, batch_size=1, grow=False, suffix=".png"
    )
    draft = DraftWorker(setting, "cpu")
    tasks, _, _ = resolve_wanted(model.model, request(ROWS[0]).wanted)

    def broken(*_: Any) -> None:
        raise TypeError("cannot pickle that")

    monkeypatch.setattr(workers, "_placed", broken)
    assert unpack(draft(pack(tasks))) == [Failure(1, "boat", "TypeError: cannot pickle that")]


def test_what_travels_arrives_as_it_was():
    import pyarrow
    import torch

    strided = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    tables = [pack([strided, "a"]), pack([b"\0"])]
    first, *rest = unpack(pyarrow.concat_tables(tables))
    assert torch.equal(first, strided)
    assert first.stride() == strided.stride()
    assert rest == ["a", b"\0"]
