import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrflow import upscaler as module
from mrflow.errors import UpscalerError
from mrflow.upscaler import OVERLAP, Upscaler, _spans


def random_pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(24, 16), (23, 17), (48, 32), (70, 70), (6, 4), (30, 4)])
@pytest.mark.parametrize("source", ["bicubic", "bilinear", "network"])
def test_the_size_is_exact_and_the_range_kept(source: str, size: tuple[int, int], network_file: Path) -> None:
    upscaler = Upscaler.load(network_file if source == "network" else source)
    result = upscaler.upscale(random_pixels(2, 3, 8, 12), *size)
    assert result.shape == (2, 3, size[1], size[0])
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1


def test_at_its_own_factor_the_network_is_used_as_it_is(network_file: Path) -> None:
    from spandrel import ModelLoader

    pixels = random_pixels(1, 3, 8, 12)
    expected = ModelLoader().load_from_file(network_file)(pixels)
    assert torch.equal(Upscaler.load(network_file).upscale(pixels, 24, 16), expected)


def test_a_batch_equals_its_single_pictures(network_file: Path) -> None:
    upscaler, pixels = Upscaler.load(network_file), random_pixels(3, 3, 8, 8)
    batch = upscaler.upscale(pixels, 20, 20)
    assert torch.equal(batch, torch.cat([upscaler.upscale(row, 20, 20) for row in torch.split(pixels, 1)]))


def test_a_flat_picture_stays_flat_when_interpolated() -> None:
    flat = torch.full((1, 3, 5, 7), 0.25)
    for method in ("bicubic", "bilinear"):
        torch.testing.assert_close(Upscaler.load(method).upscale(flat, 19, 11), torch.full((1, 3, 11, 19), 0.25))


def test_tiles_leave_no_seam(network_file: Path) -> None:
    # the network sees 5 x 5 pixels, less than the overlap: cut or whole must be the same
    pixels = random_pixels(1, 3, 90, 200)
    whole = Upscaler.load(network_file).upscale(pixels, 400, 180)
    tiled = Upscaler.load(network_file, tile=80).upscale(pixels, 400, 180)
    assert (whole - tiled).abs().max() < 1e-3


@pytest.mark.parametrize("length", [1, 64, 80, 81, 127, 129, 200, 1000])
def test_spans_cover_everything_and_overlap(length: int) -> None:
    spans = list(_spans(length, 80))
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(end - start <= 80 for start, end in spans)
    assert all(a[1] - b[0] >= OVERLAP for a, b in pairwise(spans))


def test_a_file_is_known_by_name_and_hash(network_file: Path) -> None:
    upscaler = Upscaler.load(network_file)
    assert upscaler.name == "tiny-x2.safetensors"
    assert len(upscaler.sha256 or "") == 64
    assert upscaler.factor == 2
    assert Upscaler.load("bicubic").sha256 is None
    assert Upscaler.load(upscaler) is upscaler


def test_pth_files_are_read_as_weights_only(tmp_path: Path, network_file: Path) -> None:
    path = tmp_path / "tiny.pth"
    torch.save({"params_ema": load_file(network_file)}, path)
    pixels = random_pixels(1, 3, 4, 4)
    expected = Upscaler.load(network_file).upscale(pixels, 8, 8)
    assert torch.equal(Upscaler.load(path).upscale(pixels, 8, 8), expected)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(BOMB_PATH),)  # type: ignore[return-value]


BOMB_PATH = ""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setitem(globals(), "BOMB_PATH", str(tmp_path / "harm"))
    path = tmp_path / "bomb.pth"
    if zipped:
        torch.save({"params": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"params": Bomb()}))
    with pytest.raises(UpscalerError, match="more than weights"):
        Upscaler.load(path)
    assert not (tmp_path / "harm").exists()


def test_files_that_are_no_upscaler_are_refused(tmp_path: Path, network_file: Path) -> None:
    save_file({"some.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "run.pt").write_bytes(network_file.read_bytes())
    for name, words in [
        ("other.safetensors", "no upscaler that spandrel knows"),
        ("text.safetensors", "damaged or holds more"),
        ("empty.pth", "damaged or holds more"),
        ("list.pth", "holds a list"),
        ("run.pt", "must be a .safetensors or .pth"),
        ("none.pth", "There is no upscaler file"),
        ("x" * 5000, "There is no upscaler file"),
    ]:
        with pytest.raises(UpscalerError, match=words):
            Upscaler.load(tmp_path / name)


def test_networks_that_do_not_enlarge_rgb_are_refused(tmp_path: Path) -> None:
    from spandrel.architectures.Compact import Compact

    save_file(Compact(num_feat=4, num_conv=1, upscale=1).state_dict(), tmp_path / "x1.safetensors")
    save_file(
        Compact(num_in_ch=1, num_out_ch=1, num_feat=4, num_conv=1, upscale=2).state_dict(),
        tmp_path / "grey.safetensors",
    )
    with pytest.raises(UpscalerError, match="does not enlarge"):
        Upscaler.load(tmp_path / "x1.safetensors")
    with pytest.raises(UpscalerError, match="must work on RGB"):
        Upscaler.load(tmp_path / "grey.safetensors")


def test_size_limits(network_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UpscalerError, match="tile is 64"):
        Upscaler.load(network_file, tile=64)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(UpscalerError, match="at most 10"):
        Upscaler.load(network_file)
