"""What an answer must be before it may touch the result.

Names, shapes, types and sizes are compared with what the order asked for, then every number is looked at. Whoever
breaks a rule is written down and left out; nothing that a client sends can end a round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lissome.core.errors import FederationError
from lissome.engine.federate.parcel import WEIGHT

_SLACK = 16 << 10  # bytes of an answer beyond its tensors: head, names, metrics
_METRICS = 64
_LARGEST = torch.finfo(torch.float32).max  # of a number: sums over clients stay finite
_SENSIBLE, _GROWTH = 1e6, 1e3  # of a loss or a number in a tensor: in itself, and beside the largest that was sent
_NAME = re.compile(r"[\w./-]{1,80}", re.ASCII)  # names are shown, and written into tables
_SHARES = frozenset({"accuracy", "recall", "precision"})
_PROMISES = frozenset({"epsilon"})  # the server alone can know them


def largest_answer(expected: int = 0, names: int = 0) -> int:
    """Bytes that an answer may have.

    Args:
        expected: Bytes of the tensors that the order asks for.
        names: How many tensors these are.
    """
    return expected + 512 * names + _SLACK


def check_size(size: int, limit: int) -> None:
    """Refuse an answer that is larger than what was asked for, before it is decoded.

    Raises:
        FederationError: Says both sizes.
    """
    if size > limit:
        raise FederationError(f"the answer has {size} bytes, at most {limit} were agreed")


def check_numbers(numbers: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the weight and the metrics of an answer.

    Args:
        numbers: What came.

    Raises:
        FederationError: When there are too many, one is not finite, beyond what it may be or has no plain name, or the
            weight is negative.
    """
    if len(numbers) > _METRICS:
        raise FederationError(f"{len(numbers)} metrics came, at most {_METRICS} are read")
    for name, value in numbers.items():
        if not _NAME.fullmatch(name):
            raise FederationError(f"{name[:80]!r} is no name of a number; use letters, digits, '.', '_', '-', '/'")
        said = name.rpartition("/")[2]
        if said in _PROMISES:
            raise FederationError(f"{name!r} is not for clients to say")
        most = _SENSIBLE if said.startswith("loss") else _LARGEST
        low, high = (0, 1) if said in _SHARES else (-most, most)
        # Compared, not converted: a whole number may be larger than any other.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise FederationError(f"the number {name!r} is not finite, or not from {low:g} to {high:g}")
    weight = float(numbers.get(WEIGHT, 0.0))
    if weight < 0:
        raise FederationError(f"{WEIGHT} is {weight:g}, it must be at least 0")
    return weight, {name: float(value) for name, value in numbers.items() if name != WEIGHT}


def check_weight(weight: float, claimed: float) -> None:
    """Refuse to merge an answer that weighs nothing, or more than the client said when it joined.

    Raises:
        FederationError: Says what it may weigh.
    """
    if not 0 < weight <= claimed:
        raise FederationError(f"{WEIGHT} is {weight:g}, it must be above 0 and at most {claimed:g}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        FederationError: Names the first tensor that holds some.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FederationError(f"the tensor {name!r} holds NaN or infinity")


def check_scale(tensors: Mapping[str, Tensor], sent: Callable[[], Mapping[str, Tensor]]) -> None:
    """Refuse numbers that no training makes of what was sent; averaged, they would make every loss infinite.

    Args:
        tensors: Of the answer, all of them finite.
        sent: Gives those that the client began with, by the same names; called where a number is large at all.

    Raises:
        FederationError: Names the first tensor that is too large, and what it may hold.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            largest = float(tensor.abs().max())
            if largest > _SENSIBLE and largest > (most := max(_SENSIBLE, _GROWTH * float(sent()[name].abs().max()))):
                raise FederationError(f"the tensor {name!r} holds numbers beyond ±{most:.2g}")
