"""Which weights of a matrix stay when some are set to zero: Wanda, magnitude, SparseGPT, each beside a plain reference.

A mask is Bool of the weight's shape [out, in], True where a weight is kept. How many zeros there are follows from the
shape and the share alone, never from the numbers; ties go to the weight that comes first.
"""

# R rows (outputs), C columns (inputs)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lissome.core.errors import ConfigError, NumericsError

_DAMPING = 0.01  # of the Hessian's mean diagonal: SparseGPT's
_COLUMNS = 128  # columns that SparseGPT chooses zeros among at a time


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `of` neighbouring inputs of a row stay, e.g. 2:4, which some GPUs multiply faster."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``"2:4"``.

        Raises:
            ConfigError: When it is not two whole numbers, the first smaller than the second.
        """
        kept, _, of = text.partition(":")
        if not (kept.isdecimal() and of.isdecimal() and 0 < int(kept) < int(of)):
            raise ConfigError(f"a pattern is KEPT:OF such as 2:4, two of every four inputs kept; got {text!r}.")
        return cls(int(kept), int(of))

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.kept / self.of

    def check(self, columns: int) -> None:
        """Refuse a number of inputs that is not made of whole groups.

        Raises:
            ConfigError: Says both.
        """
        if columns % self.of:
            raise ConfigError(
                f"the pattern {self} needs a multiple of {self.of} inputs, but a layer has {columns}; "
                "give a share (sparsity) instead."
            )

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


Amount = float | Pattern
"""How much becomes zero: a share in [0, 1), or a pattern."""


def zeros(count: int, share: float) -> int:
    """How many of `count` weights a share of zeros takes: rounded down, as the papers' code does."""
    return math.floor(share * count + 1e-9)  # 0.29 · 100 is 28.999…


def zeros_of(shape: tuple[int, int], amount: Amount, per: str = "row") -> int:
    """How many weights of a matrix [R, C] become zero.

    Args:
        shape: R, C.
        amount: The share, or a pattern.
        per: Within what the share is taken: ``"row"``, ``"layer"`` or ``"block"`` (SparseGPT's blocks of columns).
    """
    rows, columns = shape
    if isinstance(amount, Pattern):
        return rows * columns // amount.of * (amount.of - amount.kept)
    if per == "layer":
        return zeros(rows * columns, amount)
    if per == "row":
        return rows * zeros(columns, amount)
    return sum(zeros(rows * min(_COLUMNS, columns - start), amount) for start in range(0, columns, _COLUMNS))


def lowest_zeroed(scores: Tensor, amount: Amount) -> Tensor:
    """Mask that drops the lowest scores of every row: Tensor[R, C] → Bool[R, C].

    Raises:
        ConfigError: When the inputs are not made of whole groups of a pattern.
    """
    if isinstance(amount, Pattern):
        amount.check(scores.shape[1])
        grouped = lowest_zeroed(scores.reshape(-1, amount.of), 1 - amount.kept / amount.of)
        return grouped.view(scores.shape)
    dropped = scores.argsort(dim=1, stable=True)[:, : zeros(scores.shape[1], amount)]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, dropped, False)


def wanda(weight: Tensor, norms: Tensor, amount: Amount) -> Tensor:
    """Wanda (Sun et al. 2023, arXiv 2306.11695): drop the lowest |W[i, j]| · ‖X[:, j]‖ within each output row.

    Args:
        weight: Tensor[R, C].
        norms: L2 norm of each input feature over the calibration tokens, Tensor[C].
        amount: Share of zeros per row, or a pattern.

    Returns:
        Bool[R, C].

    Raises:
        NumericsError: When a norm is not finite.
        ConfigError: When the inputs are not made of whole groups of a pattern.
    """
    _check_finite(norms)
    return lowest_zeroed(weight.detach().abs().double() * norms.double(), amount)


def wanda_ref(weight: Tensor, norms: Tensor, share: float) -> Tensor:
    """`wanda` one number at a time."""
    mask = torch.ones(weight.shape, dtype=torch.bool)
    for row, values in enumerate(weight.tolist()):
        scores = [abs(value) * norm for value, norm in zip(values, norms.tolist(), strict=True)]
        order = sorted(range(len(scores)), key=lambda column, scores=scores: scores[column])  # type: ignore[misc]
        for column in order[: zeros(len(scores), share)]:
            mask[row, column] = False
    return mask


def magnitude(weight: Tensor, amount: Amount, per: str = "row") -> Tensor:
    """Drop the smallest weights, of each row or of the whole layer (``per="layer"``): Tensor[R, C] → Bool[R, C]."""
    scores = weight.detach().abs()
    if per == "layer" and not isinstance(amount, Pattern):
        return lowest_zeroed(scores.view(1, -1), amount).view(weight.shape)
    return lowest_zeroed(scores, amount)


def magnitude_ref(weight: Tensor, share: float, per: str = "row") -> Tensor:
    """`magnitude` as Wanda with inputs of equal norm."""
    rows = weight.reshape(1, -1) if per == "layer" else weight
    return wanda_ref(rows, torch.ones(rows.shape[1]), share).view(weight.shape)


def sparsegpt(weight: Tensor, hessian: Tensor, amount: Amount) -> tuple[Tensor, Tensor]:
    """SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): choose zeros, and let what is left make up for them.

    Columns are visited in order; the error of a column's zeros is carried over to the columns behind it, weighed by the
    inverse Hessian of the layer's squared output error. Zeros are chosen for 128 columns at a time by w² / [H⁻¹]ⱼⱼ.

    Args:
        weight: Tensor[R, C].
        hessian: Sum over tokens of x xᵀ, Tensor[C, C].
        amount: Share of zeros per block of columns, or a pattern per row.

    Returns:
        The changed weight [R, C] with its zeros, in the weight's type, and the mask Bool[R, C].

    Raises:
        NumericsError: When the Hessian is not finite.
        ConfigError: When the inputs are not made of whole groups of a pattern.
    """
    work, inverse = _prepared(weight, hessian)
    columns = work.shape[1]
    step = _COLUMNS
    if isinstance(amount, Pattern):
        amount.check(columns)
        step = max(1, _COLUMNS // amount.of) * amount.of
    mask = torch.ones(work.shape, dtype=torch.bool, device=work.device)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block, inner = work[:, start:stop], inverse[start:stop, start:stop]
        errors = torch.zeros_like(block)
        if not isinstance(amount, Pattern):
            mask[:, start:stop] = _block_mask(block, inner.diagonal(), amount)
        for column in range(stop - start):
            if isinstance(amount, Pattern) and column % amount.of == 0:
                group = slice(column, column + amount.of)
                chosen = lowest_zeroed((block[:, group] / inner.diagonal()[group]).square(), amount)
                mask[:, start + column : start + column + amount.of] = chosen
            kept = block[:, column] * mask[:, start + column]
            errors[:, column] = (block[:, column] - kept) / inner[column, column]
            block[:, column + 1 :] -= errors[:, column : column + 1] * inner[column, column + 1 :]
            block[:, column] = kept
        work[:, stop:] -= errors @ inverse[start:stop, stop:]
    result = work.to(weight.dtype).masked_fill(~mask, 0)
    return result, mask


def sparsegpt_ref(weight: Tensor, hessian: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """`sparsegpt` with the inverse of what is left of the Hessian taken anew for every column."""
    work, damped = weight.detach().double().clone(), _damped(hessian)
    work[:, hessian.diagonal() == 0] = 0
    columns = work.shape[1]
    mask = torch.ones(work.shape, dtype=torch.bool)
    for column in range(columns):
        if column % _COLUMNS == 0:
            stop = min(column + _COLUMNS, columns)
            pivots = torch.stack([torch.linalg.inv(damped[j:, j:])[0, 0].sqrt() for j in range(column, stop)])
            mask[:, column:stop] = _block_mask(work[:, column:stop], pivots, share)
        inverse = torch.linalg.inv(damped[column:, column:])
        lost = work[:, column] * ~mask[:, column]
        work[:, column:] -= torch.outer(lost, inverse[0] / inverse[0, 0])
    return work.to(weight.dtype).masked_fill(~mask, 0), mask


def _prepared(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Weight in float64 without its dead inputs, and the upper Cholesky factor of the inverse Hessian."""
    _check_finite(hessian)
    work = weight.detach().double().clone()
    work[:, hessian.diagonal() == 0] = 0  # never fed, so that their weights change nothing
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(hessian)))
    return work, torch.linalg.cholesky(inverse, upper=True)


def _check_finite(statistics: Tensor) -> None:
    if not torch.isfinite(statistics).all():
        raise NumericsError("the inputs of a layer are NaN or infinite; check the weights, or use float32.")


def _damped(hessian: Tensor) -> Tensor:
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += _DAMPING * diagonal.mean()
    return matrix


def _block_mask(block: Tensor, pivots: Tensor, share: float) -> Tensor:
    """Drop the lowest saliences of a whole block of columns."""
    scores = (block / pivots).square()
    return lowest_zeroed(scores.reshape(1, -1), share).view(block.shape)
