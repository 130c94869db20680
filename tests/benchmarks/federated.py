"""What tests of claims on federation share: their fleet with a toy in the place of MiniLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import _federated
from lissome.data.labelled import Labelled
from tests.pipeline.federated import make_place


def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let claims load a toy encoder, and learn twelve classes of a dozen texts each."""
    pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")
    from lissome.pipeline import federation

    place, load = make_place(folder), federation.load
    monkeypatch.setattr(federation, "load", lambda name, **options: load(str(place / "model"), **options))
    rows = [(f"{name} {index}", label) for label, name in enumerate(_federated.LANGUAGES) for index in range(12)]
    part = Labelled("toy", tuple(text for text, _ in rows), tuple(label for _, label in rows), _federated.LANGUAGES)
    monkeypatch.setattr(_federated, "texts", lambda: {"train": part, "test": part})
