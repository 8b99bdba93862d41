"""Published architectures as data, and their parts built without a byte of memory for weights.

Each JSON file describes the components of a pipeline and says where that is from. `{"like": "flux-dev.vae"}`
stands for that component of another file, with other values for some of its configuration.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from mrflow.errors import RequestError
from mrflow.folders import check_parts, components, read_json
from mrflow.known_models import KNOWN, is_file, meant
from mrflow.upscaler import Upscaler

Spec = dict[str, Any]


def architectures() -> tuple[str, ...]:
    """Return the names of the known models whose architecture is described."""
    return tuple(name for name, known in KNOWN.items() if known.architecture)


def read_architecture(name: str) -> Spec:
    """Return the description of a known model; raises RequestError, naming those that have one.

    name, source, pipeline and its options, components, upscaler (Real-ESRGAN x2, the same for all).
    """
    if is_file(name):
        raise RequestError(
            f"{name} is a single file: mrflow check {name} names its base, then mrflow estimate BASE."
        )
    if name not in architectures():
        known = ", ".join(architectures())
        raise RequestError(f"There is no architecture {name[:80]!r}.{meant(name)} Known: {known}.")
    model = KNOWN[name]
    about = {"name": model.id.rpartition("/")[2], "options": dict(model.options)}
    return {**_read(model.architecture), **about, "upscaler": _load("realesrgan-x2")}


def _read(architecture: str) -> Spec:
    spec = _load(architecture)
    return {**spec, "components": {name: _resolve(part) for name, part in spec["components"].items()}}


def _resolve(part: Spec) -> Spec:
    if "like" not in part:
        return part
    file, _, name = part["like"].rpartition(".")
    like = _resolve(_load(file)["components"][name])
    return {**like, "config": {**like["config"], **part.get("config", {})}} if "config" in like else like


def _load(name: str) -> Spec:
    spec: Spec = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return spec


def read_folder(folder: Path) -> Spec:
    """Return the same of a pipeline in a folder in diffusers' layout, of which no weights are read.

    Raises ModelError for a folder that cannot be read, or is none.
    """
    index = check_parts(folder)
    spec: Spec = {"name": folder.name, "options": {}, "components": {}, "upscaler": _load("realesrgan-x2")}
    spec["pipeline"] = index["_class_name"]
    parts = components(index)
    for name, value in index.items():
        if name in parts:
            config = folder / name / "config.json"
            described: Spec = {"config": read_json(config)} if config.is_file() else {}
            if "quantization_config" in described.get("config", {}):
                described["bytes"] = _stored(folder / name)
            spec["components"][name] = {"class": ".".join(parts[name]), "folder": folder / name, **described}
        elif not name.startswith("_") and value != [None, None]:
            spec["options"][name] = value
    return spec


def _stored(folder: Path) -> int:
    """Return the bytes of the weights in a folder's files, as their headers have them."""
    spans = []
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        spans += [each["data_offsets"] for name, each in header.items() if name != "__metadata__"]
    return sum(end - begin for begin, end in spans)


def assemble(spec: Spec, parts: dict[str, Any]) -> Any:
    """Return the described pipeline over its components."""
    return getattr(import_module("diffusers"), spec["pipeline"])(**parts, **spec["options"])


def make_component(part: Spec, buffers: str = "cpu") -> Any:
    """Return a component: a model whose parameters hold no data yet, a scheduler or a tokenizer.

    buffers: where its buffers are; "meta" saves those large tables that only real work needs.
    """
    if "words" in part:
        described = {name: value for name, value in part.items() if name != "processor"}
        tokenizer = _word_tokenizer(**described)
        return _Processor(tokenizer) if part.get("processor") else tokenizer
    from accelerate import init_empty_weights

    library, _, name = part["class"].partition(".")
    kind = getattr(import_module(library), name)
    if "config" not in part:
        return kind.from_pretrained(part["folder"])
    if hasattr(kind, "set_timesteps"):  # a scheduler, which computes as it is made
        return kind.from_config(part["config"])
    with init_empty_weights(include_buffers=buffers == "meta"):  # small, and tables that must be right
        if library == "transformers":
            return kind(kind.config_class(**part["config"]))
        return kind.from_config(part["config"])


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


class _Processor:
    """A tokenizer that answers as a processor of texts and images does."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, **texts: Any) -> Any:
        return self.tokenizer(**texts)

    def apply_chat_template(self, messages: Any, *, tokenize: bool = True, **more: Any) -> Any:
        made = self.tokenizer.apply_chat_template(messages, tokenize=tokenize, **more)
        return [made] if tokenize else made


def _word_tokenizer(words: int, marks: list[str], chat_template: str | None = None, begin: str = "") -> Any:
    """Return a tokenizer for which every word is the same token, every digit and run of signs too.

    words: the most that are read. marks: the chat template's own tokens. begin: what a text begins
    with. Nothing is an unknown word, which a warning would name.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: k for k, text in enumerate(["<pad>", "<word>", *marks])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<word>"))
    pieces = Regex(r"\n|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    tokenizer.add_special_tokens(["<pad>", *marks])
    if begin:
        special = [(begin, vocabulary["<word>"])]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=special)
    names = {"pad_token": "<pad>", "eos_token": "<pad>", "chat_template": chat_template}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=words, **names)
