"""Whisper: an encoder of sound and a decoder of text that attends to it.

Blocks are ``x += attention(norm(x)); x += fc2(gelu(fc1(norm(x))))``, in the decoder with cross-attention to the
encoder's output in between. A removed branch adds a zero; its norm goes with it. The convolutions in front of the
encoder stay. The cache counts tokens in its first layer, so that a removed self-attention of the decoder still puts
keys of no heads there, which have a length and no bytes. (The dummies that the decoders' families use are refused by
transformers' cache for encoder-decoders.)
"""

# G heads, E head size, P positions of the encoder

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch
from lissome.models.mixing import Attention
from lissome.models.parts import (
    NoAttention,
    NoMLP,
    common_size,
    drop_blocks,
    heads_dim,
    make_branch,
    require_architecture,
    width_dim,
)

_SIDES = ("encoder", "decoder")
_ATTENTIONS = {"attention": "self_attn", "cross_attention": "encoder_attn"}


class TokenCount(DynamicLayer):
    """A layer of a cache that holds keys of no heads, and says how many tokens they are of."""

    @classmethod
    def of(cls, layer: DynamicLayer) -> TokenCount:
        """Take over what a plain layer holds; that one says 0, since it holds no numbers."""
        counting = cls()
        vars(counting).update(vars(layer))
        return counting

    def get_seq_length(self) -> int:
        """Number of tokens."""
        return int(self.keys.shape[-2]) if self.is_initialized and self.keys is not None else 0


class NoSelfAttention(NoAttention):
    """Stands where a self-attention of the decoder was: adds nothing, and counts tokens in the cache.

    Args:
        layer_idx: Number of its block in the decoder.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Put keys and values [B, 0, T, 1] into the cache, and return a zero without dimensions."""
        cache = kwargs.get("past_key_values")
        if cache is not None:
            cache = getattr(cache, "self_attention_cache", cache)
            empty = hidden_states.new_zeros(hidden_states.shape[0], 0, hidden_states.shape[1], 1)
            cache.update(empty, empty, self.layer_idx)
            if type(cache.layers[self.layer_idx]) is DynamicLayer:
                cache.layers[self.layer_idx] = TokenCount.of(cache.layers[self.layer_idx])
        return super().forward(hidden_states)


def read(module: Any) -> Anatomy:
    """Read the anatomy of a Whisper model, bare or with its head.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ("whisper",))
    base = module.base_model
    if not hasattr(base, "encoder") or not hasattr(base, "decoder"):
        raise UnsupportedModelError(f"{type(module).__name__} lacks the encoder or the decoder; give the whole model")
    prefix = "" if base is module else "model."
    stacks = {
        side: tuple(f"{prefix}{side}.layers.{i}" for i in range(len(getattr(base, side).layers))) for side in _SIDES
    }
    blocks = stacks["encoder"] + stacks["decoder"]
    branches = tuple(branch for index, block in enumerate(blocks) for branch in _branches(module, index, block))
    positions = int(config.max_source_positions)
    return Anatomy(
        family=Whisper(),
        architecture=architecture,
        module=module,
        blocks=blocks,
        branches=branches,
        hidden=int(config.d_model),
        vocabulary=int(config.vocab_size),
        quorums=_quorums(branches),
        task="seq2seq",
        outside={f"{prefix}encoder.conv1": 2 * positions, f"{prefix}encoder.conv2": positions},
    )


def _quorums(branches: tuple[Branch, ...]) -> tuple[tuple[str, ...], ...]:
    """Something of the encoder stays, and one cross-attention that hears it."""
    groups = (
        tuple(branch.name for branch in branches if branch.name.startswith("encoder.")),
        tuple(branch.name for branch in branches if branch.kind == "cross_attention"),
    )
    return tuple(group for group in groups if group)


def _branches(module: Any, index: int, block: str) -> list[Branch]:
    layer, positions = module.get_submodule(block), int(module.config.max_source_positions)
    *_, side, _, number = block.split(".")
    heard = positions if side == "encoder" else 0
    found = []
    for kind, name in _ATTENTIONS.items():
        attention = getattr(layer, name, None)
        if attention is None or isinstance(attention, NoAttention):
            continue
        size = attention.head_dim
        if side == "encoder":
            mixing = Attention(size, causal=False, queries=positions, keys=positions, caches=False)
        else:
            mixing = Attention(size) if name == "self_attn" else Attention(size, causal=False, keys=positions)
        path = f"{block}.{name}"
        read_once = dict.fromkeys((f"{path}.k_proj", f"{path}.v_proj"), positions)
        heads = heads_dim(module, path, ("q_proj", "k_proj", "v_proj"), "out_proj", size)
        found.append(
            make_branch(
                module, f"{side}.{number}.{kind}", block, name, (f"{name}_layer_norm",), kind=kind, block=index,
                dims=(heads,), mixing=mixing, positions=read_once if kind == "cross_attention" else heard,
            )
        )  # fmt: skip
    if not isinstance(layer.fc2, NoMLP):
        width = width_dim(module, block, ("fc1",), "fc2")
        found.append(
            make_branch(
                module, f"{side}.{number}.mlp", block, "fc2", ("fc1", "final_layer_norm"), kind="mlp", block=index,
                dims=(width,), positions=heard,
            )
        )  # fmt: skip
    return found


class Whisper:
    """Operations on Whisper; see `lissome.models.anatomy.Family`."""

    name = "whisper"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed branch."""
        if branch.name.startswith("decoder.") and branch.kind == "attention":
            return NoSelfAttention(int(branch.name.split(".")[1]))
        return NoMLP() if branch.kind == "mlp" else NoAttention()

    def resize(self, module: Any, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return the number of heads, which the attention's forward reads."""
        return {} if branch.kind == "mlp" else {branch.path: {"num_heads": sizes["groups"]}}

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Nothing: removed attentions of the decoder speak to the cache themselves."""
        return {}

    def finish(self, module: Any) -> None:
        """Drop empty blocks on both sides, renumber the rest, and write uniform widths into the configuration."""
        config, anatomy, first = module.config, read(module), 0
        for side in _SIDES:
            stack = getattr(module.base_model, side)
            branches = [branch for branch in anatomy.branches if branch.name.startswith(f"{side}.")]
            kept = sorted({branch.block - first for branch in branches})
            first += len(stack.layers)
            stack.layers = drop_blocks(stack.layers, kept)
            setattr(config, f"{side}_layers", len(kept))
            width = common_size(branches, "mlp", "width", len(kept))
            setattr(config, f"{side}_ffn_dim", width or getattr(config, f"{side}_ffn_dim"))

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm of the decoder and vocabulary projection: [..., D] → [..., V].

        Raises:
            UnsupportedModelError: When the model has no head.
        """
        if not hasattr(module, "proj_out"):
            raise UnsupportedModelError(f"{type(module).__name__} has no vocabulary projection.")
        logits: Tensor = module.proj_out(module.base_model.decoder.layer_norm(hidden))
        return logits
