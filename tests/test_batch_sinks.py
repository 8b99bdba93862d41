"""Shards and object stores: the same guarantees as in a folder, each by its own means."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import MrFlow, read_recipe
from mrflow.batch.output import Output
from mrflow.batch.shards import ShardSink
from mrflow.batch.sinks import hash_file
from mrflow.errors import OutputError, RequestError
from support.batches import IDS, ROWS, manifest, run


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("shard-*")}


def members(out: Path) -> dict[str, list[str]]:
    listed = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            listed[path.name] = archive.getnames()
    return listed


@pytest.fixture(scope="module")
def model() -> MrFlow:
    """Return one tiny model for all tests here: a batch leaves it as it was."""
    return make_fast(make_pipe())


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory) -> Path:
    """Return a folder of shards of two pictures, made without a break."""
    out = tmp_path_factory.mktemp("sharded")
    assert run(model, out, *ROWS, {"prompt": "a big house", "id": "last"}, form="wds", per_shard=2) == (5, 0, 0)
    return out


def again(model, out: Path) -> tuple[int, int, int]:
    return run(model, out, *ROWS, {"prompt": "a big house", "id": "last"}, form="wds", per_shard=2)


def test_shards_hold_pictures_and_recipes_side_by_side(sharded, model, tmp_path):
    assert members(sharded) == {
        "shard-000000.tar": ["boat.png", "boat.json", "house.png", "house.json"],
        "shard-000001.tar": ["lake-1.png", "lake-1.json", "lake-2.png", "lake-2.json"],
        "shard-000002.tar": ["last.png", "last.json"],
    }
    run(model, tmp_path, ROWS[0])
    with tarfile.open(sharded / "shard-000000.tar") as archive:
        picture = archive.extractfile("boat.png").read()
        recipe = json.loads(archive.extractfile("boat.json").read())
    assert picture == (tmp_path / "boat.png").read_bytes()
    assert recipe["prompt"] == "a red boat"
    assert recipe["pixels_sha256"] == read_recipe(io.BytesIO(picture)).pixels_sha256
    assert [entry["path"] for entry in manifest(sharded)][:3] == [
        "shard-000000.tar/boat.png",
        "shard-000000.tar/house.png",
        "shard-000001.tar/lake-1.png",
    ]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_webdataset_reads_them(sharded):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(sharded.glob("*.tar"))]
    samples = list(
        webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "json")
    )
    gc.collect()
    assert [key for key, _, _ in samples] == [*IDS, "last"]
    assert all(isinstance(image, Image.Image) and recipe["seed"] >= 0 for _, image, recipe in samples)


@pytest.mark.parametrize("cut", [1, 700, 5000, 11_000, 16_000])
def test_a_shard_cut_anywhere_is_taken_up_again(sharded, model, tmp_path, cut):
    """As after a kill: the last shards are missing, one is in progress and torn, the manifest with them."""
    whole = shards(sharded)
    torn = whole["shard-000001.tar"][:cut]
    (tmp_path / "shard-000000.tar").write_bytes(whole["shard-000000.tar"])
    (tmp_path / "shard-000001.tar.part").write_bytes(torn)
    (tmp_path / "manifest.jsonl").write_bytes((sharded / "manifest.jsonl").read_bytes())
    made, skipped, _ = again(model, tmp_path)
    assert (made + skipped, made >= 1) == (5, True)
    assert shards(tmp_path) == whole
    assert again(model, tmp_path) == (0, 5, 0)


def test_pictures_that_are_not_in_the_manifest_are_cut_off(sharded, model, tmp_path):
    lines = (sharded / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    for name, data in shards(sharded).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "manifest.jsonl").write_bytes(b"".join(lines[:3]))
    assert again(model, tmp_path) == (2, 3, 0)
    assert shards(tmp_path) == shards(sharded)


def test_a_damaged_picture_in_a_full_shard_is_made_again_elsewhere(sharded, model, tmp_path):
    for name, data in [*shards(sharded).items(), ("manifest.jsonl", (sharded / "manifest.jsonl").read_bytes())]:
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        at = archive.getmember("boat.png").offset_data + 60
    data = bytearray((tmp_path / "shard-000000.tar").read_bytes())
    data[at] ^= 1
    (tmp_path / "shard-000000.tar").write_bytes(data)
    assert again(model, tmp_path) == (1, 4, 0)
    assert members(tmp_path)["shard-000000.tar"] == ["house.png", "house.json"]
    assert members(tmp_path)["shard-000002.tar"] == ["last.png", "last.json", "boat.png", "boat.json"]
    assert sorted(entry["id"] for entry in manifest(tmp_path)) == sorted([*IDS, "last"])
    assert again(model, tmp_path) == (0, 5, 0)


def test_shards_of_somebody_else_are_left_alone(sharded, tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="no manifest"):
        Output(tmp_path, "wds").find(ShardSink(tmp_path), {})


def test_an_object_store(model, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    url, state = "memory://bucket/pictures", tmp_path / "state"
    assert run(model, url, state=state) == (4, 0, 0)
    for entry in manifest(state):
        assert store.size(f"/bucket/pictures/{entry['path']}") == entry["size"]
    assert store.cat("/bucket/pictures/manifest.jsonl") == (state / "manifest.jsonl").read_bytes()
    store.pipe("/bucket/pictures/boat.png", b"damaged")
    store.rm("/bucket/pictures/house.png")
    assert run(model, url, state=state) == (2, 2, 0)
    run(model, tmp_path / "local", ROWS[0])
    (entry,) = [entry for entry in manifest(state) if entry["id"] == "boat"]
    assert entry["sha256"] == hash_file(tmp_path / "local" / "boat.png")
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"out": "memory://x"}, "--state"),
        ({"out": "memory://x", "state": "y", "form": "wds"}, "remote"),
        ({"out": "x", "form": "bmp"}, "'bmp'"),
        ({"out": "x", "per_shard": 0}, "per_shard is 0"),
    ],
)
def test_outputs_that_make_no_sense(arguments, words):
    with pytest.raises(RequestError, match=words):
        Output(**arguments)


def test_an_unknown_store():
    with pytest.raises(OutputError, match="nowhere"):
        Output("nowhere://bucket", state="x").sink()


def test_a_disk_with_room_for_the_picture_but_not_for_its_recipe_is_full(model, tmp_path, monkeypatch):
    def write(*_: object) -> str:
        raise OutputError("No space left on device.")

    def probe(_: ShardSink, size: int) -> None:
        if size > 40_000:  # the pictures have about 3,000 bytes
            raise OutputError("No space left on device.")

    monkeypatch.setattr(ShardSink, "write", write)
    monkeypatch.setattr(ShardSink, "probe", probe)
    with pytest.raises(OutputError, match="No space left"):
        run(model, tmp_path, form="wds")
    assert not (tmp_path / "errors.jsonl").exists()
