"""What saves memory keeps working in both passes: quantised weights, tiled and sliced autoencoders, offloading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import Plan
from support.pictures import bytes_of
from support.pipelines import own_call, state_of

PLAN = Plan(steps=2, refine_sigma=0.3, true_cfg_scale=2.0, noise="own")


def check_both_passes(pipe: Any, weights: str) -> None:
    plain = make_fast(make_pipe())("a red boat", seed=7, plan=PLAN)
    expected = own_call(pipe, negative_prompt="", true_cfg_scale=2.0)
    fast, before = make_fast(pipe), state_of(pipe)
    result = fast("a red boat", seed=7, plan=PLAN)
    assert torch.equal(result.drafts[0].pixels, expected)
    assert weights in result.recipes[0].conditions["weights"]
    assert (result.drafts[0].pixels - plain.drafts[0].pixels).abs().max() < 0.05
    assert bytes_of(fast("a red boat", seed=7, plan=PLAN).images) == bytes_of(result.images)
    assert state_of(pipe) == before


def test_int8_weights() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    pipe = make_pipe()
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig(version=2))
    check_both_passes(pipe, "Int8")


def test_weights_from_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    pipe = make_pipe()
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "flux")
    for name, value in pipe.transformer.state_dict().items():
        array = value.numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pipe.transformer = FluxTransformer2DModel.from_single_file(
        str(tmp_path / "tiny.gguf"),
        config=str(tmp_path / "transformer"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        dtype=torch.float32,
    ).eval()
    check_both_passes(pipe, "GGUF")


def test_a_sliced_autoencoder_gives_the_same() -> None:
    pipe = make_pipe()
    fast = make_fast(pipe, batch_size=2)
    whole = fast(["a boat", "a lake"], seed=1, plan=PLAN)
    pipe.vae.enable_slicing()
    sliced = fast(["a boat", "a lake"], seed=1, plan=PLAN)
    for one, other in zip(whole.images, sliced.images, strict=True):
        difference = torch.tensor(list(one.tobytes())) - torch.tensor(list(other.tobytes()))
        assert difference.abs().max() <= 1


def test_a_tiled_autoencoder_is_used_and_recorded() -> None:
    pipe = make_pipe()
    fast = make_fast(pipe)
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 64, 8
    sizes: list[int] = []
    pipe.vae.encoder.register_forward_hook(lambda _module, args, _output: sizes.append(args[0].shape[-1]))
    result = fast("a red boat", seed=7, width=128, height=96, plan=PLAN)
    assert result.images[0].size == (128, 96)
    assert max(sizes) == 64
    assert result.recipes[0].conditions == {"vae": "tiled"}


OFFLOADS: dict[str, Callable[[Any], Any]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "groups": lambda pipe: pipe.enable_group_offload(
        onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("how", OFFLOADS)
def test_offloading(how: str) -> None:
    whole = make_pipe().to("cuda")
    expected = make_fast(whole)("a red boat", seed=7, plan=PLAN)
    pipe = make_pipe()
    OFFLOADS[how](pipe)
    fast = make_fast(pipe)
    for _ in range(2):
        result = fast("a red boat", seed=7, plan=PLAN)
        assert result.recipes[0].device == "cuda"
        assert (result.drafts[0].pixels - expected.drafts[0].pixels).abs().max() < 1e-4
    assert all(parameter.device.type in ("cpu", "meta") for parameter in pipe.transformer.parameters())


def test_groups_offloaded_on_a_cpu_change_nothing() -> None:
    pipe = make_pipe()
    expected = make_fast(pipe)("a red boat", seed=7, plan=PLAN)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert bytes_of(make_fast(pipe)("a red boat", seed=7, plan=PLAN).images) == bytes_of(expected.images)


@pytest.mark.parametrize("verb", ["call", "enhance", "native"])
def test_offloaded_modules_leave_the_device_when_a_call_ends_and_before_encoding(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plain pipeline's call ends; a text encoder on the device would take the autoencoder's place."""
    from accelerate.hooks import CpuOffload

    pipe, log = make_pipe(), list[str]()
    fast = make_fast(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    names = {id(part): name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    onto, free = CpuOffload.pre_forward, type(pipe).maybe_free_model_hooks

    def moved(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        log.append(names.get(id(module), "?"))
        return onto(self, module, *args, **kwargs)

    def freed(self: Any) -> None:
        log.append("free")
        free(self)

    monkeypatch.setattr(CpuOffload, "pre_forward", moved)
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", freed)
    if verb == "call":
        fast("a boat", seed=1, plan=PLAN)
    elif verb == "enhance":
        fast.enhance(torch.full((1, 3, 32, 32), 0.5), "a boat", seed=1, plan=PLAN)
    else:
        fast.native("a boat", seed=1, steps=1)
    assert log[-1] == "free"
    between = log[: len(log) - log[::-1].index("vae")]
    encoders = [k for k, name in enumerate(between) if name.startswith("text_encoder")]
    assert "free" in between[encoders[-1] : between.index("vae")]
