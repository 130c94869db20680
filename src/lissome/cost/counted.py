"""Exact counts of a model or of one of its Subnets, without building it.

- Parameters: tied ones once; embeddings (and an untied head) apart from those in the blocks.
- Multiply-accumulates of one forward over T tokens: every weight of a linear layer or convolution as often as it is
  applied (T times, unless its branch says otherwise), the head included, and what a branch computes between tokens:
  ``2·T²·H·E`` per attention (queries times keys, weights times values). All T² positions count, as most kernels compute
  them; `causal` counts only those that a token may see. Adapters that are not merged are counted as the products that
  they are. Biases, norms and activations are not counted.
- Bytes: of the safetensors file with its header, sparse weights compressed (`lissome.models.sparse`; for a Subnet of a
  sparse model with each tensor's own share of zeros) and those on a grid as integers (`lissome.models.integers`; in a
  Subnet that cuts one it is no longer on its grid), and of that file with every weight written out; of what is held
  for the next token at a given length: keys and values, a sliding window's at most, and states.
"""

# T tokens

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lissome.cost.blocks import BlockSum, Part, Vector, sizes_of
from lissome.cost.measured import Request
from lissome.cost.roofline import Work
from lissome.models.adapters.layers import NAME as ADAPTER
from lissome.models.integers import grids, stored_sizes
from lissome.models.model import Model
from lissome.models.sparse import masks

COUNTED = ("params", "block_params", "disk", "macs")
"""Budget terms that are counted."""

Number = TypeVar("Number", int, NDArray[np.int64])

_ADAPTER = f".{ADAPTER}."
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
        dense_disk: Bytes of that file if no weights were compressed.
        macs: Multiply-accumulates of one forward over the stated tokens; zeros are multiplied like any other number.
        cache_bytes: Bytes of keys, values and states at the stated length.
    """

    params: int
    block_params: int
    embedding_params: int
    disk: int
    dense_disk: int
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
    """One line of the table of parts: a branch, or one of what always stays.

    These are ``"embeddings"``, ``"head"``, ``"norms"`` (of blocks in which norms outlive the branches) and ``"rest"``.
    """

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

    WIDTH = 6
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
        self._stored = {name: value.dtype for name, value in model.module.named_buffers()}
        self._stored |= {name: dtype or value.dtype for name, value in model.module.named_parameters()}
        self._held = next(model.module.parameters()).dtype.itemsize
        self._masks, self._grids = masks(model.module), grids(model.module)
        self._digits = len(str(sum(math.prod(shape) for shape in model.binding.shapes.values()) * self._held))
        self._fixed = self._count_fixed()
        self._sum = BlockSum(model, self.block, self.WIDTH)

    def count(self, subnet: Mapping[str, int] | None = None) -> Counts:
        """Count a Subnet (default: the model as it is); axes that are not named are full."""
        return self.counts_of(self._sum.total(subnet or {}))

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return the counted budget terms of a Subnet."""
        return self.count(subnet).figures()

    def block(self, parts: tuple[Part, ...]) -> Vector:
        """Count one block: parameters, bytes in the file (compressed, dense), multiply-accumulates, cache bytes."""
        columns = zip(*(self._part(part) for part in parts), strict=True)
        return tuple(float(sum(column)) for column in columns)

    def counts_of(self, total: Sequence[float]) -> Counts:
        """Complete the sum of all blocks (see `block`) by what stands outside of them."""
        embeddings = self._fixed["embeddings"].params + self._fixed["head"].params
        return Counts(embedding_params=embeddings, **self._complete([int(value) for value in total]))

    def columns_of(self, totals: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
        """Complete the sums of all blocks of n Subnets at once.

        Args:
            totals: float64[n, WIDTH], whole numbers; see `block`.

        Returns:
            int64[n] by field of `Counts`, all but ``embedding_params``, which no Subnet changes.
        """
        return self._complete(list(totals.astype(np.int64).T))

    def _complete(self, totals: list[Number]) -> dict[str, Number]:
        params, disk, dense, linear, mixing, cache = totals
        rows = self._fixed.values()
        around = _FILE_START + sum(row.disk for row in rows)
        return {
            "params": params + sum(row.params for row in rows),
            "block_params": params + self._fixed["norms"].params,
            "disk": -(-(around + disk) // 8) * 8,  # a safetensors header is padded
            "dense_disk": -(-(around + dense) // 8) * 8,
            "macs": linear + mixing + sum(row.macs for row in rows),
            "cache_bytes": cache,
        }

    def table(self, subnet: Mapping[str, int] | None = None) -> list[Row]:
        """Return one row per kept branch, then the parts that always stay."""
        rows = []
        for part in self._parts(subnet or {}):
            params, disk, _, linear, mixing, cache = self._part(part)
            rows.append(Row(name=part.branch.name, params=params, macs=linear + mixing, disk=disk, cache_bytes=cache))
        return rows + [row for row in self._fixed.values() if row.params or row.macs]

    def work(self, subnet: Mapping[str, int] | None = None, request: Request | None = None) -> Work:
        """Return what a request asks of a machine, for the roofline.

        The head runs for the last token alone, and a decode step is that in the middle of the new tokens.
        """
        request = request or Request()
        middle = request.prompt + request.new // 2
        weights, once, seen, seen_at_once, held = self._fixed["head"].macs // self._tokens, 0, 0, 0, 0
        head = weights
        for part in self._parts(subnet or {}):
            *_, per_token, fixed = self._sizes(part)
            weights, once = weights + per_token, once + fixed
            if part.branch.mixing is not None:
                seen += part.branch.mixing.step(part.sizes, middle)
                seen_at_once += part.branch.mixing.whole(part.sizes, request.prompt, causal=True)
                held += part.branch.mixing.held(part.sizes, middle)
        return Work(
            prefill_macs=request.batch * ((weights - head) * request.prompt + head + once + seen_at_once),
            step_macs=request.batch * (weights + seen),
            weight_bytes=weights * self._held,
            cache_bytes=request.batch * held * self._held,
        )

    def _parts(self, subnet: Mapping[str, int]) -> Iterator[Part]:
        values = dict(subnet)
        for branch in self._model.anatomy.branches:
            if values.get(branch.name, 1):
                yield Part(branch, sizes_of(branch, values))

    def _part(self, part: Part) -> tuple[int, int, int, int, int, int]:
        params, disk, dense, weights, fixed = self._sizes(part)
        mixing, linear = part.branch.mixing, weights * self._tokens + fixed
        if mixing is None:
            return params, disk, dense, linear, 0, 0
        between = mixing.whole(part.sizes, self._tokens, causal=self._causal)
        return params, disk, dense, linear, between, mixing.held(part.sizes, self._length) * self._held

    def _sizes(self, part: Part) -> tuple[int, int, int, int, int]:
        """Parameters of a branch, their bytes in the file (compressed, dense), weights per token, other products."""
        index = self._model.binding.branch_index(part.branch, part.sizes)
        applied = {name: part.branch.positions.get(name) for name in part.branch.linears}
        params = disk = dense = weights = fixed = 0
        for name in part.branch.parameters:
            shape = list(self._model.binding.shapes[name])
            for dim, kept in index.get(name, {}).items():
                shape[dim] = len(kept)
            size = math.prod(shape)
            params += size
            plain = self._entry(name, shape, self._stored[name]) if size else 0
            dense += plain
            disk += self._file_bytes(name, size, plain)
            owner, adapts, _ = name.removesuffix(".weight").partition(_ADAPTER)
            if owner in applied and (adapts or name.endswith(".weight") or name in applied):
                positions = applied[owner]
                weights, fixed = weights + size * (positions is None), fixed + size * (positions or 0)
        for name in part.branch.buffers:
            shape = list(self._model.binding.shapes[name])
            for dim, kept in index.get(name, {}).items():
                shape[dim] = len(kept)
            stored = self._entry(name, shape, self._stored[name])
            disk, dense = disk + stored, dense + stored
            fixed += math.prod(shape) * (part.branch.positions.get(name.removesuffix(".weight")) or 0)
        return params, disk, dense, weights, fixed

    def _file_bytes(self, name: str, size: int, plain: int) -> int:
        """Bytes of a tensor of which `size` numbers are left, in the form in which it is written."""
        if name in self._grids and size == math.prod(self._model.binding.shapes[name]):
            return self._integers(name, size)
        return self._compressed(name, size) if name in self._masks else plain

    def _integers(self, name: str, size: int) -> int:
        grid, mask = self._grids[name], self._masks.get(name)
        sizes = stored_sizes(size, mask.kept if mask else size, grid.scale.numel(), grid.bits, masked=mask is not None)
        return sum(self._entry(name + key, [count], torch.uint8) for key, count in sizes.items())

    def _compressed(self, name: str, size: int) -> int:
        """Bytes of a masked tensor of which `size` numbers are left, in the smaller of its two forms."""
        mask, dtype = self._masks[name], self._stored[name]
        kept = -(-mask.kept * size // mask.numel)
        packed = self._entry(f"{name}.bitmap", [-(-size // 8)], torch.uint8)
        packed += self._entry(f"{name}.values", [kept], dtype)
        return min(packed, self._entry(name, [size], dtype)) if size else 0

    def _entry(self, name: str, shape: list[int] | tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes of a tensor in a safetensors file: its numbers, and its entry in the JSON header."""
        sizes = ",".join(map(str, shape))
        kind = _DTYPES.get(dtype, "I64")
        entry = f',"{name}":{{"dtype":"{kind}","shape":[{sizes}],"data_offsets":[,]}}'
        return math.prod(shape) * dtype.itemsize + len(entry) + 2 * self._digits

    def _count_fixed(self) -> dict[str, Row]:
        """Rows of whatever stands outside of the branches."""
        module, anatomy = self._model.module, self._model.anatomy
        inside = {name for branch in anatomy.branches for name in (*branch.parameters, *branch.buffers)}
        blocks = tuple(f"{block}." for block in anatomy.blocks)
        embedding, head = _weight(module, "get_input_embeddings"), _weight(module, "get_output_embeddings")
        sums = {"embeddings": [0, 0], "head": [0, 0], "norms": [0, 0], "rest": [0, 0]}
        for name, parameter in module.named_parameters():
            if name not in inside:
                key = "norms" if name.startswith(blocks) else "rest"
                key = "embeddings" if parameter is embedding else "head" if parameter is head else key
                sums[key][0] += parameter.numel()
                sums[key][1] += self._entry(name, tuple(parameter.shape), self._stored[name])
        known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        for name, buffer in module.state_dict().items():
            if name not in known and name not in inside:
                sums["rest"][1] += self._entry(name, tuple(buffer.shape), buffer.dtype)
        shapes, outside = self._model.binding.shapes, anatomy.outside
        applied = [
            math.prod(shapes[f"{name}.weight"]) * (positions or self._tokens) for name, positions in outside.items()
        ]
        macs = {"head": self._tokens * head.numel() if head is not None else 0, "rest": sum(applied)}
        return {
            name: Row(name=name, params=params, macs=macs.get(name, 0), disk=disk, cache_bytes=0)
            for name, (params, disk) in sums.items()
        }


def _weight(module: nn.Module, getter: str) -> nn.Parameter | None:
    """Weight of the input embedding or of the head; None for a model without one, or with one that reads no tokens."""
    try:
        layer = getattr(module, getter, lambda: None)()
    except NotImplementedError:  # transformers' word for a model that reads no tokens
        return None
    return getattr(layer, "weight", None) if isinstance(layer, nn.Embedding | nn.Linear) else None
