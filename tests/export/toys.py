"""Models to export: toy sizes that quantisation blocks divide, with a real byte-level tokenizer, cut in chosen ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lissome.models.binding import extract
from lissome.models.gguf.tokenizer import SPLITS
from lissome.models.model import Model, Source
from tests.models.gguf_toys import CHAT, module_of

# Choices for the three blocks of a toy; what is not named stays.
CUTS: dict[str, Mapping[str, int]] = {
    "dense": {},
    "narrow everywhere": {f"layers.{index}.mlp.width": 64 for index in range(3)},
    "widths": {"layers.0.mlp.width": 64, "layers.2.mlp.width": 32},
    "heads": {"layers.0.attention.groups": 1, "layers.1.attention.queries": 1},
    "attention gone": {"layers.1.attention": 0, "layers.2.mlp.width": 64},
    "first attention gone": {"layers.0.attention": 0},
    "mlp gone": {"layers.1.mlp": 0},
    "two attentions meet": {"layers.0.mlp": 0, "layers.2.mlp": 0},
    "a block's two halves": {"layers.0.mlp": 0, "layers.1.attention": 0},
    "no mlp": {f"layers.{index}.mlp": 0 for index in range(3)},
    "one attention": {"layers.0.attention": 0, "layers.1.attention": 0, "layers.0.mlp": 0, "layers.1.mlp": 0},
}


def model_of(family: str, cut: str | Mapping[str, int] = "dense", *, tokenizer: bool = False, **changes: Any) -> Model:
    """A toy model of a family, cut."""
    name = f"toy-{family}"
    model = Model(module_of(family, **changes), byte_level() if tokenizer else None, Source(name))
    choices = CUTS[cut] if isinstance(cut, str) else cut
    return extract(model, {**model.space(width=32).full, **choices}) if choices else model


@torch.no_grad()
def logits_of(module: Any, ids: list[int]) -> torch.Tensor:
    """Logits at every token, float[len(ids), V]."""
    result: torch.Tensor = module(torch.tensor([ids])).logits[0]
    return result


def byte_level(pattern: str = "smollm", *, whole_words: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with one plain added token, as transformers would load it."""
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "t"), ("Ġt", "he"), ("1", "2")]
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    splits = [pre_tokenizers.Split(Regex(part), "isolated") for part in SPLITS[pattern]]
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    core.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )


def sentence_piece(*, prefix: bool = False) -> PreTrainedTokenizerFast:
    """A SentencePiece-like BPE tokenizer with byte tokens, as transformers would load it."""
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz.,\n", "he", "▁t", "▁the", "ll", "hell", "hello"]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("l", "l"), ("he", "ll"), ("hell", "o")]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend("▁")] if prefix else []
    core.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens[:4]])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)
