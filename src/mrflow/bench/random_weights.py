"""Full-size models with random weights, made on the device: latency at true scale without any download.

What a model paints depends on its weights; what a step costs depends on its architecture alone. The files in
architectures/ hold published configurations; weights are drawn where they will be used, in the dtype they will
have, so that memory never holds them twice. No vocabulary is at hand: where a pipeline pads texts to a fixed
length, as FLUX.1 does, prompts are read byte by byte, and the text encoders' work is the same; where texts keep
their own length, a word, a sign or a line's end is one token, about what the real vocabularies make of English.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.errors import ModelError, RequestError
from mrflow.upscaler import Upscaler

if TYPE_CHECKING:
    import torch

    from mrflow.backbones.family import Pipeline
    from mrflow.pipeline import MrFlow

_HERE = Path(__file__).parent / "architectures"

Spec = dict[str, Any]


def architectures() -> tuple[str, ...]:
    """Return the names of the known architectures."""
    return tuple(sorted(path.stem for path in _HERE.glob("*.json")))


def read_architecture(name: str) -> Spec:
    """Return an architecture's description; raises RequestError, naming those known."""
    if name not in architectures():
        raise RequestError(f"There is no architecture {name[:80]!r}. Known: {', '.join(architectures())}.")
    spec: Spec = json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))
    return spec


def make_random(
    spec: Spec, device: torch.device, dtype: torch.dtype, upscaler: Upscaler | str | Path | None = None
) -> MrFlow:
    """Return MrFlow over the described pipeline with random weights.

    upscaler: None is the described one, with random weights too. Raises ModelError if memory does not suffice,
    UnsupportedPipelineError for a family without a backbone.
    """
    import torch

    from mrflow.backbones import get_backbone
    from mrflow.pipeline import MrFlow

    get_backbone(spec["pipeline"])  # before gigabytes are drawn in vain
    try:
        pipe = make_pipeline(spec, device, dtype)
        return MrFlow(pipe, make_upscaler(spec["upscaler"]) if upscaler is None else upscaler)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{spec['name']} does not fit into the memory of {device}.") from error


def make_pipeline(spec: Spec, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Return the described pipeline, each component built empty and filled with random numbers on `device`."""
    import diffusers

    parts = {name: make_component(part) for name, part in spec["components"].items()}
    for part in parts.values():
        if hasattr(part, "parameters"):
            fill(part, device, dtype)
    pipe = getattr(diffusers, spec["pipeline"])(**parts)
    pipe.register_to_config(_name_or_path=f"{spec['name']}, random weights")
    return pipe


def make_component(part: Spec) -> Any:
    """Return a component: a model whose parameters hold no data yet, a scheduler or a tokenizer."""
    if "bytes" in part:
        from transformers import ByT5Tokenizer

        return ByT5Tokenizer(extra_ids=0, model_max_length=part["bytes"])
    if "words" in part:
        return _word_tokenizer(part["words"], part["marks"], part.get("chat_template"))
    from accelerate import init_empty_weights

    library, _, name = part["class"].partition(".")
    kind = getattr(import_module(library), name)
    with init_empty_weights(include_buffers=False):  # buffers are small, and hold tables that must be right
        if library == "transformers":
            return kind(kind.config_class(**part["config"]))
        return kind.from_config(part["config"])


def fill(model: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """Give an empty model random parameters on `device` in `dtype`, and make it ready to run.

    Matrices are scaled by their inputs, gains are 1 and biases 0, so that activations stay finite.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    made: dict[int, torch.nn.Parameter] = {}  # parameters that are shared stay shared
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(empty) not in made:
                data = torch.empty_like(empty, device=device, dtype=dtype, requires_grad=False)
                if data.ndim > 1:
                    data.normal_(0.0, data[0].numel() ** -0.5, generator=generator)
                else:
                    data.fill_(0.0 if name.endswith("bias") else 1.0)
                made[id(empty)] = torch.nn.Parameter(data, requires_grad=False)
            module._parameters[name] = made[id(empty)]
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # building empty has torn them apart
    model.to(device)  # the buffers
    model.eval()


def make_upscaler(part: Spec, seed: int = 0) -> Upscaler:
    """Return a Real-ESRGAN x2 network of the described size with random weights."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: int, outputs: int) -> None:
        scale = 0.1 / (9 * inputs) ** 0.5  # a tenth of what keeps the scale: 23 blocks add up
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * scale
        weights[f"{name}.bias"] = torch.full((outputs,), 0.5 if name == "conv_last" else 0.0)

    features, growth = part["features"], part["growth"]
    add("conv_first", 3 * 4, features)  # 2 x 2 pixels become channels first: the network then enlarges by 4
    for block in range(part["blocks"]):
        for dense in (1, 2, 3):
            for k in range(5):
                outputs = growth if k < 4 else features
                add(f"body.{block}.rdb{dense}.conv{k + 1}", features + k * growth, outputs)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        add(name, features, features)
    add("conv_last", features, 3)
    return Upscaler.from_weights(weights, f"{part['name']}, random weights")


def _word_tokenizer(max_length: int, marks: list[str], chat_template: str | None) -> Any:
    """Return a tokenizer for which every word is the same token, every digit and run of signs too.

    marks: the chat template's own tokens. Nothing is an unknown word, which a warning would name.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: k for k, text in enumerate(["<pad>", "<word>", *marks])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<word>"))
    pieces = Regex(r"\n|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    tokenizer.add_special_tokens(["<pad>", *marks])
    names = {"pad_token": "<pad>", "chat_template": chat_template}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)
