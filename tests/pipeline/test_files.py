"""The file that a user gave stands in the table, with the result as such a file beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import lissome
from lissome.pipeline.reports import FitReport
from tests.export.toys import model_of

pytestmark = pytest.mark.long


def _fit(model: Path, text: Path, out: Path) -> FitReport:
    settings = ("width_step=8", "recover_steps=0")
    return lissome.fit(model, budget="block_params=75%", data=text, settings=settings, out=out)


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if llama-cpp-python were not installed."""
    real = importlib.util.find_spec

    def find(name: str, *more: Any) -> Any:
        return None if name == "llama_cpp" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_gguf_file_and_the_result_as_one(toy_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    given = tmp_path / "mine.gguf"
    lissome.export(model_of("llama", tokenizer=True, max_position_embeddings=1024), "gguf", given, type="F16")
    report = _fit(given, toy_text, tmp_path / "out")
    base, result = (row.figures["file"] for row in report.rows)
    assert base.metric.value == given.stat().st_size
    exported = lissome.export(tmp_path / "out", "gguf", tmp_path / "result.gguf", type="F16", pad=True)
    assert result.metric.value == exported.bytes
    assert result.ratio == pytest.approx(exported.bytes / given.stat().st_size)
    assert any("exported to GGUF F16" in note for note in report.notes)
    assert any("pip install 'lissome[llama]'" in note for note in report.notes)
    (timed,) = lissome.measure(given).rows
    assert timed.figures["file"].metric.value == given.stat().st_size


def test_a_folder_in_another_type(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    lissome.load(toy_folder, dtype=torch.bfloat16).save(half)
    report = _fit(half, toy_text, tmp_path / "out")
    base, result = (row.figures["file"].metric.value for row in report.rows)
    assert base == (half / "model.safetensors").stat().st_size
    assert result == pytest.approx((tmp_path / "out" / "model.safetensors").stat().st_size, rel=0.01)


def test_a_folder_of_the_same_type_is_said_once(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    assert not any("file" in row.figures for row in _fit(toy_folder, toy_text, tmp_path / "out").rows)
