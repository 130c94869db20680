"""A Hugging Face tokenizer as the entries that llama.cpp reads.

Two kinds occur in the supported families: byte-level BPE (``gpt2``), where llama.cpp wants the name of the pattern that
splits text before merging, and SentencePiece BPE (``llama``), where it wants a score for each token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lissome.core.errors import ExportError
from lissome.models.gguf.tokenizer import SPLITS

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of the GGUF specification."""

_GPT2, _DIGIT = SPLITS["gpt-2"][0], SPLITS["smollm"][0]
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_LAST = -1e9  # score of a token that no merge makes: below every token that a merge does make
_PHI3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}  # tokens that llama.cpp expects where it lets tokens swallow spaces
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for a GGUF file.

    Attributes:
        entries: Entries below ``tokenizer.`` with their values.
        notes: What was not carried over.
        swallows: Control tokens take the spaces behind them, as Phi-3's do.
    """

    entries: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    swallows: bool = False


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Describe a tokenizer for a model with `size` embedding rows.

    Args:
        tokenizer: A fast tokenizer of transformers, or None for a model without one.
        size: Rows of the embedding; rows without a token get a name that never occurs in text.

    Raises:
        ExportError: When its kind, or its way of splitting text, has no name in llama.cpp.
    """
    if tokenizer is None:
        note = "the model has no tokenizer: the file runs on token ids only"
        return Vocabulary({"ggml.model": "no_vocab"}, (note,))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{type(tokenizer).__name__} is not a fast tokenizer; give a model with a tokenizer.json.")
    fields = json.loads(backend.to_str())
    model = fields["model"]
    if model.get("type") != "BPE":
        raise ExportError(f"a tokenizer of kind {model.get('type')!r} cannot be written to GGUF; known: BPE.")
    tokens, types, notes = _tokens(fields, tokenizer, size)
    entries: dict[str, Any] = {}
    if _is_byte_level(fields):
        entries |= {"ggml.model": "gpt2", "ggml.pre": _pattern_name(fields)}
        entries |= {"ggml.tokens": tokens, "ggml.token_type": types, "ggml.merges": _merges(model)}
    elif model.get("byte_fallback") or fields.get("normalizer"):
        entries |= {"ggml.model": "llama", "ggml.pre": "default", "ggml.tokens": tokens}
        entries |= {"ggml.scores": _scores(model, tokens), "ggml.token_type": types}
    else:
        raise ExportError("this BPE tokenizer is neither byte-level nor SentencePiece, which is all that GGUF knows.")
    entries["ggml.add_space_prefix"] = _prefixes_space(fields)
    swallows = set(tokens) >= _PHI3 and any(added["rstrip"] and added["special"] for added in fields["added_tokens"])
    return Vocabulary(entries | _specials(tokenizer, size), tuple(notes), swallows)


def _tokens(fields: Mapping[str, Any], tokenizer: Any, size: int) -> tuple[list[str], list[int], list[str]]:
    """Return the tokens by id with their types; ids beyond the embedding are left out and said."""
    tokens: list[str | None] = [None] * size
    types = [NORMAL] * size
    beyond = []
    fallback = bool(fields["model"].get("byte_fallback"))
    for token, index in fields["model"]["vocab"].items():
        if index >= size:
            beyond.append(token)
            continue
        tokens[index] = token
        if fallback and _BYTE_TOKEN.fullmatch(token):
            types[index] = BYTE
    for added in fields["added_tokens"]:
        if added["id"] >= size:
            beyond.append(added["content"])
            continue
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER
    unknown = fields["model"].get("unk_token")
    if fallback and unknown is not None and tokens[tokenizer.unk_token_id] == unknown:
        types[tokenizer.unk_token_id] = UNKNOWN
    empty = [index for index, token in enumerate(tokens) if token is None]
    for index in empty:
        types[index] = UNUSED
    notes = []
    if beyond:
        shown = ", ".join(sorted(set(beyond))[:3])
        notes.append(f"{len(set(beyond))} tokens have no embedding row and were left out ({shown})")
    if empty:
        notes.append(f"{len(empty)} embedding rows have no token and were named [PAD…]")
    return [token if token is not None else f"[PAD{index}]" for index, token in enumerate(tokens)], types, notes


def _steps(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the pre-tokenizer's steps, a sequence taken apart."""
    step = fields.get("pre_tokenizer")
    if step is None:
        return []
    return list(step["pretokenizers"]) if step["type"] == "Sequence" else [step]


def _is_byte_level(fields: Mapping[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(fields))


def _pattern_name(fields: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of how text is split before merging."""
    patterns: list[str] = []
    for step in _steps(fields):
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex") or re.escape(step["pattern"].get("String", "")))
        elif kind == "Digits" and step["individual_digits"]:
            patterns.append(_DIGIT)
        elif kind == "ByteLevel":
            patterns += [_GPT2] if step.get("use_regex", True) else []
        else:
            patterns.append(kind)
    # the same pattern has several names; llama.cpp looks a whole word up first under Llama 3's name only
    names = [name for name, known in SPLITS.items() if known == tuple(patterns)]
    whole = bool(fields["model"].get("ignore_merges"))
    if "llama-bpe" in names:
        return "llama-bpe" if whole else "dbrx"
    if not names:
        raise ExportError(
            f"llama.cpp has no name for this tokenizer's way of splitting text ({' then '.join(patterns)[:120]!r}); "
            f"known: {', '.join(SPLITS)}."
        )
    return names[0]


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Score each token by how early a merge makes it, which is the order that SentencePiece merges in."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(model["merges"]):
        made = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        rank.setdefault(made, index)
    order = {index: position for position, index in enumerate(sorted(set(rank.values())))}
    return [float(-order[rank[token]]) if token in rank else _LAST for token in tokens]


def _prefixes_space(fields: Mapping[str, Any]) -> bool:
    normalizer = fields.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    if any(part.get("type") == "Prepend" for part in parts):
        return True
    return any(step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in _steps(fields))


def _specials(tokenizer: Any, size: int) -> dict[str, Any]:
    """Return ids of special tokens, whether text is framed by them, and the chat template."""
    entries: dict[str, Any] = {}
    for role, name in _ROLES.items():
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None and index < size:
            entries[f"ggml.{name}_token_id"] = int(index)
    ids = tokenizer("a")["input_ids"]
    entries["ggml.add_bos_token"] = bool(ids) and ids[0] == tokenizer.bos_token_id
    entries["ggml.add_eos_token"] = bool(ids) and ids[-1] == tokenizer.eos_token_id
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if template:
        entries["chat_template"] = template
    return entries
