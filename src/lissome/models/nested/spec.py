"""What a file of nested weights says of its decoder: sizes, and which weights and vectors there are."""

# D residual width, V tokens, H query heads, G KV heads, E head size, F MLP channels

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lissome.core.errors import ArtifactError

MOST_LAYERS, MOST_SIZE = 4096, 1 << 24
"""Far more than any model has; a file that claims more is damaged."""


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One attention.

    Attributes:
        heads, kv_heads, size: H, G and E.
        scale: By which scores are multiplied.
        cap: Scores become ``cap · tanh(score / cap)``; 0 for none.
        window: How many positions are seen; 0 for all.
        rope: Which of the decoder's ropes.
        bias: Whether there are biases of queries, keys and values.
        out_bias: Whether there is one of the output.
        head_norms: Whether queries and keys are normed per head.
        post_norm: Whether its result is normed.
    """

    heads: int
    kv_heads: int
    size: int
    scale: float
    cap: float = 0.0
    window: int = 0
    rope: int = 0
    bias: bool = False
    out_bias: bool = False
    head_norms: bool = False
    post_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """One gated MLP.

    Attributes:
        width: F.
        gate: ``"silu"``, or ``"gelu"`` by tanh.
        bias: Whether gate and up have biases.
        out_bias: Whether down has one.
        post_norm: Whether its result is normed.
    """

    width: int
    gate: Literal["silu", "gelu"]
    bias: bool = False
    out_bias: bool = False
    post_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block; what was removed is None."""

    attention: AttentionSpec | None = None
    mlp: MlpSpec | None = None


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """A rotary embedding: how many pairs of a head it turns, and the scale of its cosines and sines."""

    pairs: int
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A causal language model.

    Attributes:
        kind: transformers' name of its architecture.
        hidden: D.
        vocabulary: V.
        context: Positions that it was made for.
        eps: Of all norms.
        ropes: Its rotary embeddings.
        layers: Its blocks.
        embedding_scale: By which embeddings are multiplied.
        tied: Whether the head is the embedding.
        head_cap: Logits become ``cap · tanh(logit / cap)``; 0 for none.
    """

    kind: str
    hidden: int
    vocabulary: int
    context: int
    eps: float
    ropes: tuple[RopeSpec, ...]
    layers: tuple[LayerSpec, ...]
    embedding_scale: float = 1.0
    tied: bool = True
    head_cap: float = 0.0

    def weights(self) -> dict[str, tuple[int, int]]:
        """Return the shape [N, K] of every matrix by name."""
        found = {"embedding": (self.vocabulary, self.hidden)}
        if not self.tied:
            found["head"] = (self.vocabulary, self.hidden)
        for at, layer in enumerate(self.layers):
            if (attention := layer.attention) is not None:
                outputs = (attention.heads + 2 * attention.kv_heads) * attention.size
                found[f"layers.{at}.attention.qkv"] = (outputs, self.hidden)
                found[f"layers.{at}.attention.out"] = (self.hidden, attention.heads * attention.size)
            if (mlp := layer.mlp) is not None:
                found[f"layers.{at}.mlp.gate_up"] = (2 * mlp.width, self.hidden)
                found[f"layers.{at}.mlp.down"] = (self.hidden, mlp.width)
        return found

    def vectors(self) -> dict[str, int]:
        """Return the length of every vector by name."""
        found = {"norm": self.hidden} | {f"ropes.{at}": rope.pairs for at, rope in enumerate(self.ropes)}
        for at, layer in enumerate(self.layers):
            if layer.attention is not None:
                found |= {f"layers.{at}.attention.{name}": size for name, size in self._of_attention(layer.attention)}
            if layer.mlp is not None:
                found |= {f"layers.{at}.mlp.{name}": size for name, size in self._of_mlp(layer.mlp)}
        return found

    def _of_attention(self, attention: AttentionSpec) -> Iterator[tuple[str, int]]:
        yield "norm", self.hidden
        if attention.post_norm:
            yield "post_norm", self.hidden
        if attention.head_norms:
            yield "query_norm", attention.size
            yield "key_norm", attention.size
        if attention.bias:
            yield "qkv_bias", (attention.heads + 2 * attention.kv_heads) * attention.size
        if attention.out_bias:
            yield "out_bias", self.hidden

    def _of_mlp(self, mlp: MlpSpec) -> Iterator[tuple[str, int]]:
        yield "norm", self.hidden
        if mlp.post_norm:
            yield "post_norm", self.hidden
        if mlp.bias:
            yield "gate_up_bias", 2 * mlp.width
        if mlp.out_bias:
            yield "down_bias", self.hidden

    def check(self, where: str) -> None:
        """Refuse sizes that no model has, before anything is computed with them.

        Raises:
            ArtifactError: Names the first size that cannot be.
        """
        sizes = {"hidden": self.hidden, "vocabulary": self.vocabulary, "context": self.context}
        for at, layer in enumerate(self.layers):
            if (part := layer.attention) is not None:
                sizes |= {f"layers.{at}.heads": part.heads, f"layers.{at}.kv_heads": part.kv_heads}
                sizes |= {f"layers.{at}.size": part.size}
            if layer.mlp is not None:
                sizes[f"layers.{at}.width"] = layer.mlp.width
        sizes |= {f"ropes.{at}.pairs": rope.pairs for at, rope in enumerate(self.ropes)}
        wrong = [f"{name} = {size}" for name, size in sizes.items() if not 1 <= size <= MOST_SIZE]
        attentions = {at: layer.attention for at, layer in enumerate(self.layers) if layer.attention is not None}
        for at, one in attentions.items():  # these may be 0
            wrong += [f"layers.{at}.window = {one.window}"] if not 0 <= one.window <= MOST_SIZE else []
            wrong += [f"layers.{at}.rope = {one.rope}"] if not 0 <= one.rope < len(self.ropes) else []
        if len(self.layers) > MOST_LAYERS:
            wrong.append(f"{len(self.layers)} layers")
        if wrong:
            raise ArtifactError(f"{where} describes no decoder: {wrong[0]}; the file is damaged.")
