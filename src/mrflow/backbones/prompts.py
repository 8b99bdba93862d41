"""Prompts as rows of tensors, one per picture, and what of a prompt a tokenizer takes in."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mrflow.backbones import Conditioning, Reading

_PUNCTUATION = string.punctuation + string.whitespace  # too little meaning to warn of its loss


def split_rows(conditioning: Conditioning) -> list[Conditioning]:
    """Return a batch's conditioning as one row per prompt, cloned: a draft keeps its own row, not the batch."""
    count = len(next(iter(conditioning.values())))
    return [{name: value[k : k + 1].clone() for name, value in conditioning.items()} for k in range(count)]


def split_masked(encoded: Sequence[Tensor | None]) -> list[Conditioning]:
    """Return rows of what some pipelines encode: embeddings, their mask, the same of the negatives or None."""
    names = ("prompt_embeds", "prompt_attention_mask")
    named = zip((*names, *(f"negative_{name}" for name in names)), encoded, strict=True)
    return split_rows({name: value for name, value in named if value is not None})


def stack_rows(rows: Sequence[Conditioning]) -> Conditioning:
    """Return rows, which must have the same names, as one batch, shorter texts padded with zeros at the end."""
    return {name: torch.cat(_padded([row[name] for row in rows])) for name in rows[0]}


def trim(row: Conditioning, mask: str, *others: str) -> Conditioning:
    """Return a row whose texts end with their last token: the tensors `mask` (1, T) and `others` (1, T, ...)."""
    length = int(row[mask].bool().sum())
    return {name: value[:, :length] if name in (mask, *others) else value for name, value in row.items()}


def read_text(
    tokenizer: Any, prompt: str, limit: int, before: str = "", after: str = "", *, special: bool = True
) -> Reading:
    """Return what of a prompt is lost where a filled template is cut after `limit` tokens.

    before, after: the template around the prompt. special: the tokenizer adds its special tokens to it.
    Only fast tokenizers say where a token stands; of others nothing is said.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return Reading()
    text, end = before + prompt + after, len(before) + len(prompt)
    room = limit - (tokenizer.num_special_tokens_to_add() if special else 0)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans, ids = tokens["offset_mapping"], tokens["input_ids"]
    cut = text[max(spans[room][0], len(before)) : end] if len(ids) > room else ""
    missed = (
        text[a:b]
        for (a, b), token in zip(spans, ids, strict=True)
        if token == tokenizer.unk_token_id and len(before) <= a < end
    )
    unknown = dict.fromkeys(word.strip() for word in missed if word.strip(_PUNCTUATION))
    return Reading(cut.strip(), tuple(unknown))


def chat_template(tokenizer: Any, prompt: str, **options: Any) -> tuple[str, str]:
    """Return the texts before and after the prompt in a tokenizer's chat template for one user's message."""
    messages = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    before, _, after = text.rpartition(prompt)
    return before, after


def _padded(values: Sequence[Tensor]) -> list[Tensor]:
    longest = max(value.shape[1] for value in values)
    return [
        value
        if value.shape[1] == longest
        else pad(value, (0, 0) * (value.ndim - 2) + (0, longest - value.shape[1]))
        for value in values
    ]
