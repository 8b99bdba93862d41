"""Tiny random pipelines of the real classes: every path of the package runs on a CPU, offline, in milliseconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Tiny components: a second thread costs more than it gives, and files are the same to the byte only with as many.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One set of kernels on every x86, before torch is there: with AVX-512, convolutions of a batch round otherwise
# than those of one picture, by a few units of the fifth digit: what holds to 1e-5 would depend on the machine.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mrflow import MrFlow

ROUNDING = 2e-5 if torch.__version__.startswith("2.7.") else 1e-5
"""What a pass may differ by in a batch and alone; the convolutions of torch 2.7.1 go up to 1.7e-5."""

WORDS = ["<pad>", "<unk>", "</s>", "a", "red", "blue", "big", "boat", "house", "lake", "at", "dusk", "and"]


def make_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=max_length,
    )


def make_pipe(*, guidance_embeds: bool = False, **scheduler: Any) -> FluxPipeline:
    """Return a FluxPipeline with some ten thousand random parameters, the same each time."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=2,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(WORDS),
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=2,
        )
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **scheduler}),
        vae=vae.eval(),
        text_encoder=clip.eval(),
        tokenizer=make_tokenizer(16),
        text_encoder_2=t5.eval(),
        tokenizer_2=make_tokenizer(16),
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let Ctrl-C reach the tests and what they start: a shell's job in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_config_file() -> None:
    """Keep whoever runs the tests from having their own defaults in them."""
    os.environ["MRFLOW_CONFIG"] = ""


@pytest.fixture
def pipe() -> FluxPipeline:
    """Return a pipeline without guidance embeddings, with dynamic shifting."""
    return make_pipe()


@pytest.fixture
def fast(pipe: FluxPipeline) -> MrFlow:
    """Return MrFlow over `pipe`, 64 x 64 pixels and 16 text tokens unless told otherwise."""
    return make_fast(pipe)


def make_fast(pipe: FluxPipeline, **options: Any) -> MrFlow:
    from mrflow import Defaults, Plan

    plan = Plan(steps=3, true_cfg_scale=None if pipe.transformer.config.guidance_embeds else 2.0)
    defaults = Defaults(width=64, height=64, plan=plan, native_steps=3, max_sequence_length=16)
    return MrFlow(pipe, **{"upscaler": "bicubic", "defaults": defaults, **options})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny pipeline, to be left as it is."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a .safetensors file with a tiny random x2 network that spandrel knows."""
    from safetensors.torch import save_file
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(1)
    network = Compact(num_feat=4, num_conv=1, upscale=2)
    path = tmp_path_factory.mktemp("upscaler") / "tiny-x2.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture
def ray_finds_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of a Ray that is started here import what lies beside the tests."""
    places = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))


@pytest.fixture
def events() -> tuple[list[Any], Callable[[Any], None]]:
    """Return a list and a callback that fills it."""
    seen: list[Any] = []
    return seen, seen.append
