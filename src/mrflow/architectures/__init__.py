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
from mrflow.known_models import KNOWN

Spec = dict[str, Any]


def architectures() -> tuple[str, ...]:
    """Return the names of the known models whose architecture is described."""
    return tuple(name for name, known in KNOWN.items() if known.architecture)


def read_architecture(name: str) -> Spec:
    """Return the description of a known model; raises RequestError, naming those that have one.

    name, source, pipeline and its options, components, upscaler (Real-ESRGAN x2, the same for all).
    """
    if name not in architectures():
        raise RequestError(f"There is no architecture {name[:80]!r}. Known: {', '.join(architectures())}.")
    known = KNOWN[name]
    about = {"name": known.id.rpartition("/")[2], "options": dict(known.options)}
    return {**_read(known.architecture), **about, "upscaler": _load("realesrgan-x2")}


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
