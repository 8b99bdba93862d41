import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import backbones
from mrflow.backbones import get_backbone, register_backbone, supported
from mrflow.backbones.flux import FluxBackbone
from mrflow.errors import UnsupportedPipelineError


def test_a_registered_backbone_drives_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_registered", {})
    with pytest.raises(UnsupportedPipelineError, match="supported are FluxPipeline"):
        get_backbone("MyPipeline")
    mine = FluxBackbone()
    register_backbone("MyPipeline", mine)
    assert get_backbone("MyPipeline") is mine
    assert supported() == ("FluxPipeline", "MyPipeline")

    pipe = make_pipe()
    pipe.__class__ = type("MyPipeline", (type(pipe),), {})
    assert make_fast(pipe)("a boat", seed=1).images[0].size == (64, 64)


def test_latents_keep_their_shape_through_packing(pipe) -> None:
    flux = FluxBackbone()
    shape = flux.latent_shape(pipe, 96, 64)
    assert shape == (16, 8, 12)
    latents = torch.randn(2, *shape)
    packed = flux.pack(pipe, latents)
    assert packed.shape == (2, 24, 64)
    assert torch.equal(flux.unpack(pipe, packed, 96, 64), latents)


def test_pixels_become_normalised_latents(pipe) -> None:
    flux, pixels = FluxBackbone(), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        latents = flux.encode(pipe, pixels)
        mode = pipe.vae.encode(pixels * 2 - 1).latent_dist.mode()
        decoded = flux.decode(pipe, latents)
    torch.testing.assert_close(latents, (mode - 0.1159) * 0.3611)
    assert latents.shape == (1, *flux.latent_shape(pipe, 48, 32))
    assert decoded.shape == pixels.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_the_guidance_of_a_checkpoint() -> None:
    flux = FluxBackbone()
    plain, embedded = make_pipe(), make_pipe(guidance_embeds=True)
    assert (flux.guidance_field(plain), flux.default_guidance(plain)) == ("true_cfg_scale", 1.0)
    assert (flux.guidance_field(embedded), flux.default_guidance(embedded)) == ("guidance_scale", 3.5)
    assert flux.guidance_arguments(None, 2.0) == {"true_cfg_scale": 2.0}


@pytest.mark.parametrize(
    ("prompt", "cut", "unknown"),
    [
        ("a red boat", "", ()),
        ("a " * 15, "", ()),
        ("a " * 15 + "boat", "boat", ()),
        ("a " * 15 + "big, boat!", "big, boat!", ()),
        ("a Red boat, a Red lake", "", ("Red",)),
    ],
)
def test_reading_a_prompt(pipe, prompt: str, cut: str, unknown: tuple[str, ...]) -> None:
    reading = FluxBackbone().read_prompt(pipe, prompt, 16)
    assert (reading.cut, reading.unknown) == (cut, unknown)


def test_what_is_said_to_be_cut_is_what_the_pipeline_cuts(pipe) -> None:
    whole, cut = "a red boat at dusk " * 3, FluxBackbone().read_prompt(pipe, "a red boat at dusk " * 3, 16).cut
    kept = whole[: whole.rindex(cut)] if cut else whole
    encode = lambda text: FluxBackbone().encode_prompts(pipe, [text], None, 16)["prompt_embeds"]  # noqa: E731
    with torch.no_grad():
        assert torch.equal(encode(whole.strip()), encode(kept.strip()))
