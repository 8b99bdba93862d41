import hashlib
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from mrflow import upscaler as module
from mrflow.errors import UpscalerError
from mrflow.known_upscalers import KNOWN, KnownUpscaler, folder
from mrflow.loading import check_dtype
from mrflow.upscaler import Upscaler


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


@pytest.mark.parametrize("size", [(20, 12), (24, 6), (9, 16), (30, 20)])
def test_what_the_network_made_too_large_is_shrunk_as_pillow_does(
    size: tuple[int, int], network_file: Path
) -> None:
    from spandrel import ModelLoader

    network, made = ModelLoader().load_from_file(network_file), random_pixels(1, 3, 8, 12)
    while made.shape[-1] < size[0] or made.shape[-2] < size[1]:  # one side that grows is enough
        made = network(made)
    expected = resized_by_pillow(made, size, Image.Resampling.BICUBIC)
    ours = Upscaler.load(network_file).upscale(random_pixels(1, 3, 8, 12), *size)
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(("method", "filter"), [("bicubic", "BICUBIC"), ("bilinear", "BILINEAR")])
@pytest.mark.parametrize("size", [(40, 24), (13, 9), (20, 40)])
def test_interpolation_is_pillows(method: str, filter: str, size: tuple[int, int]) -> None:
    pixels = random_pixels(1, 3, 17, 20)
    expected = resized_by_pillow(pixels, size, Image.Resampling[filter])
    assert torch.allclose(Upscaler.load(method).upscale(pixels, *size), expected, atol=1e-5)


def resized_by_pillow(pixels: torch.Tensor, size: tuple[int, int], filter: Image.Resampling) -> torch.Tensor:
    """Return (1, 3, h, w) pixels as Pillow resizes floating-point channels, which it antialiases."""
    rows = [np.asarray(Image.fromarray(row.numpy()).resize(size, filter)) for row in pixels.detach()[0]]
    return torch.from_numpy(np.stack(rows))[None].clamp(0, 1)


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


def compact() -> Any:
    from spandrel.architectures.Compact import Compact

    return Compact(num_feat=4, num_conv=1, upscale=4).state_dict()


def real_esrgan(scale: int) -> Any:
    """Return a network of Real-ESRGAN's in the layout of its releases; x2 shuffles 2 x 2 pixels into channels."""
    channels = 12 if scale == 2 else 3
    grown = [(4 + 32 * k, 32 if k < 4 else 4) for k in range(5)]  # dense blocks grow by 32
    shapes = {"conv_first": (4, channels), "conv_body": (4, 4), "conv_up1": (4, 4), "conv_up2": (4, 4)}
    shapes |= {"conv_hr": (4, 4), "conv_last": (3, 4)}
    shapes |= {
        f"body.0.rdb{block}.conv{k + 1}": (out, into) for block in (1, 2, 3) for k, (into, out) in enumerate(grown)
    }
    weights = {f"{name}.weight": torch.randn(*shape, 3, 3) * 0.1 for name, shape in shapes.items()}
    return {"params_ema": weights | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}}


def old_esrgan() -> Any:
    """Return a network in ESRGAN's first layout, as Remacri has it."""
    grown = [(4 + 32 * k, 32 if k < 4 else 4) for k in range(5)]  # dense blocks grow by 32
    shapes = {"model.0": (4, 3), "model.1.sub.1": (4, 4), "model.3": (4, 4), "model.6": (4, 4)}
    shapes |= {"model.8": (4, 4), "model.10": (3, 4)}
    shapes |= {
        f"model.1.sub.0.RDB{block}.conv{k + 1}.0": (out, into)
        for block in (1, 2, 3)
        for k, (into, out) in enumerate(grown)
    }
    weights = {f"{name}.weight": torch.randn(*shape, 3, 3) * 0.1 for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}


def swin_ir() -> Any:
    from spandrel.architectures.SwinIR import SwinIR

    return SwinIR(
        embed_dim=8, depths=[1], num_heads=[2], window_size=8, mlp_ratio=2.0, upscale=2, upsampler="pixelshuffle"
    ).state_dict()


def dat() -> Any:
    from spandrel.architectures.DAT import DAT

    return DAT(
        embed_dim=32,
        split_size=[8, 8],
        depth=[1],
        num_heads=[2],
        expansion_factor=2,
        upscale=2,
        upsampler="pixelshuffledirect",
    ).state_dict()


def span() -> Any:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=4, upscale=2).state_dict()


NETWORKS: dict[str, tuple[int, Callable[[], Any]]] = {
    "Real-ESRGAN x2": (2, lambda: real_esrgan(2)),
    "Real-ESRGAN x4": (4, lambda: real_esrgan(4)),
    "compact x4": (4, compact),
    "old ESRGAN x4": (4, old_esrgan),
    "SwinIR x2": (2, swin_ir),
    "DAT x2": (2, dat),
    "SPAN x2": (2, span),
}


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # spandrel 0.4.2's SwinIR
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_many_architectures_are_read_and_tiled_without_a_trace(name: str, tmp_path: Path) -> None:
    factor, make = NETWORKS[name]
    torch.manual_seed(2)
    torch.save(make(), tmp_path / "network.pth")
    upscaler = Upscaler.load(tmp_path / "network.pth")
    assert upscaler.factor == factor
    pixels = random_pixels(1, 3, 64, 160)
    with torch.no_grad():
        whole = upscaler.upscale(pixels, 160 * factor, 64 * factor)
        tiled = Upscaler.load(tmp_path / "network.pth", tile=101).upscale(pixels, 160 * factor, 64 * factor)
        odd = upscaler.upscale(pixels[..., :23, :31], 70, 50)
    assert odd.shape == (1, 3, 50, 70)
    assert (whole.amax() - whole.amin()) > 1e-3
    # A quarter of a grey level; only DAT looks further than the overlap: it weighs channels by their mean.
    assert (whole - tiled).abs().max() < (2e-2 if name.startswith("DAT") else 1e-3)


# --- known names ---


def test_known_upscalers_are_pinned() -> None:
    for name, known in KNOWN.items():
        assert known.name == name
        assert re.fullmatch("[0-9a-f]{64}", known.sha256)
        if known.package:
            assert known.file.endswith(".bin")
            continue
        assert known.url.startswith("https://")
        assert "/main/" not in known.url
        assert known.file.endswith((".pth", ".safetensors"))


@pytest.fixture
def published(tmp_path: Path, network_file: Path, monkeypatch: pytest.MonkeyPatch) -> KnownUpscaler:
    """Return a known name whose file is published on this disk."""
    digest = hashlib.sha256(network_file.read_bytes()).hexdigest()
    known = KnownUpscaler(name="mine-x2", url=network_file.as_uri(), sha256=digest, about="", licence="")
    monkeypatch.setattr(module, "KNOWN", {"mine-x2": known})
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return known


def test_a_known_name_is_fetched_once(published: KnownUpscaler, network_file: Path, monkeypatch: Any) -> None:
    upscaler = Upscaler.load("mine-x2")
    assert (upscaler.name, upscaler.sha256) == ("mine-x2", published.sha256)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pixels = random_pixels(1, 3, 4, 4)
    expected = Upscaler.load(network_file).upscale(pixels, 8, 8)
    assert torch.equal(Upscaler.load("mine-x2").upscale(pixels, 8, 8), expected)


def test_offline_the_error_says_which_file_goes_where(published: KnownUpscaler, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UpscalerError) as error:
        Upscaler.load("mine-x2")
    assert "HF_HUB_OFFLINE is set" in str(error.value)
    assert f"Put tiny-x2.safetensors from {published.url} into {folder()}" in str(error.value)


@pytest.mark.parametrize("installed", [False, True])
def test_offline_what_is_installed_is_not_to_be_installed(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MRFLOW_CACHE", str(tmp_path))
    package = SimpleNamespace(origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr("mrflow.known_upscalers.find_spec", lambda _: package)
    if installed:
        KNOWN["realesrgan-x4-ncnn"].path.parent.mkdir(parents=True)
        KNOWN["realesrgan-x4-ncnn"].path.touch()
    with pytest.raises(UpscalerError) as error:
        Upscaler.load("realesrgan-x2")
    assert ("or take realesrgan-x4-ncnn" in str(error.value)) == installed
    assert ("pip install" in str(error.value)) != installed


def test_other_bytes_than_published_are_refused(published: KnownUpscaler, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "KNOWN", {"mine-x2": replace(published, sha256="0" * 64)})
    with pytest.raises(UpscalerError, match="invalid hash"):
        Upscaler.load("mine-x2")
    assert not list(folder().iterdir())
    (folder() / published.file).write_bytes(b"something else")
    with pytest.raises(UpscalerError, match=r"has the SHA-256 .* Delete the file"):
        Upscaler.load("mine-x2")


def test_an_unknown_name_lists_those_known() -> None:
    known = r"no upscaler file 'realesrgan-x3'\. Did you mean realesrgan-x.*bicubic.*realesrgan-x2.*remacri-x4"
    with pytest.raises(UpscalerError, match=known):
        Upscaler.load("realesrgan-x3")


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


@pytest.mark.parametrize("size", [(40, 24), (13, 9), (20, 40)])
def test_lanczos_is_pillows(size):
    """Pillow's own, on floating-point channels; it drops weights at the very edge of the window."""
    pixels = torch.rand(1, 3, 17, 20, generator=torch.Generator().manual_seed(0))
    ours = Upscaler("lanczos").upscale(pixels, *size)
    theirs = resized_by_pillow(pixels, size, Image.Resampling.LANCZOS)
    assert ours.shape == (1, 3, size[1], size[0])
    assert torch.allclose(ours, theirs, atol=1e-4)


# --- what older hardware lacks ---


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_only_where_a_gpu_has_it_itself(
    native: bool, expected: torch.dtype, network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    network = SimpleNamespace(scale=2, supports_bfloat16=True, device=None, dtype=None, model=torch.nn.Identity())
    network.to = lambda device, dtype: vars(network).update(device=device, dtype=dtype)
    Upscaler("x", network)._place(torch.device("cuda", 1))
    assert network.dtype == expected
    assert asked == [torch.device("cuda", 1)]  # the card in use, not the current one
    assert check_dtype(None, torch.device("cuda", 1)) == (torch.bfloat16 if native else torch.float16)


def test_a_device_that_cannot_resize_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, real = random_pixels(1, 3, 8, 8), F.interpolate

    class Elsewhere:
        device = torch.device("mps")

        def cpu(self) -> torch.Tensor:
            return pixels

    def interpolate(given: Any, **options: Any) -> torch.Tensor:
        if isinstance(given, Elsewhere):
            raise NotImplementedError("aten::_upsample_bicubic2d_aa is not implemented for MPS")
        return real(given, **options)

    monkeypatch.setattr(F, "interpolate", interpolate)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, place: (self, place))
    made, place = module.resize(Elsewhere(), 12, 12, "bicubic")
    assert place == torch.device("mps")
    assert torch.equal(made, real(pixels, size=(12, 12), mode="bicubic", antialias=True, align_corners=False))
    assert module.has_bfloat16(torch.device("xpu"))
