"""Small interfaces between the layers, so that contracts can name what lower layers must not import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Splits(Protocol):
    """The text that a method may see, as tensors of windows of token ids."""

    @property
    def calibration(self) -> Any:
        """Windows for choosing what to change: LongTensor[n, length]."""

    @property
    def selection(self) -> Any:
        """Windows for choosing between results: LongTensor[n, length]."""

    @property
    def recovery(self) -> Any:
        """Windows for training: LongTensor[n, length]; may overlap calibration, never selection or test."""

    @property
    def fingerprint(self) -> str:
        """Hash of the text, the tokenizer and the split."""


class CostOracle(Protocol):
    """Predicts what a Subnet costs."""

    def figures(self, subnet: Mapping[str, int]) -> dict[str, float]:
        """Return figures by budget term for `subnet`; counted terms exact, others predicted."""

    def provenance(self, term: str) -> str:
        """Say how `term` comes about: counted, measured, simulated or predicted."""
