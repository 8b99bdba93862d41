"""How models are held where memory is scarce: chosen by arithmetic, quantised for real, offloaded to a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conftest import make_fast, make_pipe
from mrflow import MrFlow, loading, offloading, read_recipe
from mrflow.costs import Estimate, Stage, Way
from mrflow.errors import DeviceError, DeviceNameError, MissingExtraError, MrFlowWarning
from mrflow.loading import load_model
from mrflow.offloading import choose, place
from support.batches import errors, run
from support.cli import invoke
from support.gguf_files import write_gguf
from support.loras import write
from support.pictures import bytes_of

ASKED: dict[str, Any] = {"width": 64, "height": 64, "plan": "1+1", "seed": 7}
CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
GB = 10**9


def costs() -> Estimate:
    """Return costs in round numbers, in bfloat16: a transformer of 20 GB, a text encoder of 8 and one of 1.

    Decoding takes three times its gigabyte on a GPU, and in tiles of a quarter of the picture a quarter of that.
    """
    stages = {
        "text": Stage(activations=GB // 10, parts={"text_encoder", "text_encoder_2"}),
        "refine": Stage(activations=GB, parts={"transformer"}),
        "decode": Stage(activations=GB, parts={"vae"}),
    }
    sizes = {"transformer": 10 * GB, "text_encoder": GB // 2, "text_encoder_2": 4 * GB, "vae": GB // 2}
    linear = {"transformer": 10 * GB, "text_encoder": GB // 2, "text_encoder_2": 3 * GB, "vae": 0}
    largest = {"transformer": GB // 10, "text_encoder": GB // 2, "text_encoder_2": GB // 2, "vae": GB // 100}
    about: dict[str, Any] = {
        "model": "large",
        "width": 1024,
        "height": 1024,
        "dtype": torch.bfloat16,
        "stored": {},
    }
    way = Way(name="1+1", stages=stages, calls=2)
    return Estimate(
        **about, parameters=sizes, linear=linear, kept=dict.fromkeys(sizes, 0), largest=largest, ways=[way, way]
    )


# the weights are 20 + 1 + 8 + 1 GB, and most is needed to decode: 3 GB more
LADDER = [
    (33, None, "none", False, 33.0),
    (31, None, "none", True, 31.0),  # then to refine: 1 GB more
    (30.9, None, "model", False, 21.0),
    (20, None, "group", False, 3.02),  # to decode, beside a layer of the autoencoder
    (3, None, "group", True, 2.1),  # a layer of each text encoder and 0.1, more than .77 to decode
    (0.1, None, "group", True, 2.1),
    # 8 bits: 10 + 1 + 2 + 3 + 1 = 17 GB and 3; 4 bits and scales: 5.625 + 1 + 2 + 1.6875 + 1
    (20, "int8", "none", False, 20.0),
    (17.9, "fp8", "model", False, 11.0),
    (14.4, "nf4", "none", False, 14.3125),
]


@pytest.mark.parametrize(("free", "quantize", "offload", "tiled", "size"), LADDER)
def test_the_first_way_that_fits_is_taken(
    free: float, quantize: str | None, offload: str, tiled: bool, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "free_memory", lambda _: free * GB)
    monkeypatch.setattr(offloading, "_ROOM", 1.0)
    found = choose(costs(), CUDA, quantize)
    assert (found.offload, found.tiled) == (offload, tiled)
    assert found.bytes / GB == pytest.approx(size)
    assert found.fits is (size <= free)


def have(monkeypatch: pytest.MonkeyPatch, free: float, ram: float) -> None:
    """Give a card and its machine so many gigabytes that are free."""
    monkeypatch.setattr(offloading, "free_memory", lambda device: int((free if device == CUDA else ram) * GB))
    monkeypatch.setattr(loading, "free_memory", offloading.free_memory)


FASTER = [
    (25, ["quantize int8, whole: 20.0 GB of 25.0 GB free"]),
    # int8 needs 20 GB whole, 18 in tiles, 11 with model offload; nf4 14.3 whole
    (15.5, ["quantize int8, with model offload: 11.0 GB", "quantize nf4, whole: 14.3 GB"]),
    (12, ["quantize int8, with model offload: 11.0 GB"]),  # nf4 would be no faster
    (9, ["quantize nf4, with model offload: 6.6 GB"]),
    (5, []),
]


@pytest.mark.parametrize(("free", "ways"), FASTER)
def test_what_would_be_faster_is_said(free: float, ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, free, ram=64)
    said = choose(costs(), CUDA).instead
    assert said.startswith("faster: ") is bool(ways)
    assert len(said.split("; ")) == max(len(ways), 1)
    assert all(each in said for each in ways)
    assert not choose(costs(), CUDA, "int8").instead
    assert ("nf4" in choose(costs(), CUDA, file=Path("a.gguf")).instead) is ("nf4" in said)
    assert "nf4" not in choose(costs(), CUDA, file=Path("a.safetensors")).instead  # which is refused there


def test_tiles_of_the_autoencoder_are_among_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """nf4 takes 11.3125 GB of weights; to decode 3 GB more, in tiles 1."""
    have(monkeypatch, 13, ram=64)
    monkeypatch.setattr(offloading, "_ROOM", 1.0)
    assert "quantize nf4, whole, its autoencoder in tiles: 12.3 GB of 13.0" in choose(costs(), CUDA).instead


def test_where_nothing_fits_what_would_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """nf4 cannot be moved layer by layer, in which way alone the model fits a card of 5 GB."""
    have(monkeypatch, 5, ram=64)
    found = choose(costs(), CUDA, "nf4")
    assert not found.fits
    assert found.instead == "these fit: quantize none, with group offload: 3.0 GB of 5.0 GB free"
    have(monkeypatch, 0.1, ram=64)
    assert choose(costs(), CUDA).instead == "a .gguf file, a smaller size or model may fit"
    have(monkeypatch, 0, ram=20)
    found = choose(costs(), CPU)  # nf4 needs CUDA, and nothing is offloaded from a CPU
    assert (found.offload, found.tiled, found.waiting, found.fits) == ("none", False, 0, False)
    assert found.instead == "these fit: quantize int8, whole: 18.0 GB of 20.0 GB free"


def test_weights_that_are_moved_need_the_machine_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 30 GB of them, in 8 bits 17."""
    have(monkeypatch, 25, ram=16)
    found = choose(costs(), CUDA)
    assert (found.offload, found.fits, found.waits) == ("model", True, False)
    assert found.ram == "30.0 GB of weights wait in RAM; 16.0 GB are available"
    assert found.instead == "these fit: quantize int8, whole: 20.0 GB of 25.0 GB free"
    have(monkeypatch, 15.5, ram=16)
    assert choose(costs(), CUDA).instead == "these fit: quantize nf4, whole: 14.3 GB of 15.5 GB free"
    have(monkeypatch, 9, ram=16)
    assert choose(costs(), CUDA).instead == "these fit: quantize nf4, with model offload: 6.6 GB of 9.0 GB free"
    have(monkeypatch, 40, ram=16)
    assert choose(costs(), CUDA).waits  # whole, on the device


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what is asked of a card that is not there."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(loading, "check_device", torch.device)
    monkeypatch.setattr(loading, "has_bfloat16", lambda _: True)
    monkeypatch.setattr(loading, "place", lambda pipe, *how: asked.append(how))
    return asked


def test_loading_on_a_gpu_takes_what_fits(
    tiny: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(offloading, "free_memory", lambda _: GB)
    assert load_model(tiny, device="cuda", upscaler="bicubic").vae_tile is None
    assert placed.pop() == (CUDA, "none")
    assert not recwarn.list
    monkeypatch.setattr(offloading, "free_memory", lambda _: 1)
    with pytest.warns(MrFlowWarning, match=r"tiny may not fit, held with group offload, its autoencoder in tiles"):
        assert load_model(tiny, device="cuda", upscaler="bicubic", offload="auto").vae_tile == 512
    assert placed.pop() == (CUDA, "group")
    load_model(tiny, device="cuda", upscaler="bicubic", offload="sequential")
    assert placed.pop() == (CUDA, "sequential")
    load_model(tiny, device="mps", upscaler="bicubic")  # whose memory is the machine's
    assert placed.pop() == (MPS, "none")
    load_model(tiny, upscaler="bicubic")
    assert not placed


@pytest.mark.parametrize("offload", ["model", "group", "sequential", "auto"])
def test_loading_warns_of_too_little_memory_beside_the_device(
    offload: str, tiny: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, 0.001, ram=0.0001)
    with pytest.warns(
        MrFlowWarning, match=r"held with \w+ offload.*, and .* wait in RAM; 0\.0 GB are available; "
    ):
        load_model(tiny, device="cuda", upscaler="bicubic", offload=offload)
    assert placed.pop()[1] in (offload, "group")


def test_loading_on_a_cpu_warns_of_too_little_memory(
    tiny: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    load_model(tiny, device="cpu", upscaler="bicubic")
    assert not recwarn.list
    have(monkeypatch, 0, ram=0.0001)
    with pytest.warns(MrFlowWarning, match=r"tiny may not fit, held whole: .* of 0\.0 GB free, on cpu; a .gguf"):
        load_model(tiny, device="cpu", upscaler="bicubic")


def test_check_counts_what_loading_counts(
    tiny: Path, tmp_path: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a .gguf file the packed weights."""
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "mine.gguf", make_pipe().transformer.state_dict())
    counted = list[Any]()

    def chosen(costs: Estimate, *_: Any, **__: Any) -> offloading.Holding:
        counted.append(costs)
        return offloading.Holding(offload="none", tiled=False, bytes=0, free=1)

    monkeypatch.setattr(loading, "choose", chosen)
    monkeypatch.setattr(offloading, "choose", chosen)
    monkeypatch.setattr("mrflow.cli.check.best_device", lambda: "cuda")
    for model, base in ((tiny, None), (tmp_path / "mine.gguf", tiny)):
        load_model(model, base=base, device="cuda", dtype="bfloat16")
        invoke(["check", model, *(["--base", base] if base else [])])
        loaded, checked = counted[-2:]
        assert loaded.memory(loaded.ways[1]) == checked.memory(checked.ways[1])
    assert len(counted) == 4
    assert counted[3].stored["transformer"] < counted[1].weights("transformer")


def test_memory_is_looked_at_before_weights_take_it(
    tiny: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those in nf4 do while they are read; then the model's own weights seemed to be in its way."""
    have(monkeypatch, 1, ram=64)
    read = loading._load_pipeline

    def take(*given: Any) -> Any:
        have(monkeypatch, 0, ram=64)
        return read(*given)

    monkeypatch.setattr(loading, "_load_pipeline", take)
    load_model(tiny, device="cuda", upscaler="bicubic")
    assert placed == [(CUDA, "none")]


def test_larger_pictures_need_more(tiny: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "free_memory", lambda _: 50 * 10**6)
    assert load_model(tiny, device="cuda", upscaler="bicubic", width=256, height=256).vae_tile is None
    large: dict[str, Any] = {"device": "cuda", "upscaler": "bicubic", "width": 2048, "height": 2048}
    with pytest.warns(MrFlowWarning, match="tiles"):
        assert load_model(tiny, **large).vae_tile == 512
    monkeypatch.setattr(offloading, "free_memory", lambda _: GB)
    with pytest.warns(MrFlowWarning, match=r"tiles.* of 0\.1 GB free"):  # what is allowed counts as free
        assert load_model(tiny, **large, allowed=50 * 10**6).vae_tile == 512


def test_weights_are_moved_by_the_pipeline_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, asked = make_pipe(), []
    verb = "enable_sequential_cpu_offload"  # which accelerate does not do on a CPU
    monkeypatch.setattr(type(pipe), verb, lambda self, device: asked.append(device))
    place(pipe, CUDA, "sequential")
    assert asked == [CUDA]


@pytest.mark.parametrize("how", ["none", "model", "group"])
def test_placed_pipelines_give_the_same(how: str) -> None:
    pipe = make_pipe()
    expected = make_fast(pipe)("a red boat", **ASKED)
    place(pipe, CPU, how)
    assert offloading.offloading(pipe) == how
    assert bytes_of(make_fast(pipe)("a red boat", **ASKED).images) == bytes_of(expected.images)


def test_an_autoencoder_that_is_to_work_in_tiles_does_so_and_says_so() -> None:
    fast, sizes = make_fast(make_pipe()), list[int]()
    fast.model = replace(fast.model, vae_tile=64)
    fast.pipe.vae.encoder.conv_in.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[-1]))
    recipe = fast("a red boat", **{**ASKED, "width": 512, "height": 256}).recipes[0]
    assert max(sizes) == 256  # the least that is worth cutting
    assert recipe.conditions == {"vae": "in tiles of 64"}


WRONG = [
    ({"quantize": "int4"}, DeviceNameError, "must be one of none, int8, fp8, nf4"),
    ({"quantize": "nf4"}, DeviceNameError, "nf4, which cpu cannot do. Try int8"),
    ({"offload": "disk"}, DeviceNameError, "must be one of none, model, group, sequential, auto"),
    ({"offload": "model"}, DeviceNameError, "cpu has the machine's own memory. Try none"),
    ({"offload": "group", "quantize": "nf4", "device": "cuda"}, DeviceNameError, "no weights in nf4. Try model"),
    ({"offload": "sequential", "quantize": "int8", "device": "cuda"}, DeviceNameError, "Try model"),
    ({"quantize": "fp8", "device": "mps"}, DeviceNameError, "Try int8"),
]


@pytest.mark.parametrize(("asked", "kind", "text"), WRONG)
def test_what_cannot_be_is_said_before_any_work(
    asked: dict[str, str], kind: type[Exception], text: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "check_device", torch.device)
    monkeypatch.setattr(loading, "has_bfloat16", lambda _: True)
    monkeypatch.setattr(offloading, "find_spec", lambda _: True)
    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", lambda *_: pytest.fail("work was done"))
    with pytest.raises(kind, match=text):
        load_model(tiny, upscaler="bicubic", **asked)


def test_nf4_of_a_single_file_is_refused_by_check_as_by_loading(
    tmp_path: Path, placed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrflow.cli.check.best_device", lambda: "cuda")
    save_file(make_pipe().transformer.state_dict(), tmp_path / "mine.safetensors")
    make_pipe().save_pretrained(tmp_path / "base")
    with pytest.raises(DeviceNameError, match=r"takes no \.safetensors file") as told:
        load_model(tmp_path / "mine.safetensors", base=tmp_path / "base", device="cuda", quantize="nf4")
    asked = ["--base", tmp_path / "base", "--quantize", "nf4"]
    result = invoke(["check", tmp_path / "mine.safetensors", *asked])
    assert (result.exit_code, str(told.value) in result.stderr) == (2, True)


def test_the_extra_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"torchao is not installed.*\.\[quantization\]"):
        load_model(tiny, quantize="int8")
    result = invoke(["generate", "a boat", "--model", tiny, "--quantize", "int8"])
    assert (result.exit_code, "torchao is not installed" in result.stderr) == (1, True)


def test_a_device_that_is_too_small_says_what_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe()

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(pipe), "to", full)
    monkeypatch.setattr(type(pipe), "_execution_device", CUDA)
    with pytest.raises(
        DeviceError, match=r"does not fit on cuda.*held whole\. Next: offload model, quantize int8"
    ):
        place(pipe, CUDA)
    pipe.transformer.register_parameter("packed", type("Params4bit", (torch.nn.Parameter,), {})(torch.zeros(1)))
    assert "Next: offload group without quantize, tiles" in offloading.next_choice(pipe, "model")


@pytest.fixture
def starved() -> MrFlow:
    fast = make_fast(make_pipe())

    def forward(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    fast.pipe.transformer.forward = forward
    return fast


ADVICE = "The model is held whole. Next: quantize int8, tiles (tile=512)"


def test_memory_that_runs_out_has_a_way_out(
    starved: MrFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised:
        starved("a boat", **ASKED)
    assert raised.value.__notes__[0].startswith(ADVICE)
    assert run(starved, tmp_path / "out", {"prompt": "a boat", "seed": 7}) == (0, 0, 1)
    assert ADVICE in errors(tmp_path / "out")[0]["error"]
    monkeypatch.setattr("mrflow.cli.loading.ModelOptions.load", lambda self: starved)
    result = invoke(["generate", "a boat", "--plan", "1+1", "--out", tmp_path / "a.png"])
    assert (result.exit_code, result.stderr.strip().count("\n")) == (1, 0)
    assert f"20.00 GiB {ADVICE}" in result.stderr


CONFIGS: dict[str, Any] = {"int8": ("Int8WeightOnlyConfig", {"version": 2}), "fp8": ("Float8WeightOnlyConfig", {})}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose second text encoder is large beside the rest."""
    from transformers import T5Config, T5EncoderModel

    pipe, path = make_pipe(), tmp_path_factory.mktemp("models") / "wide"
    torch.manual_seed(1)
    size: dict[str, Any] = {"vocab_size": 13, "d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    pipe.text_encoder_2 = T5EncoderModel(T5Config(**size, d_ff=4096, feed_forward_proj="gated-gelu")).eval()
    pipe.save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", CONFIGS)
def test_quantised_as_torchao_does_it(kind: str, wide: Path) -> None:
    """Weights of linear layers in the transformer and the large text encoder, not in the small one."""
    torchao = pytest.importorskip("torchao.quantization")
    by_hand = MrFlow.from_pretrained(wide, upscaler="bicubic")
    config, told = CONFIGS[kind]
    for part in (by_hand.pipe.transformer, by_hand.pipe.text_encoder_2):
        torchao.quantize_(part, getattr(torchao, config)(**told))
    fast = MrFlow.from_pretrained(wide, upscaler="bicubic", quantize=kind)
    made, expected = fast("a red boat", **ASKED), by_hand("a red boat", **ASKED)
    assert bytes_of(made.images) == bytes_of(expected.images)
    tensor = {"int8": "Int8Tensor", "fp8": "Float8Tensor"}[kind]
    assert made.recipes[0].conditions == {"weights": tensor, "weights.text_encoder_2": tensor}
    plain = MrFlow.from_pretrained(wide, upscaler="bicubic")("a red boat", **ASKED)
    assert not plain.recipes[0].conditions
    assert bytes_of(plain.images) != bytes_of(made.images)
    assert bytes_of(fast("a red boat", **ASKED).images) == bytes_of(made.images)


def test_a_single_file_and_loras_are_quantised_with(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    save_file(make_pipe().transformer.state_dict(), tmp_path / "mine.safetensors")
    told: dict[str, Any] = {"base": wide, "upscaler": "bicubic", "quantize": "int8"}
    fast = MrFlow.from_pretrained(tmp_path / "mine.safetensors", **told)
    plain = fast("a red boat", **ASKED)
    assert plain.recipes[0].conditions["weights"] == "Int8Tensor"
    assert bytes_of(plain.images) == bytes_of(
        MrFlow.from_pretrained(wide, upscaler="bicubic", quantize="int8")("a red boat", **ASKED).images
    )
    fast.load_loras(write(tmp_path / "style.safetensors"))
    assert bytes_of(fast("a red boat", **ASKED).images) != bytes_of(plain.images)
    assert bytes_of(fast("a red boat", **ASKED, loras=[]).images) == bytes_of(plain.images)


def test_the_command_line_and_a_replay(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    out = tmp_path / "a.png"
    common = ["--model", wide, "--upscaler", "bicubic"]
    made = invoke(
        ["generate", "a red boat", *common, *["--size", "64", "--plan", "1+1", "--quantize", "int8", "--out"], out]
    )
    assert made.exit_code == 0, made.stderr
    assert read_recipe(out).conditions["weights"] == "Int8Tensor"
    again = invoke(["replay", out, *common, "--out", tmp_path / "b.png"])
    assert "same pixels" in again.stderr, again.stderr
    other = invoke(["replay", out, *common, "--quantize", "fp8", "--out", tmp_path / "c.png", "--json"])
    assert (other.exit_code, json.loads(other.stdout)["same_pixels"]) == (1, False)
    assert "Float8Tensor" in other.stderr
