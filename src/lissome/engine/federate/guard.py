"""What an answer must be before it may touch the result.

Names, shapes, types and sizes are compared with what the order asked for, then every number is looked at. Whoever
breaks a rule is written down and left out; nothing that a client sends can end a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

from lissome.core.errors import FederationError
from lissome.engine.federate.parcel import WEIGHT, Parcel
from lissome.engine.federate.profile import Profile

_SLACK = 16 << 10  # bytes of an answer beyond its tensors: head, names, metrics
_METRICS = 64
_OUTLIER = 10.0  # times the median: what a client may claim to have of examples


def check_size(parcel: Parcel, expected: int, names: int) -> None:
    """Refuse an answer that is larger than what was asked for, before it is decoded.

    Args:
        parcel: The answer.
        expected: Bytes of the tensors that the order asks for.
        names: How many tensors these are.

    Raises:
        FederationError: Says both sizes.
    """
    limit = expected + 512 * names + _SLACK
    if parcel.bytes > limit:
        raise FederationError(f"the answer has {parcel.bytes} bytes, at most {limit} were agreed")


def check_numbers(numbers: Mapping[str, float], most: float) -> tuple[float, dict[str, float]]:
    """Return the weight and the metrics of an answer.

    Args:
        numbers: What came.
        most: Largest weight that this client may have.

    Raises:
        FederationError: When a number is missing, not finite, or out of range.
    """
    if len(numbers) > _METRICS:
        raise FederationError(f"{len(numbers)} metrics came, at most {_METRICS} are read")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FederationError(f"the number {name[:80]!r} is not finite")
    weight = float(numbers.get(WEIGHT, 0.0))
    if not 0 < weight <= most:
        raise FederationError(f"{WEIGHT} is {weight:g}, it must be above 0 and at most {most:g}")
    return weight, {name: float(value) for name, value in numbers.items() if name != WEIGHT}


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        FederationError: Names the first tensor that holds some.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FederationError(f"the tensor {name!r} holds NaN or infinity")


def largest_weights(profiles: Iterable[Profile]) -> dict[str, float]:
    """Return how much each client may weigh: what it said when it joined, at most ten times the median.

    A client that claims to have a million examples where others have a hundred would otherwise decide alone.
    """
    known = list(profiles)
    if not known:
        return {}
    limit = _OUTLIER * median(max(1, one.examples) for one in known)
    return {one.name: min(float(max(1, one.examples)), limit) for one in known}
