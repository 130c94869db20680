"""Many Subnets at once, as rows of whole numbers: for each axis the place of what was chosen among its choices."""

# n Subnets, A axes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import SubnetError
from lissome.models.space import Space, Subnet

Rows = NDArray[np.int64]


class Codes:
    """Turns Subnets of one Space into rows, and back.

    Args:
        space: The Space; its axes are the columns, in order.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.sizes: Rows = np.array([len(axis.choices) for axis in space.axes], dtype=np.int64)
        self._choices = [np.array(axis.choices, dtype=np.int64) for axis in space.axes]

    @cached_property
    def column(self) -> dict[str, int]:
        """Number of the column by name of the axis."""
        return {axis.name: index for index, axis in enumerate(self.space.axes)}

    def encode(self, subnets: Sequence[Mapping[str, int]]) -> Rows:
        """Return int64[n, A].

        Raises:
            SubnetError: When an axis has no value, or one that is no choice.
        """
        values = self._values(subnets)
        rows = np.empty_like(values)
        for index, choices in enumerate(self._choices):
            places = np.searchsorted(choices, values[:, index]).clip(max=len(choices) - 1)
            wrong = choices[places] != values[:, index]
            if wrong.any():
                value, axis = int(values[wrong][0, index]), self.space.axes[index]
                raise SubnetError(f"{axis.name}={value} is not a choice; allowed: {axis.choices}.")
            rows[:, index] = places
        return rows

    def decode(self, rows: Rows) -> list[Subnet]:
        """Return the canonical Subnets of int64[n, A]."""
        values = self.chosen(rows).tolist()
        names = list(self.column)
        return [self.space.canonical(Subnet(dict(zip(names, row, strict=True)))) for row in values]

    def chosen(self, rows: Rows) -> Rows:
        """Return the choices themselves, int64[n, A]."""
        if not self._choices:
            return rows
        return np.stack([choices[rows[:, index]] for index, choices in enumerate(self._choices)], axis=1)

    def _values(self, subnets: Sequence[Mapping[str, int]]) -> Rows:
        """The choices of all axes, int64[n, A]."""
        names = list(self.column)
        if not names or not subnets:
            return np.empty((len(subnets), len(names)), dtype=np.int64)
        pick = itemgetter(*names)
        try:
            picked = [pick(each.to_json() if isinstance(each, Subnet) else each) for each in subnets]
        except KeyError as missing:
            raise SubnetError(f"a Subnet gives no value for axis {missing.args[0]}; give all of them.") from None
        return np.array(picked, dtype=np.int64).reshape(len(subnets), len(names))
