"""The text encoders: a small T5 and a small CLIP over a closed vocabulary.

They are first trained for a minute on captions alone, to name the attributes a caption asks for, so
that the flow finds the words already understood; then they are trained on with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from training.world import ATTRIBUTES, MAX_TOKENS, WORDS, caption, labels, sample_scene

WIDTH = 128
UNKNOWN = "<unk>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of lower-cased words and commas, ending with <eos>, padding with <pad>."""
    vocabulary = {word: k for k, word in enumerate((*WORDS, UNKNOWN))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
    )


def normalizer() -> object:
    """Return the normaliser of prompts: lower case, and no full stop at the end."""
    from tokenizers import Regex, normalizers

    return normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!]+\s*$"), "")])


def make_encoders() -> tuple[T5EncoderModel, CLIPTextModel]:
    """Return the two encoders with random weights."""
    size = len(WORDS) + 1
    pad, eos = WORDS.index("<pad>"), WORDS.index("<eos>")
    t5 = T5Config(
        vocab_size=size, d_model=WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=pad, eos_token_id=eos,
    )  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=size, hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS, projection_dim=WIDTH, pad_token_id=pad, bos_token_id=None,
        eos_token_id=eos,
    )  # fmt: skip
    return T5EncoderModel(t5), CLIPTextModel(clip)


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """Return token ids (N, MAX_TOKENS); raises if a caption does not fit."""
    out = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
    if out.shape[1] != MAX_TOKENS:
        raise ValueError(f"a caption has {out.shape[1]} tokens; at most {MAX_TOKENS} fit")
    return out


@dataclass
class TextPair:
    """Both encoders; called with token ids (B, T) it gives (T5 states (B, T, WIDTH), CLIP's pooled (B, WIDTH))."""

    t5: T5EncoderModel
    clip: CLIPTextModel

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.t5(tokens)[0], self.clip(tokens).pooler_output


def pretrain(pair: TextPair, tokenizer: PreTrainedTokenizerFast, steps: int = 300, seed: int = 0) -> float:
    """Teach both encoders to name a caption's attributes; returns the share named rightly at the end.

    What a caption leaves out cannot be named: the share stays below 1. The heads are thrown away.
    """
    sizes = [len(values) for values in ATTRIBUTES.values()]
    heads = nn.ModuleList([nn.Linear(WIDTH, sum(sizes)) for _ in range(2)])
    params = [*pair.t5.parameters(), *pair.clip.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(params, 1e-3, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    right = torch.zeros(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 30) * max(0.05, 1 - step / steps)
        scenes = [sample_scene(rng) for _ in range(64)]
        tokens = tokenize(tokenizer, [caption(scene, rng) for scene in scenes])
        wanted = torch.tensor([[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes])
        states, pooled = pair(tokens)
        loss = torch.zeros(())
        guesses = []
        for head, features in zip(heads, (states.mean(1), pooled), strict=True):
            for k, logits in enumerate(head(features).split(sizes, 1)):
                loss = loss + cross_entropy(logits, wanted[:, k], ignore_index=-1)
                guesses.append((logits.argmax(1) == wanted[:, k])[wanted[:, k] >= 0])
        right = torch.cat(guesses).float()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return right.mean().item()
