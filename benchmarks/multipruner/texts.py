"""The text of the claim: calibration, recovery and test never share a passage."""

# n windows, L tokens of a window

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from lissome.core.errors import AssetError
from lissome.data.local import data_file
from lissome.data.sources import read_corpus, shipped_corpus
from lissome.data.text import Encoder, spread, windows_sha256
from lissome.models.model import Model

LENGTH = 256
"""Tokens of a calibration window; `CALIBRATION` of them choose what to remove."""
CALIBRATION = 4
TEST_LENGTH = 512
TEST = 16
"""Test windows: 8,192 held-out tokens, half of them web text, half Wikipedia."""

PASSAGES = {
    "lm/owt_passages.jsonl": "89b166a9b1a0857c367c83f470f869133d4e925bf1b96b1d7903fb063905642f",
    "lm/wikipedia_passages.jsonl": "ef129cc93cbf4ebb9b984b366cb5a380fdd3ebcf5660517c72482b8dc496e074",
}
_CALIBRATION_PASSAGES, _TEST_PASSAGES = slice(0, 400), slice(500, 800)


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """Windows of token ids for one model; satisfies `lissome.core.protocols.Splits`.

    Attributes:
        calibration: LongTensor[n, 256], drawn with the calibration seed, equally from every source.
        selection: LongTensor[0, 256]: nothing here selects.
        recovery: LongTensor[n, 256]: all text that calibration is drawn from.
        test: LongTensor[16, 512], the same for every seed.
        source: What the text is.
    """

    calibration: Tensor
    selection: Tensor
    recovery: Tensor
    test: Tensor
    source: str

    @property
    def fingerprint(self) -> str:
        """Hash of all windows."""
        return windows_sha256(torch.cat([self.calibration.flatten(), self.recovery.flatten()])[None])

    def facts(self) -> dict[str, Any]:
        """Return what a result must say about its text."""
        return {
            "source": self.source,
            "calibration": [list(self.calibration.shape), windows_sha256(self.calibration)],
            "test": [list(self.test.shape), windows_sha256(self.test)],
        }


def texts(model: Model, seed: int) -> Texts:
    """Return the text for a model and a calibration seed."""
    encoder = Encoder(model.tokenizer, model.anatomy.vocabulary)
    source, pools, tests = _passages()
    calibration, recovery, test = [], [], []
    for pool, held_out in zip(pools, tests, strict=True):
        rows = encoder.windows(encoder.encode("\n\n".join(pool)), LENGTH, "auto")
        chosen = Random(seed).sample(range(len(rows)), CALIBRATION // len(pools))
        calibration.append(rows[sorted(chosen)])
        recovery.append(rows)
        rows = encoder.windows(encoder.encode("\n\n".join(held_out)), TEST_LENGTH, "auto")
        test.append(spread(rows, TEST // len(pools)))
    return Texts(
        calibration=torch.cat(calibration),
        selection=calibration[0][:0],
        recovery=torch.cat(recovery),
        test=torch.cat(test),
        source=source,
    )


def long_windows(model: Model, length: int, most: int) -> Tensor:
    """Return held-out windows of another length, LongTensor[n, length], at most so many, equally from every source."""
    encoder = Encoder(model.tokenizer, model.anatomy.vocabulary)
    _, _, tests = _passages()
    rows = [encoder.windows(encoder.encode("\n\n".join(held_out)), length, "auto") for held_out in tests]
    each = max(1, most // len(rows))
    return torch.cat([spread(some, min(each, len(some))) for some in rows])


@cache
def _passages() -> tuple[str, Sequence[Sequence[str]], Sequence[Sequence[str]]]:
    """Return what the text is, and per source the passages for calibration and for the test."""
    try:
        files = [data_file(name, sha256) for name, sha256 in PASSAGES.items()]
    except AssetError:
        documents = shipped_corpus().documents
        by_split = {name: [d.text for d in documents if d.split == name] for name in ("calibration", "test")}
        return "shipped text", [by_split["calibration"]], [by_split["test"]]
    passages = [[document.text for document in read_corpus(file).documents] for file in files]
    calibration = [rows[_CALIBRATION_PASSAGES] for rows in passages]
    return "OpenWebText and Wikipedia passages", calibration, [rows[_TEST_PASSAGES] for rows in passages]
