"""From llama.cpp's words to transformers': configuration and tensor names, per architecture.

Keys and tensor names are those of the GGUF specification; what an architecture computes but does not store (Gemma's
attention scale and layer pattern) follows llama.cpp's loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lissome.core.errors import UnsupportedModelError
from lissome.models.gguf.blocks import Block, base_heads, blocks_of
from lissome.models.gguf.header import Header, TensorEntry, damaged
from lissome.models.gguf.rope import rope_of
from lissome.models.gguf.weights import Take

Config = dict[str, Any]

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_COMMON = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPLIT = {"attn_qkv": "self_attn"}  # three of ours; see `_split`
_MAX_LAYERS = 4096
# Tensors that only hold what `rope_of` has put into the configuration.
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Facts:
    """The numbers that every supported architecture states; where blocks differ, those that hold each of them."""

    header: Header
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    blocks: tuple[Block, ...] = ()

    def get(self, key: str) -> Any:
        """Return an unchecked entry of the architecture's own, or None."""
        return self.header.metadata.get(f"{self.header.architecture}.{key}")

    @property
    def window(self) -> int | None:
        """Positions that a sliding layer sees, or None."""
        return self.header.whole("attention.sliding_window") if self.get("attention.sliding_window") else None

    def has(self, tensor: str) -> bool:
        """Whether the file holds this tensor."""
        return tensor in self.header.tensors


@dataclass(frozen=True)
class Family:
    """How one architecture maps.

    Attributes:
        model_type: transformers' name.
        class_name: transformers' class.
        blocks: Names inside a block, without ``.weight`` and ``.bias``.
        extend: Adds what is special to the configuration.
        rotated: Query and key rows are stored in llama.cpp's interleaved rotary order.
        minus_one: Norms are stored as ``1 + w``.
        uneven: Sizes are stated for each block.
    """

    model_type: str
    class_name: str
    blocks: Mapping[str, str] = field(default_factory=lambda: _COMMON)
    extend: Callable[[Facts], Config] = lambda _: {}
    rotated: bool = False
    minus_one: bool = False
    uneven: bool = False


def _llama(facts: Facts) -> Config:
    return {
        "head_dim": facts.head_dim,
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "mlp_bias": facts.has("blk.0.ffn_up.bias"),
    }


def _with_head_dim(facts: Facts) -> Config:
    return {"head_dim": facts.head_dim}


def _mistral(facts: Facts) -> Config:
    return {"head_dim": facts.head_dim, "sliding_window": facts.window}


def _qwen3(facts: Facts) -> Config:
    return {"head_dim": facts.head_dim, "attention_bias": facts.has("blk.0.attn_q.bias")}


def _phi3(facts: Facts) -> Config:
    longest = facts.header.whole("context_length", 4096)
    return {
        "original_max_position_embeddings": facts.header.whole("rope.scaling.original_context_length", longest),
        "sliding_window": facts.window,
    }


def _gemma(facts: Facts, window: int | None, *, period: int, largest: int) -> Config:
    """Gemma-2 and 3: every `period`-th layer sees everything, the others `window` positions.

    The attention scale is 1/sqrt(head_dim), but 1/sqrt(hidden/heads) in the largest model, known by its layer count.
    """
    return {
        "head_dim": facts.head_dim,
        "query_pre_attn_scalar": facts.hidden // facts.heads if facts.layers == largest else facts.head_dim,
        # transformers' Gemma wants a number even where no layer has a window
        "sliding_window": window or facts.header.whole("context_length", 4096),
        "layer_types": [
            "sliding_attention" if flag and window else "full_attention" for flag in _sliding(facts, period)
        ],
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _sliding(facts: Facts, period: int) -> list[bool]:
    """For each layer, whether it sees a window only; newer files list it, older ones leave it to the architecture."""
    pattern = facts.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and len(pattern) >= facts.layers:
        return [bool(flag) for flag in pattern[: facts.layers]]
    every = facts.header.whole("attention.sliding_window_pattern", period)
    return [bool((layer + 1) % every) for layer in range(facts.layers)]


def _gemma2(facts: Facts) -> Config:
    # Files from before these keys existed are of models with these values.
    return _gemma(facts, facts.window or 4096, period=2, largest=46) | {
        "attn_logit_softcapping": facts.header.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.header.number("final_logit_softcapping", 30.0),
    }


def _gemma3(facts: Facts) -> Config:
    cap = facts.get("final_logit_softcapping")
    return _gemma(facts, facts.window, period=6, largest=62) | {
        "final_logit_softcapping": facts.header.number("final_logit_softcapping", 0.0) if cap else None
    }


_FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", extend=_llama, rotated=True),
    "mistral": Family("mistral", "MistralForCausalLM", extend=_mistral, rotated=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", blocks={**_COMMON, **_HEAD_NORMS}, extend=_qwen3),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", blocks={**_COMMON, **_GEMMA_NORMS}, extend=_gemma2, minus_one=True),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        blocks={**_COMMON, **_GEMMA_NORMS, **_HEAD_NORMS},
        extend=_gemma3,
        minus_one=True,
    ),
    "phi3": Family("phi3", "Phi3ForCausalLM", blocks=_FUSED, extend=_phi3),
    "deci": Family("llama", "LlamaForCausalLM", extend=_llama, rotated=True, uneven=True),
    "openelm": Family(
        "qwen3", "Qwen3ForCausalLM", blocks={**_COMMON, **_HEAD_NORMS, **_SPLIT}, extend=_qwen3, uneven=True
    ),
}


def family_of(header: Header) -> Family:
    """Return how the file's architecture maps.

    Raises:
        UnsupportedModelError: For an architecture that is not known here, or a mixture of experts.
    """
    name = header.architecture
    if name not in _FAMILIES:
        raise UnsupportedModelError(
            f"{header.path.name} holds a model of architecture {name[:40]!r}; GGUF files can be read for: "
            f"{', '.join(sorted(_FAMILIES))}. Give a Hugging Face folder instead."
        )
    # llama.cpp runs Mistral's models as "llama"; only the name tells them apart.
    if name == "llama" and "mistral" in header.name:
        return _FAMILIES["mistral"]
    # Llama has a bias in all projections of an attention or in none, Qwen2 in all but the last.
    if name == "deci" and "blk.0.attn_q.bias" in header.tensors and "blk.0.attn_output.bias" not in header.tensors:
        return replace(_FAMILIES["qwen2"], extend=_with_head_dim, rotated=True, uneven=True)
    return _FAMILIES[name]


def facts_of(header: Header) -> Facts:
    """Read the numbers that every supported architecture states.

    Raises:
        ArtifactError: When one is missing or impossible.
        UnsupportedModelError: For per-layer sizes and mixtures of experts.
    """
    if header.metadata.get(f"{header.architecture}.expert_count"):
        raise UnsupportedModelError(f"{header.path.name} is a mixture of experts, which cannot be read yet.")
    layers = header.whole("block_count")
    present = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if layers != len(present) or layers > _MAX_LAYERS:
        raise damaged(
            header.path, f"it claims {layers} blocks and holds {len(present)} (at most {_MAX_LAYERS} are read)"
        )
    hidden = header.whole("embedding_length")
    if family_of(header).uneven:
        return _uneven_facts(header, layers, hidden)
    heads = header.whole("attention.head_count")
    kv_heads = header.whole("attention.head_count_kv", heads)
    head_dim = _head_dim(header, max(1, hidden // heads))
    if heads % kv_heads:
        raise damaged(header.path, f"{heads} query heads do not fit {kv_heads} key heads")
    mlp = header.whole("feed_forward_length")
    return Facts(header, layers, hidden, mlp, heads, kv_heads, head_dim)


def _uneven_facts(header: Header, layers: int, hidden: int) -> Facts:
    blocks = blocks_of(header, layers)
    head_dim = _head_dim(header, max(1, hidden // max(block.heads for block in blocks)))
    heads, kv_heads = base_heads(blocks, hidden)
    return Facts(header, layers, hidden, max(block.mlp for block in blocks), heads, kv_heads, head_dim, blocks)


def _head_dim(header: Header, default: int) -> int:
    head_dim = header.whole("attention.key_length", default)
    if head_dim % 2 or header.whole("attention.value_length", head_dim) != head_dim:
        raise damaged(header.path, f"heads of {head_dim} numbers cannot be turned, or their values have another size")
    return head_dim


def layers_of(header: Header) -> list[dict[str, dict[str, int]]] | None:
    """Return the sizes of every block as `Anatomy.layers` has them; None where the configuration says them.

    Raises:
        ArtifactError: When the header contradicts itself.
    """
    facts = facts_of(header)
    whole = Block(facts.heads, facts.kv_heads, facts.mlp)
    if all(block == whole for block in facts.blocks):
        return None
    return [block.sizes() for block in facts.blocks]


def config_of(header: Header) -> Config:
    """Return the fields of ``config.json``, where blocks differ those of a model that holds each; see `layers_of`.

    Raises:
        ArtifactError: When the header contradicts itself.
        UnsupportedModelError: When the architecture is not known.
    """
    family, facts = family_of(header), facts_of(header)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise damaged(header.path, "it holds no token embedding")
    return {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": facts.hidden,
        "intermediate_size": facts.mlp,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "max_position_embeddings": header.whole("context_length", 2048),
        "rms_norm_eps": header.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_parameters": rope_of(header, family.model_type, facts.head_dim),
        "tie_word_embeddings": not facts.has("output.weight"),
        "bos_token_id": header.token("bos"),
        "eos_token_id": header.token("eos"),
        "pad_token_id": header.token("padding"),
        # stated only where it is not what every class takes by default
        **({"head_dim": facts.head_dim} if facts.head_dim * facts.heads != facts.hidden else {}),
        **family.extend(facts),
    }


def takes_of(header: Header) -> list[Take]:
    """Say for each tensor of the file what becomes of it.

    Raises:
        UnsupportedModelError: When a tensor is not understood: better no model than one with a part missing.
    """
    family, facts = family_of(header), facts_of(header)
    return list(_takes(header, family, facts))


def _takes(header: Header, family: Family, facts: Facts) -> Iterator[Take]:
    for name, entry in header.tensors.items():
        if name in _ROPE_TENSORS:
            continue
        if family.uneven and name.endswith(".attn_qkv.weight"):
            yield from _split(header, entry, facts)
            continue
        target, inner = _target(header, name, family)
        heads = {"attn_q": facts.heads, "attn_k": facts.kv_heads}.get(inner) if family.rotated else None
        if heads and facts.blocks:
            heads = max(1, entry.shape[0] // facts.head_dim)
        norm = inner.endswith("norm") or name == "output_norm.weight"
        yield Take(target, entry, _rows(header, entry, heads), family.minus_one and norm)


def _split(header: Header, entry: TensorEntry, facts: Facts) -> Iterator[Take]:
    """Take queries, keys and values out of the one tensor in which an uneven file has them."""
    index = entry.name.split(".")[1]
    if not index.isdigit() or int(index) >= len(facts.blocks):
        raise damaged(header.path, f"tensor {entry.name[:80]!r} is of no block")
    block = facts.blocks[int(index)]
    sizes = [count * facts.head_dim for count in (block.heads, block.kv_heads, block.kv_heads)]
    if sum(sizes) != entry.shape[0]:
        raise damaged(header.path, f"tensor {entry.name} has {entry.shape[0]} rows, but its heads need {sum(sizes)}")
    start = 0
    for name, size in zip(("q_proj", "k_proj", "v_proj"), sizes, strict=True):
        yield Take(f"model.layers.{int(index)}.self_attn.{name}.weight", entry, np.arange(start, start + size))
        start += size


def _target(header: Header, name: str, family: Family) -> tuple[str, str]:
    """Return the transformers name of a tensor, and its name inside the block."""
    if name in _OUTSIDE:
        return _OUTSIDE[name], ""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in family.blocks:
        return f"model.layers.{int(parts[1])}.{family.blocks[parts[2]]}.{parts[3]}", parts[2]
    raise UnsupportedModelError(
        f"{header.path.name} holds tensor {name[:80]!r}, which a {header.architecture} model does not have here; "
        "give the original Hugging Face folder instead."
    )


def _rows(header: Header, entry: TensorEntry, heads: int | None) -> np.ndarray | None:
    """Undo llama.cpp's row order for rotary embeddings: per head, (pair, half) back to (half, pair)."""
    if heads is None:
        return None
    count = entry.shape[0]
    if count % (2 * heads):
        raise damaged(header.path, f"tensor {entry.name} of {count} rows does not divide into {heads} heads")
    return np.arange(count).reshape(heads, count // heads // 2, 2).swapaxes(1, 2).reshape(-1)
