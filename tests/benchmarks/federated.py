"""What tests of claims on federation share: cells that are changed, and their fleet with a toy in MiniLM's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _federated
from benchmarks._frame import Inequality
from lissome.data.labelled import Labelled
from tests.pipeline.federated import make_place

Cells = Mapping[str, Mapping[str, Any]]
Judge = Callable[[Any], list[Inequality]]


def all_hold(judge: Judge, cells: Cells) -> int:
    """Check that everything holds; return how many inequalities there are."""
    found = judge(cells)
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]
    return len(found)


def names_it(judge: Judge, cells: Cells, arm: str, changes: Mapping[str, Any], words: str) -> None:
    """Check that a judgement names what is broken when the cells of an arm change."""
    changed = {
        name: {**cell, **changes} if arm in {name, name.rpartition("-")[0]} else cell for name, cell in cells.items()
    }
    assert any(words in one.name for one in judge(changed) if not one.ok)


def result_of(judge: Judge, cells: Cells, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored result."""
    return {"facts": facts, "cells": cells, "inequalities": [vars(one) for one in judge(cells)], "environments": []}


def cell_of(accuracy: float, *, spent: Sequence[float] = (0, 100), **more: Any) -> dict[str, Any]:
    """Return a made-up cell of an arm whose accuracy was 0.1 at the start."""
    scores = [0.1, *[accuracy] * (len(spent) - 1)]
    payload = spent[-1]
    return {"accuracy": scores, "spent": list(spent), "payload": payload, "clients": {"a": 0.8, "b": 0.5}, **more}


def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let claims load a toy encoder, and learn twelve classes of a dozen texts each."""
    pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")
    from lissome.pipeline import federation

    place, load = make_place(folder), federation.load
    monkeypatch.setattr(federation, "load", lambda name, **options: load(str(place / "model"), **options))
    rows = [(f"{name} {index}", label) for label, name in enumerate(_federated.LANGUAGES) for index in range(12)]
    part = Labelled("toy", tuple(text for text, _ in rows), tuple(label for _, label in rows), _federated.LANGUAGES)
    other = replace(part, texts=tuple(f"{text} again" for text in part.texts))
    parts = {"train": part, "validation": other, "test": part}
    monkeypatch.setattr(_federated, "texts", lambda: parts)
