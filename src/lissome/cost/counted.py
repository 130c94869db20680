"""Exact counts of a model or of one of its Subnets, without building it.

- Parameters: tied ones once; embeddings (and an untied head) apart from those in the blocks.
- Multiply-accumulates of one forward over T tokens: T times every weight of a linear layer, the head included, and
  ``2·T²·H·E`` per attention (queries times keys, weights times values). All T² positions count, as most kernels compute
  them; `causal` counts only those that a token may see. Biases, norms and activations are not counted.
- Bytes: of the safetensors file with its header; of keys and values at a given length, a sliding window's at most.
"""

# T tokens, H query heads, G KV groups, E head size

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lissome.cost.blocks import BlockSum, Part, Vector, sizes_of, window_of
from lissome.cost.measured import Request
from lissome.cost.roofline import Work
from lissome.models.anatomy import Branch
from lissome.models.model import Model

COUNTED = ("params", "block_params", "disk", "macs")
"""Budget terms that are counted."""

_FILE_START = 8 + len('{"__metadata__":{"format":"pt"}}')  # bytes before the first tensor's entry in a safetensors file
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model has, counted.

    Attributes:
        params: All parameters, tied ones once.
        block_params: Those inside the blocks.
        embedding_params: Those of the input embedding and, when it is not tied, of the head.
        disk: Bytes of the safetensors file.
        macs: Multiply-accumulates of one forward over the stated tokens.
        cache_bytes: Bytes of keys and values at the stated length.
    """

    params: int
    block_params: int
    embedding_params: int
    disk: int
    macs: int
    cache_bytes: int

    def bytes_at(self, bits: float) -> float:
        """Bytes of the parameters alone at so many bits each, e.g. 16 for bfloat16 or 4.5 for Q4_0."""
        return self.params * bits / 8

    def figures(self) -> dict[str, float]:
        """Return the counts by budget term."""
        return {name: float(getattr(self, name)) for name in COUNTED}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table of parts: a branch, or ``"embeddings"``, ``"head"`` or ``"rest"``."""

    name: str
    params: int
    macs: int
    disk: int
    cache_bytes: int


class Counter:
    """Counts any Subnet of one model.

    Args:
        model: The model, not masked now.
        tokens: Tokens T of the forward whose multiply-accumulates are counted (default: the prompt of a request).
        length: Tokens in the cache whose bytes are counted (default: all of a request).
        dtype: Type of the saved weights (default: the model's own).
        causal: Count only the attention positions that a token may see.
    """

    WIDTH = 5
    """Length of the vectors that `block` returns."""

    def __init__(
        self,
        model: Model,
        *,
        tokens: int = Request().prompt,
        length: int = Request().prompt + Request().new,
        dtype: torch.dtype | None = None,
        causal: bool = False,
    ) -> None:
        self._model, self._tokens, self._length, self._causal = model, tokens, length, causal
        self._stored = {name: dtype or value.dtype for name, value in model.module.named_parameters()}
        self._held = next(model.module.parameters()).dtype.itemsize
        self._digits = len(str(sum(math.prod(shape) for shape in model.binding.shapes.values()) * self._held))
        self._heads = {branch.name: _Heads.of(model, branch) for branch in model.anatomy.branches}
        self._fixed = self._count_fixed()
        self._sum = BlockSum(model, self.block, self.WIDTH)

    def count(self, subnet: Mapping[str, int] | None = None) -> Counts:
        """Count a Subnet (default: the model as it is); axes that are not named are full."""
        return self.counts_of(self._sum.total(subnet or {}))

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return the counted budget terms of a Subnet."""
        return self.count(subnet).figures()

    def block(self, parts: tuple[Part, ...]) -> Vector:
        """Count one block: parameters, bytes in the file, linear and attention multiply-accumulates, cache bytes."""
        columns = zip(*(self._part(part) for part in parts), strict=True)
        return tuple(float(sum(column)) for column in columns)

    def counts_of(self, total: list[float]) -> Counts:
        """Complete the sum of all blocks (see `block`) by what stands outside of them."""
        params, disk, linear, attention, cache = (int(value) for value in total)
        embedding, head, rest = self._fixed
        return Counts(
            params=params + embedding.params + head.params + rest.params,
            block_params=params,
            embedding_params=embedding.params + head.params,
            disk=_padded(_FILE_START + disk + embedding.disk + head.disk + rest.disk),
            macs=linear + attention + head.macs,
            cache_bytes=cache,
        )

    def table(self, subnet: Mapping[str, int] | None = None) -> list[Row]:
        """Return one row per kept branch, then the parts that always stay."""
        rows = []
        for part in self._parts(subnet or {}):
            params, disk, linear, attention, cache = self._part(part)
            rows.append(
                Row(name=part.branch.name, params=params, macs=linear + attention, disk=disk, cache_bytes=cache)
            )
        return rows + [row for row in self._fixed if row.params or row.macs]

    def work(self, subnet: Mapping[str, int] | None = None, request: Request | None = None) -> Work:
        """Return what a request asks of a machine, for the roofline.

        The head runs for the last token alone, and a decode step is that in the middle of the new tokens.
        """
        request = request or Request()
        middle = request.prompt + request.new // 2
        weights, seen, seen_at_once, held = self._fixed[1].macs // self._tokens, 0, 0, 0
        head = weights
        for part in self._parts(subnet or {}):
            heads = self._heads[part.branch.name]
            weights += self._sizes(part)[2]
            seen += heads.pairs(part, heads.tokens(middle))
            seen_at_once += heads.pairs(part, _positions(request.prompt, heads.window, causal=True))
            held += heads.held(part, middle)
        return Work(
            prefill_macs=request.batch * ((weights - head) * request.prompt + head + seen_at_once),
            step_macs=request.batch * (weights + seen),
            weight_bytes=weights * self._held,
            cache_bytes=request.batch * held * self._held,
        )

    def _parts(self, subnet: Mapping[str, int]) -> Iterator[Part]:
        values = dict(subnet)
        for branch in self._model.anatomy.branches:
            if values.get(branch.name, 1):
                yield Part(branch, sizes_of(branch, values))

    def _part(self, part: Part) -> tuple[int, int, int, int, int]:
        params, disk, weights = self._sizes(part)
        heads = self._heads[part.branch.name]
        attention = heads.pairs(part, _positions(self._tokens, heads.window, causal=self._causal))
        return params, disk, weights * self._tokens, attention, heads.held(part, self._length) * self._held

    def _sizes(self, part: Part) -> tuple[int, int, int]:
        """Parameters of a branch, their bytes in the file, and the weights of its linear layers."""
        index = self._model.binding.branch_index(part.branch, part.sizes)
        linears = {f"{linear}.weight" for linear in part.branch.linears}
        params = disk = weights = 0
        for name in part.branch.parameters:
            shape = list(self._model.binding.shapes[name])
            for dim, kept in index.get(name, {}).items():
                shape[dim] = len(kept)
            params += math.prod(shape)
            disk += self._entry(name, shape, self._stored[name])
            weights += math.prod(shape) if name in linears else 0
        return params, disk, weights

    def _entry(self, name: str, shape: list[int] | tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes of a tensor in a safetensors file: its numbers, and its entry in the JSON header."""
        sizes = ",".join(map(str, shape))
        kind = _DTYPES.get(dtype, "I64")
        entry = f',"{name}":{{"dtype":"{kind}","shape":[{sizes}],"data_offsets":[,]}}'
        return math.prod(shape) * dtype.itemsize + len(entry) + 2 * self._digits

    def _count_fixed(self) -> tuple[Row, Row, Row]:
        """Rows of the input embedding, the head, and whatever else stands outside of the branches."""
        module = self._model.module
        inside = {name for branch in self._model.anatomy.branches for name in branch.parameters}
        embedding, head = _weight(module, "get_input_embeddings"), _weight(module, "get_output_embeddings")
        sums = {"embeddings": [0, 0], "head": [0, 0], "rest": [0, 0]}
        for name, parameter in module.named_parameters():
            if name not in inside:
                key = "embeddings" if parameter is embedding else "head" if parameter is head else "rest"
                sums[key][0] += parameter.numel()
                sums[key][1] += self._entry(name, tuple(parameter.shape), self._stored[name])
        known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        for name, buffer in module.state_dict().items():
            if name not in known:
                sums["rest"][1] += self._entry(name, tuple(buffer.shape), buffer.dtype)
        macs = {"head": self._tokens * head.numel() if head is not None else 0}
        embedding_row, head_row, rest = (
            Row(name=name, params=params, macs=macs.get(name, 0), disk=disk, cache_bytes=0)
            for name, (params, disk) in sums.items()
        )
        return embedding_row, head_row, rest


@dataclass(frozen=True)
class _Heads:
    """What an attention does beside its linear layers; all zero for other branches."""

    size: int
    window: int | None

    @classmethod
    def of(cls, model: Model, branch: Branch) -> _Heads:
        if branch.kind != "attention":
            return cls(0, None)
        return cls(int(model.module.get_submodule(branch.path).head_dim), window_of(model, branch))  # type: ignore[arg-type]

    def tokens(self, length: int) -> int:
        """Tokens in the cache after `length` tokens."""
        return length if self.window is None else min(length, self.window)

    def pairs(self, part: Part, positions: int) -> int:
        """Multiply-accumulates of queries times keys and of weights times values at so many pairs of positions."""
        return 2 * positions * part.sizes["groups"] * part.sizes["queries"] * self.size if self.size else 0

    def held(self, part: Part, length: int) -> int:
        """Numbers in the cache after `length` tokens."""
        return 2 * self.tokens(length) * part.sizes["groups"] * self.size if self.size else 0


def _positions(tokens: int, window: int | None, *, causal: bool) -> int:
    """Pairs of a query and a key position: all, or those that causality and the window let through."""
    if not causal:
        return tokens * tokens
    reach = min(tokens, window or tokens)
    return reach * (reach + 1) // 2 + (tokens - reach) * reach


def _weight(module: nn.Module, getter: str) -> nn.Parameter | None:
    layer = getattr(module, getter)()
    return None if layer is None else layer.weight


def _padded(size: int) -> int:
    return -(-size // 8) * 8
