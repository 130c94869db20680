"""What tests of claims on super-networks share: made-up answers, what breaks, and a toy in the place of MiniLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks._elastic import Subject
from benchmarks._frame import Inequality
from lissome.models.labels import with_labels
from lissome.models.model import Model
from lissome.testing.examples import CLASSES, worded_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

SEEDS = (0, 1)


def text(share: float, count: int = 2000) -> str:
    """Answers of which a share is right, the same ones first."""
    return "".join("1" if index < share * count else "0" for index in range(count))


def all_hold(found: Sequence[Inequality]) -> int:
    """Return how many inequalities there are, all of which hold."""
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]
    return len(found)


def broken(found: Sequence[Inequality], words: str) -> bool:
    """Whether an inequality with these words in its name does not hold."""
    return any(words in one.name for one in found if not one.ok)


def toy(folder: Path) -> Subject:
    """A toy encoder with a head that has learnt nothing, and sixty texts."""
    data = worded_texts(folder / "words.jsonl", count=60)
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64}
    bare = Model(toy_module("bert", **sizes), toy_tokenizer())
    with_labels(bare, sorted(CLASSES)).save(folder / "model")
    return Subject("toy", folder / "model", data)
