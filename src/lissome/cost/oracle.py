"""What any Subnet costs, by budget term: counted exactly where it can be, predicted from a latency table otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lissome.core.metrics import Provenance
from lissome.cost.batch import BatchSum
from lissome.cost.blocks import BlockSum, Part, Vector
from lissome.cost.counted import COUNTED, Counter, Counts
from lissome.cost.memory import CACHE_COPIES, SLACK, Sizes, predict_inference
from lissome.cost.passes import Table
from lissome.models.anatomy import Branch
from lissome.models.codes import Rows
from lissome.models.model import Model
from lissome.models.space import Space


class SubnetCost:
    """Figures of any Subnet of one model; an instance is what `lissome.core.protocols.CostOracle` asks for.

    ``params``, ``block_params``, ``disk`` and ``macs`` are counted, ``memory`` is predicted, of models with a residual
    width; ``latency``, of a language model also ``prefill`` and ``decode``, are predicted from a latency table and
    missing without one.

    Args:
        model: The model, not masked now.
        table: Latency table of the device to plan for.

    Raises:
        ConfigError: When the table was measured on another model.
    """

    def __init__(self, model: Model, *, table: Table | None = None) -> None:
        if table is not None:
            table.require(model)
        self._table, self._counter = table, Counter(model)
        whole = self._counter.count()
        self._fixed_memory = None if not model.anatomy.hidden else _fixed_memory(model, whole)
        self._model = model
        self._batch: BatchSum | None = None
        self._sum = BlockSum(model, self._block, Counter.WIDTH + (table.WIDTH if table else 0))

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return figures by budget term, in the terms' units; axes that `subnet` does not name are full."""
        total = self._sum.total(subnet)
        counts = self._counter.counts_of(total[: Counter.WIDTH])
        figures = counts.figures()
        if self._fixed_memory is not None:
            figures["memory"] = self._fixed_memory + _varying(counts.disk, counts.cache_bytes)
        if self._table is not None:
            figures |= self._table.figures_of(total[Counter.WIDTH :])
        return figures

    def columns(self, space: Space, rows: Rows) -> dict[str, NDArray[np.float64]]:
        """Return the figures of many Subnets at once: each budget term as float64[n], equal to those of `figures`.

        Args:
            space: Their Space.
            rows: Which ones: int64[n, axes] of `lissome.models.codes.Codes`; choices under a removed branch are
                ignored.
        """
        if self._batch is None or self._batch.space != space:
            self._batch = BatchSum(self._model, space, self._part, self._beside, self._sum.width)
        totals = self._batch.totals(rows)
        counts = self._counter.columns_of(totals[:, : Counter.WIDTH])
        figures = {name: counts[name].astype(np.float64) for name in COUNTED}
        if self._fixed_memory is not None:
            figures["memory"] = self._fixed_memory + _varying(counts["disk"], counts["cache_bytes"])
        if self._table is not None:
            figures |= self._table.figures_of(list(totals[:, Counter.WIDTH :].T))
        return figures

    def provenance(self, term: str) -> Provenance:
        """Say how `term` comes about: ``"counted"`` or ``"predicted"``."""
        return "counted" if term in COUNTED else "predicted"

    def reachable(self, space: Space) -> dict[str, float]:
        """Return the figures of the smallest Subnet: how far removal can go."""
        return self.figures(space.smallest)

    def _block(self, parts: tuple[Part, ...]) -> Vector:
        each = [self._counter.block((part,)) for part in parts]
        counted = tuple(sum(column) for column in zip(*each, strict=True))
        return counted + self._table.block(parts, list(map(_macs, each))) if self._table is not None else counted

    def _part(self, part: Part) -> Vector:
        counted = self._counter.block((part,))
        return counted + self._table.part(part, _macs(counted)) if self._table is not None else counted

    def _beside(self, branches: Sequence[Branch]) -> Vector:
        counted = (0.0,) * Counter.WIDTH
        return counted + self._table.beside(branches) if self._table is not None else counted


def _macs(counted: Vector) -> float:
    """Multiply-accumulates in what `Counter.block` counts: of weights, and between tokens."""
    return counted[3] + counted[4]


def _fixed_memory(model: Model, whole: Counts) -> float:
    """Resident bytes of a run that do not depend on the Subnet."""
    sizes = Sizes(
        weights=float(whole.disk), params=float(whole.params), block_params=float(whole.block_params),
        hidden=model.anatomy.hidden, layers=len(model.anatomy.blocks), vocabulary=model.anatomy.vocabulary,
    )  # fmt: skip
    return predict_inference(sizes, whole.cache_bytes).total - float(_varying(whole.disk, whole.cache_bytes))


def _varying(disk: Any, cache: Any) -> Any:
    """Resident bytes of a run that follow the Subnet; of one, or of many as arrays."""
    return (1 + SLACK) * (disk + CACHE_COPIES * cache)
