"""EFTNAS, LoNAS and SuperSAM on MiniLM's real weights, from the model to an extracted one; a few steps, no figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome import pipeline
from lissome.core.errors import LissomeError
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.models.space import Space
from lissome.testing.examples import worded_texts

pytestmark = pytest.mark.slow

SETTINGS = {
    "eftnas": ("steps=2", "batch=4", "tune_steps=2", "score_steps=4", "targets=4"),
    "lonas": ("steps=2", "batch=4"),
    "supersam": ("steps=2", "batch=4", "tune_steps=2", "examples=8"),
}


@pytest.mark.parametrize("method", SETTINGS)
def test_minilm(method: str, tmp_path: Path) -> None:
    try:
        pipeline.load("minilm")
    except LissomeError as error:
        pytest.skip(f"minilm cannot be fetched here: {error}")
    data = worded_texts(tmp_path / "words.jsonl")
    report = pipeline.supernet("minilm", method=method, data=data, settings=SETTINGS[method], out=tmp_path / "S")
    found = pipeline.search(tmp_path / "S", out=tmp_path / "S" / "search", trials=4, budget=("macs<=70%",))
    assert found.evaluated == 4 and found.front
    cut = pipeline.extract_for(tmp_path / "S", budget="macs<=70%", out=tmp_path / "A")
    assert cut.seconds < 60
    assert Counter(pipeline.load(tmp_path / "A")).count().macs == cut.figures["macs"] <= 0.7 * cut.original["macs"]
    if method == "eftnas":
        space, counter = Space.from_json(read_manifest(tmp_path / "S").space), Counter(pipeline.load(tmp_path / "S"))
        smallest, largest = (counter.figures(one)["macs"] for one in (space.smallest, space.full))
        assert smallest == pytest.approx(0.35 * largest, rel=0.02)
    assert report.points[-1]["change"] == "smallest"
