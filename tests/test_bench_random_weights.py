"""Random weights: the full-size architecture counted without memory, a scaled-down one run end to end."""

from __future__ import annotations

import pytest
import torch

from mrflow import Defaults, MrFlow, Plan
from mrflow.architectures import architectures, make_component, read_architecture
from mrflow.bench.random_weights import make_pipeline, make_random, make_upscaler
from mrflow.errors import ModelError, RequestError, UnsupportedPipelineError
from support.architectures import small_flux

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return make_random(small_flux(), CPU, torch.float32)


def test_every_architecture_says_where_it_is_from():
    assert "flux-dev" in architectures()
    for name in architectures():
        spec = read_architecture(name)
        assert all(spec[field] for field in ("name", "source", "pipeline", "components"))


@pytest.mark.parametrize(
    ("part", "billions"), [("transformer", 11.90), ("text_encoder_2", 4.76), ("text_encoder", 0.12), ("vae", 0.08)]
)
def test_flux1_dev_has_its_published_size(part, billions):
    """12 B parameters in the transformer, as its model card has it; none of them is given memory here."""
    model = make_component(read_architecture("flux-dev")["components"][part])
    parameters = {id(each): each for each in model.parameters()}.values()
    assert all(each.is_meta for each in parameters)
    shared = 32128 * 4096 if part == "text_encoder_2" else 0  # counted twice until it is filled
    count = sum(each.numel() for each in parameters)
    assert min(abs(count - extra - billions * 1e9) for extra in (0, shared)) < 0.006e9


def test_a_scaled_down_flux_runs_through_all_stages(fast):
    plan = Plan(steps=2, refine_steps=1)
    result = fast("a red boat", width=64, height=64, plan=plan, seed=1)
    assert result.images[0].size == (64, 64)
    assert len(set(result.images[0].tobytes())) > 2  # a picture, not one clamped colour
    assert set(result.seconds) >= {"text", "draft", "upscale", "refine", "decode"}
    assert result.recipes[0].plan.guidance_scale == 3.5  # embedded guidance, as the real checkpoint has it
    assert result.recipes[0].model == "FLUX.1-dev, random weights"


def test_weights_are_finite_of_one_dtype_and_all_there(fast):
    for part in (fast.pipe.transformer, fast.pipe.vae, fast.pipe.text_encoder, fast.pipe.text_encoder_2):
        assert not part.training
        for each in (*part.parameters(), *part.buffers()):
            assert not each.is_meta
            assert bool(torch.isfinite(each).all())
        assert {each.dtype for each in part.parameters()} == {torch.float32}
        assert not any(each.requires_grad for each in part.parameters())


def test_shared_weights_are_shared_and_buffers_are_right(fast):
    text = fast.pipe.text_encoder_2
    assert text.shared.weight is text.encoder.embed_tokens.weight
    positions = dict(fast.pipe.text_encoder.named_buffers())
    (ids,) = [value for name, value in positions.items() if name.endswith("position_ids")]
    assert ids.flatten().tolist() == list(range(77))


def test_the_same_weights_each_time_and_the_dtype_asked_for():
    one, other = (make_pipeline(small_flux(), CPU, torch.bfloat16).transformer for _ in range(2))
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert a.dtype is torch.bfloat16
        assert torch.equal(a, b), name


def test_activations_stay_finite(fast):
    pixels = fast.model.upscaler.upscale(torch.rand(1, 3, 16, 16), 32, 32)
    assert pixels.shape == (1, 3, 32, 32)
    assert bool(torch.isfinite(pixels).all())


def test_the_upscaler_has_real_esrgans_size():
    upscaler = make_upscaler(read_architecture("flux-dev")["upscaler"])
    assert upscaler.factor == 2
    count = sum(each.numel() for each in upscaler._network.model.parameters())
    assert count == pytest.approx(16.7e6, rel=0.01)


def test_a_given_upscaler_wins():
    assert make_random(small_flux(), CPU, torch.float32, "bilinear").model.upscaler.name == "bilinear"


def test_the_defaults_are_those_of_the_family(fast):
    assert fast.model.defaults == Defaults()
    assert (fast.model.defaults.width, fast.model.defaults.native_steps) == (1024, 50)


def test_what_is_unknown_or_too_large_is_said(monkeypatch):
    with pytest.raises(RequestError, match=r"Known: .*flux-dev"):
        read_architecture("../flux-dev")
    with pytest.raises(UnsupportedPipelineError):
        make_random({**small_flux(), "pipeline": "NoSuchPipeline"}, CPU, torch.float32)

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mrflow.bench.random_weights.fill", too_large)
    with pytest.raises(ModelError, match="does not fit into the memory of cpu"):
        make_random(small_flux(), CPU, torch.float32)


def test_weights_that_are_more_than_is_free_are_not_drawn(monkeypatch):
    """FLUX.1-dev has 16.9 billion; T5's words are drawn twice, before they are tied."""
    monkeypatch.setattr("mrflow.offloading.free_memory", lambda _device: 40 * 10**9)
    monkeypatch.setattr("mrflow.bench.random_weights.fill", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ModelError, match=r"float32 is 68 GB; 40 GB are free on cpu\. Try dtype bfloat16"):
        make_random(read_architecture("flux-dev"), CPU, torch.float32)
