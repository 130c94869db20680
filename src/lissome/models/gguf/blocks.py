"""Sizes per block, which llama.cpp reads for its architectures `deci` and `openelm`: uneven models are written so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lissome.core.errors import UnsupportedModelError
from lissome.models.gguf.header import Header, damaged


@dataclass(frozen=True)
class Block:
    """Query heads, KV heads and MLP channels of one block; without an attention it has no heads."""

    heads: int
    kv_heads: int
    mlp: int

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return its sizes as `Anatomy.layers` has them."""
        found = {"mlp": {"width": self.mlp}}
        if self.heads:
            found["attention"] = {"groups": self.kv_heads, "queries": self.heads // self.kv_heads}
        return found


def blocks_of(header: Header, count: int) -> tuple[Block, ...]:
    """Return the sizes of every block.

    Raises:
        ArtifactError: When they are missing or impossible.
        UnsupportedModelError: For blocks that only llama.cpp's own models of such an architecture have.
    """
    keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    blocks = tuple(Block(*sizes) for sizes in zip(*(header.each(key, count) for key in keys), strict=True))
    for index, block in enumerate(blocks):
        if not block.mlp or bool(block.heads) != bool(block.kv_heads):
            raise UnsupportedModelError(
                f"{header.path.name} has no MLP, or an attention without keys, in block {index}, which cannot be read "
                "yet; give the original Hugging Face folder instead."
            )
        if block.kv_heads and block.heads % block.kv_heads:
            raise damaged(
                header.path, f"the {block.heads} query heads of block {index} do not fit {block.kv_heads} key heads"
            )
    if not any(block.heads for block in blocks):
        raise damaged(header.path, "no block of it has an attention")
    return blocks


def base_heads(blocks: Sequence[Block], hidden: int) -> tuple[int, int]:
    """Return the fewest query and KV heads of a model that holds every block.

    Args:
        blocks: The blocks.
        hidden: Residual width, which configuration classes want to be a multiple of the number of heads.
    """
    groups = max(block.kv_heads for block in blocks)
    queries = max(block.heads // block.kv_heads for block in blocks if block.heads)
    for heads in range(groups * queries, hidden + 1):
        for kv_heads in range(groups, heads // queries + 1):
            if not hidden % heads and not heads % kv_heads:
                return heads, kv_heads
    return groups * queries, groups
