"""The tokenizer of a GGUF file, rebuilt as a fast Hugging Face tokenizer that cuts text as llama.cpp does.

Two kinds occur in the supported families: byte-level BPE (``gpt2``: vocabulary and merges are in the file; how text is
split before merging is only named, so the patterns are here), and SentencePiece BPE (``llama``: a vocabulary with
scores; the merges follow from it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lissome.core.errors import UnsupportedModelError
from lissome.models.gguf.header import Header, damaged

_SPACE = "\u2581"  # how SentencePiece spells a space
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # token types of the GGUF specification

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+{e}|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*{e}"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_TEKKEN = _CASED.replace("{e}", "") + r"|\p{N}|" + _TAIL_SLASH
_GPT4O = _CASED.replace("{e}", _ENDINGS + "?") + r"|\p{N}{1,3}|" + _TAIL_SLASH

# Published splitting patterns by `tokenizer.ggml.pre`; each is applied to the pieces of the one before.
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
}
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
# These take a word that is in the vocabulary whole, and start with BOS unless the file says otherwise.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")


def save_tokenizer(header: Header, folder: Path, *, longest: int) -> None:
    """Write the tokenizer files, the chat template included.

    Args:
        header: Header of the GGUF file.
        folder: Existing folder to write into.
        longest: Most tokens the model takes.

    Raises:
        ArtifactError: When vocabulary, types and ids do not fit together.
        UnsupportedModelError: When the kind of tokenizer or its way of splitting is not known.
    """
    tokens = header.tokens
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend, bos = _byte_level(header, tokens)
    elif kind == "llama":
        backend, bos = _sentence_piece(header, tokens)
    else:
        raise UnsupportedModelError(
            f"{header.path.name} has a tokenizer of kind {str(kind)[:40]!r}; known: gpt2 (byte-level BPE), llama "
            "(SentencePiece BPE). Give a Hugging Face folder instead."
        )
    _add_tokens(header, backend, tokens)
    specials = {
        f"{role}_token": tokens[index]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if (index := header.token(key)) is not None and tokens[index]
    }
    _add_template(header, backend, tokens, specials, bos=bos)
    template = header.metadata.get("tokenizer.chat_template")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=longest,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=False,
        **specials,
    )
    if len(fast) > header.tensors["token_embd.weight"].shape[0]:
        raise damaged(header.path, "its special tokens are not in its vocabulary")
    fast.save_pretrained(folder)


def _types(header: Header, tokens: list[str]) -> np.ndarray:
    types = header.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return np.full(len(tokens), _NORMAL)
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise damaged(header.path, "its list of token types does not fit the vocabulary")
    return types


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    # reversed, so that the first of two equal tokens wins, as in llama.cpp's lookups
    return {token: index for index, token in reversed(list(enumerate(tokens)))}


def _byte_level(header: Header, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether BOS is added when the file does not say."""
    name = str(header.metadata.get("tokenizer.ggml.pre", "default"))
    splits = SPLITS.get(name)
    if splits is None:
        raise UnsupportedModelError(
            f"{header.path.name} splits text by the pattern {name[:40]!r}; known: {', '.join(sorted(SPLITS))}. "
            "Give the original Hugging Face folder instead."
        )
    lines = header.metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise damaged(header.path, "its tokenizer has no merges")
    merges = [tuple(line.split(" ")) for line in lines]
    vocabulary = _vocabulary(tokens)
    if any(len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys() for pair in merges):
        raise damaged(header.path, "a merge of its tokenizer names a token that is not in the vocabulary")
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in _WHOLE_WORDS))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, name in _WHOLE_WORDS


def _sentence_piece(header: Header, tokens: list[str]) -> tuple[Tokenizer, bool]:
    types = _types(header, tokens)
    scores = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise damaged(header.path, "its tokenizer has no scores, or not one for each token")
    unknown = header.token("unknown")
    backend = Tokenizer(
        models.BPE(
            vocab=_vocabulary(tokens),
            merges=_merges(tokens, types, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=bool((types == _BYTE).any()),
        )
    )
    prefixed = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    prefix = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend, True


def _merges(tokens: list[str], types: np.ndarray, scores: np.ndarray) -> list[tuple[str, str]]:
    """Every way to make a token of two others; the best-scored token first, as SentencePiece merges.

    Tokens that are matched whole (control and user-defined) are never made by merging.
    """
    normal = np.flatnonzero(types == _NORMAL)
    order = normal[np.argsort(-scores[normal], kind="stable")].tolist()
    parts = {tokens[index] for index in order}
    return [
        (token[:cut], token[cut:])
        for token in (tokens[index] for index in order)
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]


def _add_tokens(header: Header, backend: Tokenizer, tokens: list[str]) -> None:
    """Tokens that are matched whole in the text: control tokens are special, user-defined ones are plain."""
    whole = {_CONTROL: True, _UNKNOWN: True, _USER: False}
    # Phi-3 was trained with no space behind a control token; nothing but its name says so in the file.
    swallow = bool(re.search("phi-?3", header.name))
    added = [
        AddedToken(token, normalized=False, special=whole[kind], rstrip=swallow and token not in _PHI3_PLAIN)
        for token, kind in zip(tokens, _types(header, tokens).tolist(), strict=True)
        if kind in whole and token
    ]
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])


def _add_template(
    header: Header, backend: Tokenizer, tokens: list[str], specials: Mapping[str, Any], *, bos: bool
) -> None:
    """Put BOS before and EOS behind the text where the file, or its kind's habit, says so."""
    metadata = header.metadata
    before = "bos_token" in specials and bool(metadata.get("tokenizer.ggml.add_bos_token", bos))
    behind = "eos_token" in specials and bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    first, last = [specials["bos_token"]] if before else [], [specials["eos_token"]] if behind else []
    if first or last:
        ids = {token: tokens.index(token) for token in (*first, *last)}
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=list(ids.items()),
        )
