"""What llama.cpp's architectures can express, and which of them fits a model.

Facts of llama.cpp's loaders and graphs (``src/models/*.cpp``, read and run at llama-cpp-python 0.3.36): most
architectures read one MLP width and one number of heads for all blocks; `deci` and `openelm` read them per block.

- `deci` has Llama's block. A block may have no attention (0 heads), but the first must, since the head size is read
  from it, and every block needs an MLP: with width 0 the block's attention would be dropped too.
- `openelm` has Qwen-3's block (a norm on each query and key head) and always a tied output projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lissome.core.errors import ExportError
from lissome.export._padding import bridged, padded, uniform_sizes
from lissome.export._rope import rope_of
from lissome.export._stack import MLP, Attention, Stack

MAX_BLOCKS = 512


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        name: Its name in a GGUF file.
        rotated: Query and key rows are stored with the two halves of each head interleaved.
        uneven: Reads heads and widths per block.
        removed: Reads a block without attention.
        fused_qkv: Query, key and value are one tensor.
        fused_gates: Gate and up are one tensor (gate first).
        head_norms: Has a norm on query and key heads.
        post_norms: Has a norm after each branch.
        tied: Always uses the embedding as output projection.
        square: Takes query heads times head size to be the residual width.
        windows: Has attentions that see a window only.
        partial: Rotates a part of each head where the file says so.
        factors: Reads one divisor per rotary frequency, as Llama 3's scaling and unusual YaRN need.
        long: Reads two such sets, for short and long contexts.
        biases: Tensors that may have a bias.
        activation: The MLP's activation, in transformers' names.
        norm_shift: Added to every norm weight when it is written.
    """

    name: str
    rotated: bool = False
    uneven: bool = False
    removed: bool = False
    fused_qkv: bool = False
    fused_gates: bool = False
    head_norms: bool = False
    post_norms: bool = False
    tied: bool = False
    square: bool = False
    windows: bool = False
    partial: bool = False
    factors: bool = False
    long: bool = False
    biases: frozenset[str] = field(default=frozenset())
    activation: frozenset[str] = frozenset({"silu", "swish"})
    norm_shift: float = 0.0


_ALL_BIASES = frozenset({"q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias"})
_GELU = frozenset({"gelu_pytorch_tanh", "gelu_new"})

LLAMA = Architecture("llama", rotated=True, factors=True, long=True, biases=_ALL_BIASES)
QWEN2 = Architecture("qwen2", square=True, biases=frozenset({"q_bias", "k_bias", "v_bias"}))
QWEN3 = Architecture("qwen3", head_norms=True)
GEMMA2 = Architecture("gemma2", post_norms=True, tied=True, windows=True, activation=_GELU, norm_shift=1.0)
GEMMA3 = Architecture("gemma3", head_norms=True, post_norms=True, windows=True, activation=_GELU, norm_shift=1.0)
PHI3 = Architecture("phi3", fused_qkv=True, fused_gates=True, square=True, partial=True, long=True)
DECI = Architecture("deci", rotated=True, uneven=True, removed=True, factors=True, long=True, biases=_ALL_BIASES)
OPENELM = Architecture("openelm", uneven=True, fused_qkv=True, head_norms=True, tied=True)

OWN: dict[str, Architecture] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "phi3": PHI3,
}
"""The architecture that was made for each `model_type`."""


def fitted(stack: Stack, *, pad: bool, align: int) -> tuple[Architecture, Stack]:
    """Choose how to write a model.

    Args:
        stack: The model.
        pad: Whether blocks may be grown to one shape where nothing can express theirs.
        align: Multiple that MLP widths should have for the wanted number type; used with `pad` only.

    Returns:
        The architecture, and the model with the branches and sizes that it needs.

    Raises:
        ExportError: When nothing fits; says why for each architecture, and whether padding would help.
    """
    own = OWN[stack.model_type]
    align = align if pad else 1
    reasons = []
    for architecture in (own, DECI, OPENELM):
        lacks = list(_lacks(stack, architecture))
        if not lacks and architecture.uneven:
            return architecture, bridged(stack, attention="first" if architecture.removed else "all", align=align)
        if not lacks:
            return architecture, padded(stack, uniform_sizes(stack, align=align, square=architecture.square))
        reasons.append(f"{architecture.name}: {lacks[0]}")
    fixed = list(_fixed_lacks(stack, own))
    if fixed:
        raise ExportError(
            f"llama.cpp cannot run this model ({fixed[0]}); export it as a Hugging Face folder (--to hf)."
        )
    if not pad:
        raise ExportError(
            f"no architecture of llama.cpp can express these blocks ({'; '.join(reasons)}); "
            "add --pad to fill them up with zeros to one shape."
        )
    return own, padded(stack, uniform_sizes(stack, align=align, square=own.square))


def _lacks(stack: Stack, architecture: Architecture) -> Iterator[str]:
    """Say what an architecture lacks for a model, one reason after the other."""
    if not architecture.uneven and stack.uneven:
        yield stack.uneven
    heads = {attention.shape.query_heads * attention.shape.head_dim for attention in stack.attentions}
    if architecture.square and heads != {stack.hidden}:
        yield "it takes query heads times head size to be the hidden size"
    yield from _fixed_lacks(stack, architecture)


def _fixed_lacks(stack: Stack, architecture: Architecture) -> Iterator[str]:
    """Say what no padding can give."""
    config, rope = stack.config, rope_of(stack)
    branches: list[Attention | MLP] = [*stack.attentions, *stack.mlps]
    pieces = {name for branch in branches for name in branch.pieces}
    if len(stack.layers) > MAX_BLOCKS:
        yield f"{len(stack.layers)} blocks are more than {MAX_BLOCKS}"
    if ("q_norm" in pieces) != architecture.head_norms:
        yield (
            "it has no norm on query and key heads" if "q_norm" in pieces else "it needs a norm on query and key heads"
        )
    if ("post_norm" in pieces) != architecture.post_norms:
        yield "it has no norm behind a branch" if "post_norm" in pieces else "it needs a norm behind each branch"
    if architecture.tied and stack.head is not None:
        yield "it has no output projection apart from the embedding"
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in architecture.activation:
        yield f"its activation is not {activation}"
    if biases := {name for name in pieces if name.endswith("_bias")} - architecture.biases:
        yield f"it has no bias in {', '.join(sorted(name.removesuffix('_bias') for name in biases))}"
    if rope.dims != stack.attentions[0].shape.head_dim and not architecture.partial:
        yield f"it cannot rotate {rope.dims} numbers of each head only"
    if (rope.divisors is not None and not architecture.factors) or (rope.long is not None and not architecture.long):
        yield f"it cannot scale positions by this kind of {rope.kind}"
    caps = {name: getattr(config, name, None) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    if architecture is GEMMA2 and None in caps.values():
        yield "it always caps its logits"
    if (architecture is not GEMMA2 and caps["attn_logit_softcapping"]) or (
        architecture.post_norms is False and caps["final_logit_softcapping"]
    ):
        yield "it cannot cap its logits"
