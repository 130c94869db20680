"""Shears from end to end: sparse as asked, the compressed size as planned, honest about speed."""

from __future__ import annotations

from pathlib import Path

import pytest

import lissome
from lissome import pipeline
from lissome.core.errors import BudgetError, BudgetUnmetError, ConfigError, OrderError
from lissome.core.manifest import read_manifest
from lissome.methods.elastic.shears import Shears
from lissome.models.model import Model
from lissome.models.sparse import masks, sparsity
from lissome.pipeline.reports import FitReport
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

SLOW = "scattered zeros do not make it faster"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy Llama with its tokenizer, as a folder, and text beside it."""
    folder = tmp_path_factory.mktemp("toy")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "box", "quietly"]
    documents = (" ".join(words[(i * k) % len(words)] for k in range(1, 80)) for i in range(1, 120))
    (folder / "text.txt").write_text("\n\n".join(documents))
    module = toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024)
    Model(module, toy_tokenizer()).save(folder / "llama")
    return folder


def fit(toy: Path, out: Path, *settings: str, **options: object) -> FitReport:
    every = {"method": "shears", "data": toy / "text.txt", **options}
    return lissome.fit(toy / "llama", settings=("windows=4", *settings), out=out, **every)


def figure(report: FitReport, name: str, row: int = 1) -> float:
    return report.rows[row].figures[name].metric.value


@pytest.mark.parametrize(
    "settings", [(), ("by=magnitude", "per=layer", "sparsity=0.7"), ("by=sparsegpt", "pattern=2:4")]
)
def test_sparse_as_planned_and_honest_about_speed(settings: tuple[str, ...], toy: Path, tmp_path: Path) -> None:
    plan = pipeline.plan(toy / "llama", method="shears", data=toy / "text.txt", settings=settings)
    assert SLOW in plan.notes[0]
    report = fit(toy, tmp_path / "out", *settings)
    share = 0.7 if "sparsity=0.7" in settings else 0.5
    model = lissome.load(tmp_path / "out")
    assert sparsity(model.module)["sparse layers"] == pytest.approx(share, abs=0.02)
    assert len(masks(model.module)) == 4 * 7
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert figure(report, "disk") == pytest.approx(size, rel=0.01)
    assert plan.predicted["disk"] == pytest.approx(size, rel=0.06)
    assert figure(report, "dense_disk") == figure(report, "disk", 0) > figure(report, "disk")
    assert SLOW in report.notes[0] and "of sparse layers" in report.notes[0]
    assert SLOW in pipeline.measure(tmp_path / "out").notes[0]
    manifest = read_manifest(tmp_path / "out")
    assert "sparse" in manifest.tags and "dense" not in manifest.tags
    assert manifest.lineage[0].details["sparsity"]["sparse layers"] == pytest.approx(share, abs=0.02)


def test_a_bound_on_disk_decides_the_share(toy: Path, tmp_path: Path) -> None:
    report = fit(toy, tmp_path / "out", "sparsity=none", budget="disk=55%")
    assert report.ok
    assert 0.5 < figure(report, "disk") / figure(report, "disk", 0) <= 0.55
    with pytest.raises(BudgetUnmetError, match=r"disk cannot be met.*sparsity=none"):
        pipeline.plan(toy / "llama", method="shears", data=toy / "text.txt", budget="disk=55%")
    with pytest.raises(BudgetUnmetError, match=r"disk cannot be met.*allow more"):
        pipeline.plan(
            toy / "llama", method="shears", data=toy / "text.txt", budget="disk=5%", settings=["sparsity=none"]
        )
    with pytest.raises(BudgetError, match="latency cannot be bounded here: shears can follow disk"):
        pipeline.plan(toy / "llama", method="shears", data=toy / "text.txt", budget="latency=85%")


def test_what_cannot_follow_is_refused(toy: Path, tmp_path: Path) -> None:
    fit(toy, tmp_path / "out")
    with pytest.raises(OrderError, match="dense"):
        lissome.fit(tmp_path / "out", method="multipruner", data=toy / "text.txt", out=tmp_path / "again")


@pytest.mark.parametrize(
    "settings", [{"pattern": "4:2"}, {"masks": "x.safetensors"}, {"sparsity": 0.99}, {"by": "wand"}]
)
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Shears.Config.from_mapping(settings)
