"""The text of the claim: test windows from documents held out in training, calibration from all the others.

Half of the calibration windows come from the 499 documents of the training, half from the 17 that were held out for
choosing. Either alone misleads: these few rank the scans of Mamba-1 by what they happen to need, and of the man pages,
which were read several times, a part is known by heart, so that a last block that does not recite looks idle.
"""

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

CALIBRATION = 128
"""Windows that choose what to remove: 32,768 bytes."""
TEST = 128
"""Test windows: 32,768 bytes."""
DOCUMENTS = ("read", "held-out", "all")
"""Where calibration windows may come from: what was trained on, the 17 others, or half of each, which is used."""
RECOVERY = 4096
"""Windows that a recovery learns from: a megabyte of the text that the models were trained on."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """Windows of bytes; satisfies `lissome.core.protocols.Splits`.

    Attributes:
        calibration: LongTensor[128, 256], drawn with the calibration seed, equally from both sources.
        selection: LongTensor[128, 256] of other documents, which choose a learning rate.
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

    def facts(self, *, calibrated: bool = True) -> dict[str, Any]:
        """Return what a result must say about its text; one that saw no calibration names the test text alone."""
        found = {
            "source": "man pages and addresses to Congress, test documents held out from training",
            "test": [list(self.test.shape), windows_sha256(self.test)],
        }
        if calibrated:
            found["calibration"] = [list(self.calibration.shape), windows_sha256(self.calibration)]
        return found


@cache
def texts(seed: int, documents: str = "all") -> Texts:
    """Return the text for a calibration seed.

    Args:
        seed: Draws the calibration windows.
        documents: Where those come from, of `DOCUMENTS`.

    Raises:
        AssetError: When it is not on this machine.
    """
    found, rng = train_zoo.texts(), Random(seed)
    seen, unseen = list(found.sources.values()), list(found.choice.chunk(2))
    parts = {"read": seen, "held-out": unseen, "all": [*seen, *unseen]}[documents]
    chosen = [part[sorted(rng.sample(range(len(part)), CALIBRATION // len(parts)))].long() for part in parts]
    test = torch.cat([spread(windows, TEST // 2) for windows in found.test.values()])
    return Texts(
        calibration=torch.cat(chosen),
        selection=found.choice,
        recovery=spread(found.train, RECOVERY).long(),
        test=test,
    )
