"""Walks a model block by block over windows of tokens, so that only one block's activations are alive at a time.

The hidden states at the entrance of every block can be kept: then a change in block b is scored by running blocks
b … L-1 alone. They live in memory up to a limit and in a mapped file beyond it.
"""

# N windows, B windows of one batch, T tokens, D residual width, L blocks

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import NumericsError
from lissome.models.model import Model
from lissome.ops.losses import token_nll

_BATCH_TOKENS = 1024  # enough rows for full matrix speed on a CPU, few enough to stay in its cache


Judge = Callable[[Tensor, slice], Tensor]
"""(last block's output [B, T, D], which windows) → one number per window [B], float64, lower is better."""


@dataclass(frozen=True)
class Call:
    """Arguments with which the model calls one block, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextlib.contextmanager
def recording(
    blocks: list[nn.Module], calls: list[Call], first: list[Tensor], rest: list[tuple[None, ...] | None]
) -> Iterator[None]:
    """Let every block hand its input through and note how it was called.

    `rest` is what blocks return behind the hidden states, None when they return no tuple; when it is not known yet,
    the first block is run once to see it.
    """
    real = blocks[0].forward

    def recorder(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not first:
            first.append(hidden)
        if not rest:
            found = real(hidden, *args, **kwargs)
            rest.append((None,) * (len(found) - 1) if isinstance(found, tuple) else None)
        calls.append(Call(args, kwargs))
        return hidden if rest[0] is None else (hidden, *rest[0])

    for block in blocks:
        block.forward = recorder
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class Walk:
    """The blocks of a model over fixed windows.

    Args:
        model: The model; it may be masked or cut, the blocks are looked up at every step.
        windows: LongTensor[N, T], no padding.
        folder: Where hidden states are spilled to.
        memory_limit: Bytes of hidden states to hold in memory, default 256 MiB.
        batch_tokens: Tokens per forward.

    Raises:
        UnsupportedModelError: When the model is not a causal language model.
    """

    def __init__(
        self,
        model: Model,
        windows: Tensor,
        *,
        folder: Path | None = None,
        memory_limit: int = 256 << 20,
        batch_tokens: int = _BATCH_TOKENS,
    ) -> None:
        model.anatomy.require("causal-lm", "a walk over windows of text")
        self.model, self.windows = model, windows
        self._folder, self._limit = folder, memory_limit
        self._batch = max(1, batch_tokens // windows.shape[1])
        self._calls: list[Call] = []
        self._rest: list[tuple[None, ...] | None] = []
        self._kept: list[Tensor] = []

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.model.anatomy.blocks)

    def batches(self, count: int | None = None) -> Iterator[slice]:
        """Windows of each batch, of the first `count` windows (default: all)."""
        end = len(self.windows) if count is None else min(count, len(self.windows))
        for start in range(0, end, self._batch):
            yield slice(start, min(start + self._batch, end))

    @torch.no_grad()
    def entrance(self, batch: slice) -> Tensor:
        """Hidden states [B, T, D] at the entrance of block 0 (embeddings)."""
        module = self.model.module
        blocks = [module.get_submodule(path) for path in self.model.anatomy.blocks]
        calls: list[Call] = []
        first: list[Tensor] = []
        with recording(blocks, calls, first, self._rest):
            module.base_model(input_ids=self.windows[batch].to(_device(module)), use_cache=False)  # type: ignore[operator]
        if batch.stop - batch.start == 1 or not self._calls:
            self._calls = calls
        return first[0]

    def block(self, index: int, hidden: Tensor) -> Tensor:
        """Run block `index` on hidden states [B, T, D]; arguments made for one window serve any number of them."""
        call = self._call_for(index, len(hidden))
        result = self.model.module.get_submodule(self.model.anatomy.blocks[index])(hidden, *call.args, **call.kwargs)
        after: Tensor = result[0] if isinstance(result, tuple) else result
        return after

    def _call_for(self, index: int, rows: int) -> Call:
        if not self._calls:
            self.entrance(slice(0, 1))
        return self._calls[index]

    @torch.no_grad()
    def fill(self, start: int = 0, judge: Judge | None = None) -> Tensor:
        """Store hidden states at the entrance of blocks `start` … L and behind the last, and judge every window.

        Args:
            start: First block that has changed since the last call.
            judge: What to return per window (default: `loss`).

        Returns:
            Tensor[N].
        """
        if not self._kept:
            self._kept = self._room()
        self.entrance(slice(0, 1))
        found = []
        for batch in self.batches():
            hidden = self.entrance(batch) if start == 0 else self._kept[start][batch]
            for index in range(start, self.depth):
                self._kept[index][batch] = hidden
                hidden = self.block(index, hidden)
            self._kept[-1][batch] = hidden
            found.append((judge or self.loss)(hidden, batch))
        return torch.cat(found)

    @torch.no_grad()
    def score(self, start: int, count: int | None = None, judge: Judge | None = None) -> Tensor:
        """Judge the first `count` windows when blocks from `start` on may have changed since `fill`."""
        found = []
        for batch in self.batches(count):
            hidden = self._kept[start][batch]
            for index in range(start, self.depth):
                hidden = self.block(index, hidden)
            found.append((judge or self.loss)(hidden, batch))
        return torch.cat(found)

    @torch.no_grad()
    def plain(self, judge: Judge | None = None) -> Tensor:
        """Judge every window by a whole forward, nothing kept."""
        found = []
        for batch in self.batches():
            hidden = self.entrance(batch)
            for index in range(self.depth):
                hidden = self.block(index, hidden)
            found.append((judge or self.loss)(hidden, batch))
        return torch.cat(found)

    @torch.no_grad()
    def exit_loss(self) -> Tensor:
        """Loss per window [N] of what `fill` saw last, from the kept states behind the last block."""
        return torch.cat([self.loss(self._kept[-1][batch], batch) for batch in self.batches()])

    def loss(self, hidden: Tensor, batch: slice) -> Tensor:
        """Mean next-token NLL of each window [B], from the last block's output [B, T, D]."""
        rows = [
            token_nll(states, window.to(states.device), self.model.anatomy.head).mean()
            for states, window in zip(hidden, self.windows[batch], strict=True)
        ]
        result = torch.stack(rows).double().cpu()
        if not torch.isfinite(result).all():
            raise NumericsError("the loss is NaN or infinite; check the weights, or use float32 instead of float16.")
        return result

    @torch.no_grad()
    def visit(self, watch: Callable[[int, Tensor, Tensor], None]) -> None:
        """Call ``watch(block, input [B, T, D], output [B, T, D])`` for every block and batch, one batch at a time."""
        self.entrance(slice(0, 1))
        for batch in self.batches():
            hidden = self.entrance(batch)
            for index in range(self.depth):
                output = self.block(index, hidden)
                watch(index, hidden, output)
                hidden = output

    def _room(self) -> list[Tensor]:
        """Make room for the hidden states of every block: in memory, or in one mapped file when they are too many."""
        n, t = self.windows.shape
        d, dtype = self.model.anatomy.hidden, next(self.model.module.parameters()).dtype
        size = n * t * d
        if self.depth * size * dtype.itemsize <= self._limit or self._folder is None:
            device = _device(self.model.module)
            return [torch.empty(n, t, d, dtype=dtype, device=device) for _ in range(self.depth + 1)]
        self._folder.mkdir(parents=True, exist_ok=True)
        file = str(self._folder / "hidden.bin")
        flat = torch.from_file(file, shared=True, size=(self.depth + 1) * size, dtype=dtype)
        return list(flat.view(self.depth + 1, n, t, d))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
