"""The tensors of a GGUF file: names, order, and what llama.cpp wants changed in the numbers."""

# G KV groups, H query heads, E head size, D residual width

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from lissome.export._architectures import GEMMA2, GEMMA3, Architecture
from lissome.export._rope import Rope
from lissome.export._stack import MLP, Attention, Layer, Piece, Stack, stacked, whole

BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34)} | {
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
}
"""Number types that can be written: numbers in a block, and bytes that it takes (GGUF specification)."""

_LARGEST = {GEMMA2.name: 46, GEMMA3.name: 62}
"""Block count by which llama.cpp knows the model of a family that has another attention scale."""

_NAMES = {
    "norm": ("attn_norm", "ffn_norm"),
    "post_norm": ("post_attention_norm", "post_ffw_norm"),
    "q": ("attn_q", ""),
    "k": ("attn_k", ""),
    "v": ("attn_v", ""),
    "qkv": ("attn_qkv", ""),
    "o": ("attn_output", ""),
    "q_norm": ("attn_q_norm", ""),
    "k_norm": ("attn_k_norm", ""),
    "gate": ("", "ffn_gate"),
    "up": ("", "ffn_up"),
    "down": ("", "ffn_down"),
}


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor of the file.

    Attributes:
        name: Its name.
        piece: Its numbers.
        kind: Their type.
        part: The branch whose padding it shares; empty outside of blocks.
    """

    name: str
    piece: Piece
    kind: str = "F32"
    part: str = ""

    @property
    def bytes(self) -> int:
        """Size in the file."""
        numbers, size = BLOCKS[self.kind]
        return self.piece.numel // numbers * size


def entries_of(stack: Stack, architecture: Architecture, rope: Rope, *, inner: str, outer: str) -> Iterator[Entry]:
    """Yield every tensor of the file, in order.

    Args:
        stack: The model, as the architecture can express it.
        architecture: The architecture of llama.cpp.
        rope: The rotary settings; some are stored as tensors.
        inner: Number type of the matrices in blocks.
        outer: Number type of the embedding and the output projection.
    """
    yield _typed("token_embd.weight", whole(stack.embedding), outer)
    yield Entry("output_norm.weight", _shifted(whole(stack.norm), architecture))
    if stack.head is not None:
        yield _typed("output.weight", whole(stack.head), outer)
    for name, tensor in rope.tensors():
        yield Entry(name, whole(tensor))
    scale = _query_scale(stack, architecture)
    for index, layer in enumerate(stack.layers):
        for branch, pieces in _branches(layer, architecture, scale):
            place = 0 if branch == "attention" else 1
            for role, piece in pieces.items():
                stem, suffix = role.removesuffix("_bias"), "bias" if role.endswith("_bias") else "weight"
                name = f"blk.{index}.{_NAMES[stem][place]}.{suffix}"
                yield replace(_typed(name, piece, inner), part=f"block {index} {branch}")


def _typed(name: str, piece: Piece, kind: str) -> Entry:
    """Give a tensor its type: vectors stay in float32, matrices with rows that no block divides become float16."""
    if len(piece.shape) < 2:
        return Entry(name, piece)
    return Entry(name, piece, kind if piece.shape[-1] % BLOCKS[kind][0] == 0 else "F16")


def _branches(layer: Layer, architecture: Architecture, scale: float) -> Iterator[tuple[str, dict[str, Piece]]]:
    if layer.attention is not None:
        yield "attention", _attention(layer.attention, architecture, scale)
    if layer.mlp is not None:
        yield "mlp", _mlp(layer.mlp, architecture)


def _attention(attention: Attention, architecture: Architecture, scale: float) -> dict[str, Piece]:
    pieces = {
        role: _shifted(piece, architecture) if "norm" in role else piece for role, piece in attention.pieces.items()
    }
    if architecture.rotated:
        for role in ("q", "q_bias", "k", "k_bias"):
            if role in pieces:
                size = attention.shape.head_dim
                pieces[role] = pieces[role].mapped(lambda tensor, size=size: _interleaved(tensor, size))  # type: ignore[misc]
    if scale != 1.0:
        last = "q_norm" if "q_norm" in pieces else "q"
        pieces[last] = pieces[last].mapped(lambda tensor: tensor.float() * scale)
    if architecture.fused_qkv:
        pieces = {"qkv": stacked([pieces.pop(role) for role in "qkv"]), **pieces}
    return pieces


def _mlp(mlp: MLP, architecture: Architecture) -> dict[str, Piece]:
    pieces = {role: _shifted(piece, architecture) if "norm" in role else piece for role, piece in mlp.pieces.items()}
    if architecture.fused_gates:
        pieces["up"] = stacked([pieces.pop("gate"), pieces["up"]])
    return pieces


def _shifted(piece: Piece, architecture: Architecture) -> Piece:
    shift = architecture.norm_shift
    return piece.mapped(lambda tensor: tensor.float() + shift) if shift else piece


def _interleaved(tensor: Tensor, size: int) -> Tensor:
    """Put rows i and i + E/2 of each head side by side, as llama.cpp's first kind of rotation pairs them."""
    heads = tensor.shape[0] // size
    return tensor.reshape(heads, 2, size // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _query_scale(stack: Stack, architecture: Architecture) -> float:
    """What queries must be multiplied with so that llama.cpp's fixed attention scale becomes the model's own."""
    wanted = getattr(stack.config, "query_pre_attn_scalar", None)
    if wanted is None:
        return 1.0
    shape = stack.attentions[0].shape
    largest = len(stack.layers) == _LARGEST.get(architecture.name)
    fixed = stack.hidden // shape.query_heads if largest else shape.head_dim
    return 1.0 if fixed == wanted else math.sqrt(fixed / wanted)


def padding_bytes(entries: Iterable[Entry]) -> dict[str, float]:
    """Return how many bytes of the file are padding, by branch."""
    added: dict[str, float] = {}
    for entry in entries:
        share = entry.piece.added / entry.piece.numel
        added[entry.part] = added.get(entry.part, 0.0) + share * entry.bytes
    return added
