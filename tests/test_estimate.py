"""Costs before any download: held against closed forms written out here, and against what really runs."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.write_estimates import HEAD, PAGE
from torch.utils.flop_counter import FlopCounterMode

from mrflow import MrFlow, Plan, estimate
from mrflow.costs import WORKSPACE, Estimate, Tally, hollow_model
from mrflow.errors import PlanError, RequestError
from mrflow.known_models import KNOWN
from mrflow.upscaler import Upscaler
from support.cli import invoke
from support.latents import write_network

PROMPT = "a red boat"  # three tokens


def linear(tokens: int, *widths: int) -> int:
    """Return the operations of layers widths[0] -> widths[1] -> ... on so many tokens."""
    return sum(2 * tokens * a * b for a, b in pairwise(widths))


def conv(inputs: int, outputs: int, side: int, kernel: int = 3) -> int:
    return 2 * inputs * outputs * kernel**2 * side**2


def attention(tokens: int, width: int) -> int:
    """Return 2 n^2 d for queries and keys, as many for values."""
    return 4 * tokens**2 * width


def flux_step(image: int, text: int = 512) -> int:
    """FLUX.1-dev: 19 blocks with streams of their own, 38 with one, 3072 wide; image, text: tokens."""
    d, n = 3072, image + text
    stream = lambda tokens: linear(tokens, d, 3 * d) + linear(tokens, d, d) + linear(tokens, d, 4 * d, d)  # noqa: E731
    double = stream(image) + stream(text) + attention(n, d) + 2 * linear(1, d, 6 * d)
    single = (
        linear(n, d, 3 * d) + linear(n, d, 4 * d) + linear(n, 5 * d, d) + attention(n, d) + linear(1, d, 3 * d)
    )
    ends = linear(image, 64, d) + linear(text, 4096, d) + linear(image, d, 64) + linear(1, d, 2 * d)
    times = 2 * linear(1, 256, d, d) + linear(1, 768, d, d)
    return 19 * double + 38 * single + ends + times


def qwen_step(image: int, text: int) -> int:
    """Qwen-Image: 60 blocks with streams of their own, 3072 wide, texts 3584 wide."""
    d = 3072
    stream = lambda tokens: linear(tokens, d, 3 * d) + linear(tokens, d, d) + linear(tokens, d, 4 * d, d)  # noqa: E731
    block = stream(image) + stream(text) + attention(image + text, d) + 2 * linear(1, d, 6 * d)
    ends = linear(image, 64, d) + linear(text, 3584, d) + linear(image, d, 64) + linear(1, d, 2 * d)
    return 60 * block + ends + linear(1, 256, d, d)


def sd35_step(image: int, text: int) -> int:
    """Stable Diffusion 3.5 Large: 38 blocks of two streams, 2432 wide; the last leaves the text at its keys."""
    d, n = 2432, image + text
    stream = lambda tokens: linear(tokens, d, 3 * d) + linear(tokens, d, d) + linear(tokens, d, 4 * d, d)  # noqa: E731
    block = stream(image) + stream(text) + attention(n, d) + 2 * linear(1, d, 6 * d)
    last = stream(image) + linear(text, d, 3 * d) + attention(n, d) + linear(1, d, 6 * d) + linear(1, d, 2 * d)
    ends = linear(image, 64, d) + linear(text, 4096, d) + linear(image, d, 64) + linear(1, d, 2 * d)
    return 37 * block + last + ends + linear(1, 256, d, d) + linear(1, 2048, d, d)


def t5(tokens: int) -> int:
    """T5 v1.1 XXL: 24 layers, 4096 wide, gated 10240."""
    layer = linear(tokens, 4096, 4 * 4096) + 3 * linear(tokens, 4096, 10240) + attention(tokens, 4096)
    return 24 * layer


def clip(layers: int, d: int) -> int:
    return layers * (linear(77, d, 4 * d) + linear(77, d, 4 * d, d) + attention(77, d))


def vae_decode(side: int) -> int:
    """FLUX.1's autoencoder: latents of 16 channels; 512, 512, 256 and 128 wide as the sides double."""
    small, widths = side // 8, (512, 512, 256, 128)
    total = conv(16, 512, small) + 4 * conv(512, 512, small)
    total += 4 * linear(small**2, 512, 512) + attention(small**2, 512)
    before = 512
    for k, width in enumerate(widths):
        here = small * 2**k
        total += conv(before, width, here) + 5 * conv(width, width, here)
        total += conv(before, width, here, kernel=1) if before != width else 0
        total += conv(width, width, 2 * here) if k < 3 else 0
        before = width
    return total + conv(128, 3, side)


def vae_encode(side: int) -> int:
    total, before = conv(3, 128, side), 128
    for k, width in enumerate((128, 256, 512, 512)):
        here = side // 2**k
        total += conv(before, width, here) + 3 * conv(width, width, here)
        total += conv(before, width, here, kernel=1) if before != width else 0
        total += conv(width, width, here // 2) if k < 3 else 0
        before = width
    small = side // 8
    total += 4 * conv(512, 512, small) + 4 * linear(small**2, 512, 512) + attention(small**2, 512)
    return total + conv(512, 32, small)


def real_esrgan(side: int) -> int:
    """x2: pixels become channels first, then 23 blocks of three dense ones, then twice as large two times."""
    half = side // 2
    dense = sum(conv(64 + 32 * k, 32 if k < 4 else 64, half) for k in range(5))
    ends = conv(12, 64, half) + conv(64, 64, half) + conv(64, 64, side) + 2 * conv(64, 64, 2 * side)
    return 23 * 3 * dense + ends + conv(64, 3, 2 * side)


@pytest.fixture(scope="module")
def flux() -> Estimate:
    return estimate("flux-dev", width=1024, height=1024, plans=["12+1", "20+1", "8+1"])


def operations(found: Estimate, way: int) -> dict[str, int]:
    return {name: stage.operations for name, stage in found.ways[way].stages.items()}


def test_flux_is_counted_as_its_closed_form_has_it(flux: Estimate) -> None:
    native, staged, *_ = flux.ways
    assert (native.name, native.calls, staged.name, staged.calls) == ("native:50", 50, "12+1", 13)
    text, decode = t5(512) + clip(12, 768), vae_decode(1024)
    assert operations(flux, 0) == pytest.approx(
        {"text": text, "draft": 50 * flux_step(4096), "decode": decode}, rel=1e-4
    )
    assert operations(flux, 1) == pytest.approx(
        {
            **{"text": text, "draft": 12 * flux_step(1024), "decode_draft": vae_decode(512)},
            **{
                "upscale": real_esrgan(512),
                "encode": vae_encode(1024),
                "refine": flux_step(4096),
                "decode": decode,
            },
        },
        rel=1e-4,
    )


def test_it_gains_what_an_independent_count_has(flux: Estimate) -> None:
    """T5 at 512 tokens and Real-ESRGAN x2 included: 74.4, 21.5 and 10.5 TFLOP a step, a draft step, a decode."""
    assert [flux.speedup(way) for way in flux.ways] == pytest.approx([1, 10.45, 7.05, 13.8], rel=5e-3)
    assert operations(flux, 1)["refine"] == pytest.approx(74.4e12, rel=2e-3)
    assert operations(flux, 1)["draft"] / 12 == pytest.approx(21.5e12, rel=2e-3)
    assert operations(flux, 1)["decode"] == pytest.approx(10.5e12, rel=5e-3)


def test_guidance_is_a_second_pass() -> None:
    """Qwen-Image's template adds five tokens, of an empty negative prompt they are all."""
    found = estimate("qwen-image", width=512, height=512, plans=["2+1"], native_steps=3, prompt=PROMPT)
    both = lambda tokens: qwen_step(tokens, 3 + 5) + qwen_step(tokens, 5)  # noqa: E731
    assert operations(found, 0)["draft"] == pytest.approx(3 * both(1024), rel=1e-4)
    assert operations(found, 1)["draft"] == pytest.approx(2 * both(256), rel=1e-4)
    assert operations(found, 1)["refine"] == pytest.approx(both(1024), rel=1e-4)
    assert [way.calls for way in found.ways] == [6, 6]


def test_both_guidance_branches_may_be_one_call() -> None:
    plan = Plan(steps=2, guidance_stop=0.5, refine_true_cfg_scale=1.0)
    found = estimate("sd3.5-large", width=512, height=256, plans={"half": plan}, prompt=PROMPT)
    step = sd35_step(32 * 16, 77 + 256)
    assert found.ways[0].name == "native:28"
    assert operations(found, 0)["draft"] == pytest.approx(28 * 2 * step, rel=1e-3)
    assert operations(found, 1)["refine"] == pytest.approx(step, rel=1e-3)
    assert operations(found, 1)["draft"] == pytest.approx(3 * sd35_step(16 * 8, 77 + 256), rel=1e-3)
    assert operations(found, 0)["text"] == pytest.approx(2 * (t5(256) + clip(12, 768) + clip(32, 1280)), rel=1e-2)


def test_a_switch_costs_no_step_more() -> None:
    """Of FLUX.2 Klein's four steps three are small ones, and one is large."""
    found = estimate("flux2-klein-4b", width=512, height=512, plans=["3/4", "4+1"], upscaler="bicubic")
    assert [way.calls for way in found.ways] == [4, 4, 5]
    large = operations(found, 0)["draft"] / 4
    assert operations(found, 1)["refine"] == large
    assert operations(found, 1)["draft"] == operations(found, 2)["draft"] * 3 / 4
    assert "upscale" not in found.ways[1].stages  # interpolation multiplies no matrices
    assert found.weights("transformer") == pytest.approx(2 * 3.8755e9, rel=1e-3)


def test_a_network_of_latents_is_counted_as_it_really_runs(tmp_path: Path) -> None:
    """Torch's own counter around the network at work; nothing is encoded then."""
    path = write_network(tmp_path / "sesqui.safetensors")
    found = estimate("flux-schnell", width=256, height=256, plans=["4+1"], native_steps=1, upscaler=str(path))
    with FlopCounterMode(display=False) as counter:
        Upscaler.load(path).upscale_latents(torch.zeros(1, 16, 16, 16), (128, 128), (256, 256))
    assert operations(found, 1)["upscale"] == counter.get_total_flops() > 1e9
    assert found.parameters["upscaler"] == 3_091_378 + 4  # those published, and the frequencies beside them
    assert "encode" not in found.ways[1].stages


@pytest.mark.slow
def test_larger_pictures_gain_more() -> None:
    """An independent count: 14.9 times at 2048 with a draft of 1024, 27.2 of 512; at 4096 3,900 TFLOP a step."""
    plans = {"1024": Plan(), "512": Plan(scale=4)}
    found = estimate("flux-dev", width=2048, height=2048, plans=plans)
    assert [found.speedup(way) for way in found.ways[1:]] == pytest.approx([14.9, 27.2], rel=5e-3)
    whole = estimate("flux-dev", width=4096, height=4096, plans={"1024": Plan(scale=4)}, native_steps=1)
    assert operations(whole, 0)["draft"] == pytest.approx(flux_step(65536), rel=1e-4)
    assert flux_step(65536) == pytest.approx(3900e12, rel=5e-3)


def attended(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    return 4 * math.prod(query) * key[-2]


def test_vista_is_counted_as_it_really_runs() -> None:
    """The real model, at work on real numbers, with torch's own counter around it."""
    fast = MrFlow.from_pretrained("vista")
    found = estimate(
        "vista", width=64, height=64, plans=["2+1"], native_steps=2, prompt=PROMPT, dtype=torch.float32
    )
    for way, run in zip(
        found.ways,
        (
            lambda: fast.native(PROMPT, steps=2, width=64, height=64, seed=1),
            lambda: fast(PROMPT, plan="2+1", width=64, height=64, seed=1),
        ),
        strict=True,
    ):
        on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attended}  # which torch leaves out
        with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
            run()
        assert way.operations == counter.get_total_flops()


class Net(torch.nn.Module):
    """Three equal layers in a list: 1000 -> 1000 each, and one to 2000."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(1000, 1000)) for _ in range(3))
        self.last = torch.nn.Linear(1000, 2000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def test_memory_is_what_is_alive_at_once() -> None:
    """A row of 1000 floats is 4,000 bytes: the caller's, the one before and the one made; at last one of 2000."""
    tally, net = Tally(), Net().to("meta")
    tally.hollow("transformer", net, torch.float32)
    assert tally.parameters == {"transformer": 3 * 1001 * 1000 + 1001 * 2000}
    answer = net(torch.rand(1, 1000))
    assert answer.shape == (1, 2000)
    assert answer.device.type == "cpu"
    (stage,) = tally._stages.values()
    assert stage.operations == 2 * 1000 * 1000 * 3 + 2 * 1000 * 2000
    assert stage.activations == 4000 + 4000 + 8000


def test_memory_by_stage_and_by_how_weights_are_held(flux: Estimate) -> None:
    sizes = {part: flux.weights(part) for part in flux.parameters}
    assert sum(sizes.values()) - sizes["upscaler"] == pytest.approx(KNOWN["flux-dev"].weights(), rel=1e-3)
    way = flux.ways[1]
    whole, freed = flux.memory(way), flux.memory(way, offload="model")
    assert freed["refine"] == sizes["transformer"] + way.stages["refine"].activations
    assert whole["refine"] == sum(sizes.values()) + way.stages["refine"].activations
    assert freed["text"] - way.stages["text"].activations == sizes["text_encoder"] + sizes["text_encoder_2"]
    decode = way.stages["decode"].activations  # of bfloat16: three tensors of 256 channels at full size
    assert 3 * 2 * 256 * 1024**2 < decode < 2.0e9
    assert freed["decode"] == sizes["vae"] + WORKSPACE * decode
    assert flux.memory(way, offload="model", device="cpu")["decode"] == sizes["vae"] + decode
    tiled = flux.memory(way, offload="model", tiled=True)
    assert tiled["decode"] == sizes["vae"] + WORKSPACE * decode // 4 + 2 * 12 * 1024**2  # two pictures beside
    assert tiled["refine"] == freed["refine"]


def test_what_is_quantised(flux: Estimate) -> None:
    """Linear layers of the transformer and of T5, but neither its words' embeddings nor CLIP."""
    assert flux.quantised == ["transformer", "text_encoder_2"]
    assert flux.parameters["text_encoder_2"] - flux.linear["text_encoder_2"] == pytest.approx(
        32128 * 4096, rel=2e-3
    )
    for part in flux.parameters:
        rest, linear = 2 * (flux.parameters[part] - flux.linear[part]), flux.linear[part]
        whole = part not in flux.quantised
        assert flux.weights(part, "8-bit") == (2 * flux.parameters[part] if whole else rest + linear)
        kept = flux.kept[part]
        assert kept == (24 * 4096 * 10240 if part == "text_encoder_2" else 0)  # T5's `wo`
        packed = linear - kept
        assert flux.weights(part, "4-bit") == (
            2 * flux.parameters[part] if whole else rest + 2 * kept + packed // 2 + packed // 16
        )


RECORDED = [  # GiB, FLUX.1-dev at 1024x1024 in bfloat16, torch.cuda.max_memory_reserved on an H100:
    # huggingface.co/datasets/derekl35/diffusers-quantization-benchmarks, read 2026-11-26
    ("whole", "none", 36.166),
    ("whole", "model", 23.271),
    ("8-bit", "none", 21.482),  # torchao int8_weight_only
    ("8-bit", "none", 21.488),  # torchao float8_weight_only
    ("8-bit", "model", 12.189),
    ("8-bit", "model", 12.348),
]


@pytest.mark.parametrize(("held", "offload", "peak"), RECORDED)
def test_memory_is_what_others_recorded(held: str, offload: str, peak: float, flux: Estimate) -> None:
    found = max(flux.memory(flux.ways[0], held, offload=offload).values()) / 2**30
    assert 0.92 * peak < found < 1.02 * peak


@pytest.mark.parametrize(("held", "loaded"), [("whole", 31.447), ("4-bit", 12.584)])
def test_loaded_weights_are_what_others_recorded(held: str, loaded: float, flux: Estimate) -> None:
    """GiB, the same benchmark's. transformers of that time held what bitsandbytes leaves in float32."""
    more = 2 * sum(flux.kept.values()) if held == "4-bit" else 0
    found = sum(flux.weights(part, held) for part in flux.parameters if part != "upscaler") + more
    assert found / 2**30 == pytest.approx(loaded, rel=0.02)


@pytest.mark.parametrize(
    ("held", "offload", "peak"), [("whole", "model", 22.63), ("4-bit", "model", 6.72), ("whole", "group", 0.55)]
)
def test_the_transformer_takes_what_others_recorded(held: str, offload: str, peak: float, flux: Estimate) -> None:
    """Alone, GiB: bfloat16, nf4 and layer by layer (huggingface.co/datasets/diffusers/benchmarks)."""
    found = flux.memory(flux.ways[0], held, offload=offload)["draft"] / 2**30
    assert found == pytest.approx(peak, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({known.architecture: name for name, known in KNOWN.items()}.values()))
def test_every_architecture_is_counted(name: str) -> None:
    if not KNOWN[name].architecture:
        return
    found = estimate(name, width=512, height=512, plans=["4+1"], native_steps=4)
    native, staged = found.ways
    texts = set() if name == "fibo" else {"text"}  # whose pipeline encodes them in each pass
    assert set(staged.stages) - texts == {"draft", "decode_draft", "upscale", "encode", "refine", "decode"}
    active = {"nucleus-moe": 2.0}.get(name, KNOWN[name].parameters["transformer"])  # of 17, as its page says
    side = 32 if name == "sana" else 16  # pixels of a token
    least = 2 * 0.3e9 * active * (512 // side) ** 2  # most weights meet each token
    assert native.stages["draft"].operations > 4 * least
    assert staged.stages["upscale"].operations == pytest.approx(real_esrgan(256), rel=1e-6)
    billions = {part: found.parameters[part] / 1e9 for part in ("transformer", "vae")}
    assert billions == pytest.approx({part: KNOWN[name].parameters[part] for part in billions}, rel=3e-3)


def test_the_pages_rows_are_true(flux: Estimate) -> None:
    """Those of FLUX.1-dev at 1024x1024; the others are written by the same command."""
    text = PAGE.read_text("utf-8")
    line = next(each for each in text.splitlines() if each.startswith("| flux-dev | 1024x1024 |"))
    figures = [cell.strip() for cell in line.split("|")[3:6]]
    assert figures == [
        f"{flux.ways[0].operations / 1e15:.2f}",
        *(f"{flux.speedup(w):.2f}" for w in flux.ways[1:3]),
    ]
    assert text.startswith(HEAD)


def run(*arguments: str, code: int = 0) -> Any:
    result = invoke(["estimate", *arguments], env={"COLUMNS": "150"})
    assert result.exit_code == code, result.stderr
    return result


def test_the_command(tmp_path: Path) -> None:
    plot = tmp_path / "costs.png"
    vista = ("vista", "--size", "64", "--plan", "2+1", "--plan", "2+1:scale=4", "--native", "3")
    shown = run(*vista).stdout
    assert "times fewer operations" in shown
    assert "not seconds" in shown
    told = json.loads(run(*vista, "--plot", str(plot), "--json").stdout)
    assert [way["name"] for way in told["ways"]] == ["native:3", "2+1", "2+1:scale=4"]
    assert plot.read_bytes()[1:4] == b"PNG"
    for way in told["ways"]:
        assert sum(stage["share"] for stage in way["stages"].values()) == pytest.approx(1)
        assert way["speedup"] == pytest.approx(told["ways"][0]["operations"] / way["operations"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flux1-dev"], "Did you mean flux-dev"),
        (["klein"], "Did you mean flux2-klein-4b or flux2-klein-9b or flux2-klein-base-4b?"),
        (["vista", "--plan", "fastes"], "There is no plan 'fastes'. Did you mean 'fastest'? Or give"),
        (["bria"], "There is no architecture 'bria'"),
        (["vista", "--plan", "native:5"], "it must be a plan"),
        (["vista", "--plan", "12+1:cache=first-block@0.1"], "it must be a plan"),
        (["vista", "--plan", "quick"], "There is no plan 'quick'"),
        (["vista", "--native", "0"], "at least 1 step"),
        (["vista", "--size", "63"], "63"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], words: str) -> None:
    assert words in run(*arguments, code=2).stderr


def test_a_single_file_is_answered_with_who_knows_it(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    said = run(str(tmp_path / "a.gguf"), code=2).stderr
    assert f"mrflow check {tmp_path / 'a.gguf'} names its base, then mrflow estimate BASE" in said


def test_python_says_it_too() -> None:
    with pytest.raises(PlanError):
        estimate("vista", plans=["quick"])
    with pytest.raises(RequestError, match="Known: flux-dev"):
        hollow_model("no-such", None, torch.float32)
