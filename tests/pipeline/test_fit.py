"""The main job from end to end on a toy model: budget, artifact, same result again, faults in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lissome
from lissome import pipeline
from lissome.core.errors import (
    ArtifactError,
    BudgetError,
    BudgetUnmetError,
    ConfigError,
    DataError,
    MemoryLimitError,
    NumericsError,
    UnknownNameError,
)
from lissome.core.manifest import read_curve, read_manifest, write_manifest
from lissome.cost.counted import Counter
from lissome.models.adapters import adapters, add_lora, merged_copy, remove_lora, save_adapters
from lissome.models.model import Model
from lissome.pipeline.loading import weights_of
from lissome.pipeline.reports import FitReport
from lissome.testing.tokenizers import toy_tokenizer
from lissome.testing.toys import toy_model, toy_module

pytestmark = pytest.mark.long

SETTINGS = ("width_step=8", "recover_steps=0")


def _fit(model: Path | Model, text: Path, out: Path, budget: str = "block_params=75%", **options: object) -> FitReport:
    return lissome.fit(model, data=text, budget=budget, settings=SETTINGS, out=out, **options)


def test_the_result_meets_the_budget_and_reloads_equal(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    report = _fit(toy_folder, toy_text, tmp_path / "out")
    assert report.ok and report.out == tmp_path / "out"
    small, base = lissome.load(tmp_path / "out"), lissome.load(toy_folder)
    share = Counter(small).count().block_params / Counter(base).count().block_params
    assert share <= 0.75
    manifest = read_manifest(tmp_path / "out")
    assert manifest.lineage[0].method == "multipruner" and "pruned" in manifest.tags
    rows = {row.name: row.figures for row in report.rows}
    assert rows["result"]["block_params"].ratio == pytest.approx(share)
    assert rows["result"]["ppl"].metric.value > 0 and 0 < rows["result"]["agreement"].metric.value <= 1
    assert not (tmp_path / "out" / ".run").exists(), "the state of a finished job is dropped"
    ids = torch.arange(4, 20).unsqueeze(0)
    assert torch.isfinite(small.module(input_ids=ids).logits).all()


def test_a_bound_on_memory_is_held_against_the_prediction(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    report = _fit(toy_folder, toy_text, tmp_path / "out", budget="memory<=150%")
    (verdict,) = report.verdicts
    assert verdict.ok
    memory = report.rows[1].figures["memory"]
    assert memory.metric.provenance == "predicted"
    assert memory.metric.value == verdict.got
    assert memory.ratio == pytest.approx(1.0)


def test_every_step_of_the_curve_can_be_extracted(
    toy_folder: Path, toy_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fit(toy_folder, toy_text, tmp_path / "out")
    curve = read_curve(tmp_path / "out")
    assert [point.step for point in curve] == list(range(len(curve))) and len(curve) > 2
    for point in (curve[0], curve[1], curve[-1]):
        folder = pipeline.extract_step(tmp_path / "out", point.step, tmp_path / f"step-{point.step}")
        assert Counter(lissome.load(folder)).count().block_params == point.figures["block_params"]
    last, whole = lissome.load(tmp_path / f"step-{curve[-1].step}"), lissome.load(tmp_path / "out")
    pairs = zip(last.module.state_dict().values(), whole.module.state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    manifest = read_manifest(tmp_path / "out")
    write_manifest(tmp_path / "out", replace(manifest, lineage=manifest.lineage * 2))
    with pytest.raises(ArtifactError, match="starts at what multipruner made of its base"):
        pipeline.extract_step(tmp_path / "out", 1, tmp_path / "damaged")
    # A base that was called by a relative path is found from elsewhere too.
    shutil.copytree(toy_folder, tmp_path / "base")
    write_manifest(tmp_path / "out", replace(manifest, base=replace(manifest.base, name="base")))
    pipeline.extract_step(tmp_path / "out", 1, tmp_path / "beside")
    # Whatever is called so where the command is given: another model, no model, an unfinished job.
    toy_model("llama", seed=1).save(tmp_path / "other" / "base")
    (tmp_path / "none" / "base").mkdir(parents=True)
    (tmp_path / "job" / "base" / ".run").mkdir(parents=True)
    for name in ("other", "none", "job"):
        monkeypatch.chdir(tmp_path / name)
        pipeline.extract_step(tmp_path / "out", 1, tmp_path / f"beside-{name}")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"base is not the model that .* was made from \(its sha256 differs\)"):
        pipeline.extract_step(tmp_path / "out", 1, tmp_path / "damaged")
    write_manifest(tmp_path / "out", replace(manifest, base=replace(manifest.base, name="gone")))
    with pytest.raises(ArtifactError, match="was made from 'gone', which is not found from here"):
        pipeline.extract_step(tmp_path / "out", 1, tmp_path / "damaged")
    write_manifest(tmp_path / "out", manifest)
    # The order of channels is a part of every step: without it, or with another one, it would be another model.
    orders = tmp_path / "out" / "orders.safetensors"
    orders.write_bytes(orders.read_bytes()[:9])
    with pytest.raises(ArtifactError, match=r"orders\.safetensors is cut short"):
        pipeline.extract_step(tmp_path / "out", 1, tmp_path / "damaged")
    orders.unlink()
    with pytest.raises(ArtifactError, match=r"orders\.safetensors is missing"):
        pipeline.extract_step(tmp_path / "out", 1, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_a_model_with_adapters_is_merged_first(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    """Such as what a federation of adapters leaves; every step of the curve is one without them."""
    model = lissome.load(toy_folder)
    add_lora(model, rank=2, seed=0)
    for adapter in adapters(model.module).values():
        torch.nn.init.normal_(adapter.B, std=0.1, generator=torch.Generator().manual_seed(0))
    merged = merged_copy(model)
    report = _fit(model.save(tmp_path / "base"), toy_text, tmp_path / "out")
    small = lissome.load(report.out)
    assert report.ok and not adapters(small.module)
    place = pipeline.extract_step(report.out, 0, tmp_path / "whole")
    ids = torch.arange(4, 20).unsqueeze(0)
    found, wanted = (one.module(input_ids=ids).logits for one in (lissome.load(place), merged))
    assert torch.allclose(found, wanted, atol=1e-4)
    # The adapters are a part of what it was made from: with other ones, or none, a step would be another model.
    remove_lora(model)
    add_lora(model, rank=2, seed=1)
    save_adapters(model, tmp_path / "base" / "adapter")
    with pytest.raises(ArtifactError, match=r"is not the model that .* was made from \(its adapters differ\)"):
        pipeline.extract_step(report.out, 0, tmp_path / "other")
    shutil.rmtree(tmp_path / "base" / "adapter")
    with pytest.raises(ArtifactError, match="its adapters differ"):
        pipeline.extract_step(report.out, 0, tmp_path / "other")


def test_the_same_command_again_returns_the_stored_result(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    first = _fit(toy_folder, toy_text, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert _fit(toy_folder, toy_text, tmp_path / "out").to_json() == first.to_json()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds another job: seed"):
        _fit(toy_folder, toy_text, tmp_path / "out", seed=1)


def test_a_job_is_told_from_another_by_the_adapters_of_its_model_too(toy_folder: Path, tmp_path: Path) -> None:
    known = set()
    for seed in (0, 1, 1):
        model = lissome.load(toy_folder)
        add_lora(model, rank=2, seed=seed)
        saved = lissome.load(model.save(tmp_path / str(seed)))
        assert saved.source.sha256 is not None and weights_of(saved).startswith(f"{saved.source.sha256}+")
        known.add(weights_of(saved))
    assert len(known) == 2
    plain = lissome.load(toy_folder)
    assert weights_of(plain) == plain.source.sha256


def test_same_seed_same_hash(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    hashes = {_fit(toy_folder, toy_text, tmp_path / name).sha256 for name in ("a", "b")}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("budget", "error", "words"),
    [
        ("params=1%", BudgetUnmetError, "params"),
        ("memroy=50%", BudgetError, "memory"),
        ("energy=50%", BudgetError, "energy cannot be bounded here"),
        ("params=50% params=40%", BudgetError, "params"),
    ],
)
def test_budgets_that_cannot_be_met(
    budget: str, error: type[Exception], words: str, toy_folder: Path, toy_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words) as caught:
        _fit(toy_folder, toy_text, tmp_path / "out", budget)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_input_is_refused_before_any_work(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(DataError, match="empty"):
        _fit(toy_folder, empty, out)
    with pytest.raises(UnknownNameError, match="smollm2-135m"):
        _fit(Path("smollm2-135"), toy_text, out)
    with pytest.raises(UnknownNameError, match="multipruner"):
        lissome.fit(toy_folder, method="multiprune", data=toy_text, out=out)
    with pytest.raises(ConfigError, match="width_step"):
        lissome.fit(toy_folder, settings=("width_steps=8",), data=toy_text, out=out)
    with pytest.raises(MemoryLimitError):
        _fit(toy_folder, toy_text, out, max_memory=1000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not the folder of a lissome job"):
        _fit(toy_folder, toy_text, tmp_path / "mine")
    assert not out.exists()


def test_damaged_models_are_refused(toy_folder: Path, toy_text: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(toy_folder, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="damaged"):
        _fit(cut, toy_text, tmp_path / "out")
    module = toy_module("llama")
    module.get_parameter("model.layers.2.mlp.up_proj.weight").data[3, 3] = float("nan")
    Model(module, toy_tokenizer()).save(tmp_path / "nan")
    with pytest.raises(NumericsError, match=r"model\.layers\.2\.mlp\.up_proj"):
        _fit(tmp_path / "nan", toy_text, tmp_path / "out")
    small_vocabulary = Model(toy_module("llama", vocab_size=20), toy_tokenizer()).save(tmp_path / "vocabulary")
    with pytest.raises(DataError, match="tokenizer"):
        _fit(small_vocabulary, toy_text, tmp_path / "out")


_JOB = """
import sys, lissome
settings = ("width_step=4", "lazy=false", "recover_steps=6")
report = lissome.fit(sys.argv[1], data=sys.argv[2], budget="block_params=50%", settings=settings, out=sys.argv[3])
print(report.sha256)
"""


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", _JOB, *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.15, 0.35, 0.55, 0.75, 0.9, 0.97])
def test_killed_anywhere_and_continued_gives_the_same_hash(
    fraction: float, toy_folder: Path, toy_text: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    whole = subprocess.run(
        _command(toy_folder, toy_text, tmp_path / "a"), capture_output=True, text=True, env=environment, check=True
    )
    seconds = time.monotonic() - start
    process = subprocess.Popen(
        _command(toy_folder, toy_text, tmp_path / "b"), env=environment, stdout=subprocess.DEVNULL
    )
    time.sleep(fraction * seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(
        _command(toy_folder, toy_text, tmp_path / "b"), capture_output=True, text=True, env=environment, check=True
    )
    assert again.stdout.split()[-1] == whole.stdout.split()[-1]
    leftovers = {path.name for path in (tmp_path / "b").iterdir()} - {path.name for path in (tmp_path / "a").iterdir()}
    assert not leftovers, f"left behind: {leftovers}"


def test_an_unfinished_job_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "out" / ".run").mkdir(parents=True)
    (tmp_path / "out" / ".run" / "job.json").write_text(json.dumps({}))
    with pytest.raises(ArtifactError, match="not finished"):
        lissome.load(tmp_path / "out")
