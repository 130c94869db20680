"""Which examples a step of training sees."""

from __future__ import annotations

import torch
from torch import Tensor

from lissome.core.seeds import derive
from lissome.engine.hooks import Examples, Measured

_POOL = 50  # batches whose examples are sorted by length together: enough to be alike, few enough to stay random


class Order:
    """Which examples a step sees: a new permutation in every epoch, from the seed alone.

    Examples that know their lengths share a batch with others of about their own, batches still in random order: what
    would be padding is not computed. They are sorted within pools of batches, at least four to an epoch.

    Args:
        data: The examples.
        batch: Examples of a forward pass.
        seed: Of the permutations.
        name: Tells two orders of one seed apart.
    """

    def __init__(self, data: Examples, batch: int, seed: int, name: str) -> None:
        self._count, self._batch, self._seed, self._name = len(data), batch, seed, name
        self._lengths = data.lengths if isinstance(data, Measured) else None
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def positions(self, start: int, count: int) -> Tensor:
        """LongTensor[count]: examples number `start` … of the endless stream."""
        return torch.stack([self._at(start + offset) for offset in range(count)])

    def _at(self, position: int) -> Tensor:
        epoch, index = divmod(position, self._count)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive(self._seed, self._name, epoch))
            drawn = torch.randperm(self._count, generator=generator)
            # the first of an epoch fill the batch that the one before began
            head, rest = drawn.tensor_split([min(self._count, -epoch * self._count % self._batch)])
            self._epoch, self._permutation = epoch, torch.cat([head, self._grouped(rest, generator)])
        return self._permutation[index]

    def _grouped(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        pool = min(_POOL, self._count // (4 * self._batch))
        if self._lengths is None or pool < 2:
            return drawn
        whole, rest = drawn.tensor_split([len(drawn) // self._batch * self._batch])
        found = []
        for part in whole.split(pool * self._batch):
            batches = part[self._lengths[part].argsort(stable=True)].view(-1, self._batch)
            found.append(batches[torch.randperm(len(batches), generator=generator)].flatten())
        return torch.cat([*found, rest])
