"""Components that are missing, autoencoders of another class: found out before any work, or driven."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from conftest import make_pipe
from mrflow import Draft, MrFlow
from mrflow.errors import ModelError
from support.families import CASES
from support.families import make_fast as make_family
from support.pipelines import own_call


def tiny(channels: int = 16) -> Any:
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    counts = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    return diffusers.AutoencoderTiny(latent_channels=channels, **blocks, **counts).eval()


def test_a_tiny_autoencoder_drafts_finishes_and_enhances(fast: MrFlow) -> None:
    fast.pipe.vae = tiny()
    asked = {"prompt": "a boat", "negative_prompt": "", "true_cfg_scale": 2.0}
    by_hand = own_call(fast.pipe, 64, 64, steps=3, generator=torch.Generator().manual_seed(1), **asked)
    assert torch.equal(fast.native("a boat", seed=1, output_type="pt").images, by_hand)
    assert fast("a boat", seed=1).images[0].size == (64, 64)
    assert fast.enhance(Image.new("RGB", (32, 32), "red"), "a boat", seed=1).images[0].size == (64, 64)


def others() -> dict[str, Any]:
    video = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 1, "latent_channels": 16}
    return {
        "tiny of other channels": tiny(4),
        "temporal": diffusers.AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), latent_channels=16
        ),
        "of videos": diffusers.AutoencoderKLCogVideoX(**{**video, "layers_per_block": 1}),
    }


@pytest.mark.parametrize("kind", others())
def test_an_autoencoder_that_does_not_fit_is_refused_before_any_work(fast: MrFlow, events: Any, kind: str) -> None:
    seen, callback = events
    drafts = fast.draft("a boat", seed=1)
    fast.pipe.vae = others()[kind].eval()
    name = type(fast.pipe.vae).__name__
    for verb, given in ((fast, "a boat"), (fast.native, "a boat"), (fast.draft, "a boat"), (fast.finish, drafts)):
        with pytest.raises(ModelError, match=f"The autoencoder, {name}, does not fit FluxPipeline: .*model's own"):
            verb(given, callback=callback)
    assert seen == []


def test_so_is_one_that_decodes_with_noise_which_no_seed_holds() -> None:
    fast = make_family(CASES["LuminaPipeline"], CASES["LuminaPipeline"].make())
    count = len(fast.pipe.vae.config.block_out_channels)
    torch.manual_seed(0)
    fast.pipe.vae = diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=(32,) * count,
        encoder_down_block_types=("DownEncoderBlock2D",) * count,
        decoder_block_out_channels=(32,) * count,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * count,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * count,
    ).eval()
    with pytest.raises(ModelError, match=r"ConsistencyDecoderVAE, does not fit LuminaPipeline: .* no seed holds"):
        fast("a boat", seed=1)


@pytest.mark.parametrize("name", ["QwenImagePipeline", "Flux2Pipeline"])
def test_so_is_one_without_the_numbers_of_its_family(name: str) -> None:
    fast = make_family(CASES[name], CASES[name].make())
    fast.pipe.vae = tiny(16)
    with pytest.raises(ModelError, match="The autoencoder, AutoencoderTiny, does not fit"):
        fast("a boat", seed=1)


@pytest.mark.parametrize(
    "part", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer_2", "scheduler"]
)
def test_what_is_missing_is_named_before_any_work(fast: MrFlow, events: Any, part: str) -> None:
    seen, callback = events
    setattr(fast.pipe, part, None)
    for verb in (fast, fast.native, fast.draft):
        with pytest.raises(ModelError, match=rf"The pipeline has no {part} \(None\).*Load it with"):
            verb("a boat", seed=1, callback=callback)
    assert seen == []


def test_a_draft_in_memory_needs_no_text_encoder_one_from_a_file_does(fast: MrFlow, tmp_path: Any) -> None:
    drafts = fast.draft("a boat", seed=1)
    expected = fast.finish(drafts).images[0].tobytes()
    drafts[0].save(tmp_path / "draft.png")
    fast.pipe.text_encoder = fast.pipe.text_encoder_2 = fast.pipe.tokenizer = fast.pipe.tokenizer_2 = None
    assert fast.finish(drafts).images[0].tobytes() == expected
    with pytest.raises(ModelError, match="no text_encoder, text_encoder_2, tokenizer"):
        fast.finish(Draft.from_image(tmp_path / "draft.png"))


def test_stable_diffusion_3_goes_without_t5() -> None:
    fast = make_family(CASES["StableDiffusion3Pipeline"], CASES["StableDiffusion3Pipeline"].make())
    fast.pipe.text_encoder_3 = fast.pipe.tokenizer_3 = None
    assert fast("a boat", seed=1).images


def test_a_folder_that_is_loaded_without_a_part_is_refused_then(tmp_path: Any) -> None:
    make_pipe().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no text_encoder_2"):
        MrFlow.from_pretrained(tmp_path, upscaler="bicubic", text_encoder_2=None)
