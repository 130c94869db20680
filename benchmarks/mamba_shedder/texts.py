"""The text of the claim: held out when the zoo was trained, calibration and test apart."""

# n windows of 256 bytes

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from lissome.data.text import spread, windows_sha256
from tools import train_zoo

CALIBRATION = 96
"""Windows that choose what to remove: 24,576 bytes. With a third of them, which scan goes second was chance."""
TEST = 128
"""Test windows: 32,768 bytes."""
RECOVERY = 4096
"""Windows that a recovery learns from: a megabyte of the text that the models were trained on."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """Windows of bytes; satisfies `lissome.core.protocols.Splits`.

    Attributes:
        calibration: LongTensor[96, 256], drawn with the calibration seed, equally from both sources.
        selection: LongTensor[0, 256]: nothing here selects.
        recovery: LongTensor[4096, 256].
        test: LongTensor[128, 256], the same for every seed, equally from both sources.
    """

    calibration: Tensor
    selection: Tensor
    recovery: Tensor
    test: Tensor

    @property
    def fingerprint(self) -> str:
        """Hash of what a method sees."""
        return windows_sha256(torch.cat([self.calibration, self.recovery]))

    def facts(self) -> dict[str, Any]:
        """Return what a result must say about its text."""
        return {
            "source": "man pages and addresses to Congress, documents held out from training",
            "calibration": [list(self.calibration.shape), windows_sha256(self.calibration)],
            "test": [list(self.test.shape), windows_sha256(self.test)],
        }


@cache
def texts(seed: int) -> Texts:
    """Return the text for a calibration seed.

    Raises:
        AssetError: When it is not on this machine.
    """
    found, rng = train_zoo.texts(), Random(seed)
    sources = found.choice.chunk(2)  # man pages, addresses
    chosen = [part[sorted(rng.sample(range(len(part)), CALIBRATION // 2))] for part in sources]
    test = torch.cat([spread(windows, TEST // 2) for windows in found.test.values()])
    return Texts(
        calibration=torch.cat(chosen),
        selection=found.choice[:0],
        recovery=spread(found.train, RECOVERY).long(),
        test=test,
    )
