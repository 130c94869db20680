"""Shears from end to end: sparse as planned, trained once for all ranks, cut, merged, continued, honest about speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lissome
from lissome import pipeline
from lissome.core.errors import ArtifactError, BudgetError, BudgetUnmetError, ConfigError, OrderError
from lissome.core.events import Event, EventStream
from lissome.core.files import sha256_file
from lissome.core.manifest import read_curve, read_manifest
from lissome.core.method import Context
from lissome.cost.counted import Counter
from lissome.cost.oracle import SubnetCost
from lissome.data.text import WindowPlan, text_splits
from lissome.methods.elastic.shears import Shears
from lissome.models.adapters import adapters, add_lora, merged_copy
from lissome.models.sparse import masks, sparsity
from lissome.pipeline.compare import sparse_notes
from lissome.pipeline.reports import FitReport
from lissome.report.facts import read_page
from lissome.report.page import render
from lissome.testing.conformance import outputs
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import LANGUAGE, toy_ids, toy_model

pytestmark = pytest.mark.long

SLOW = "scattered zeros do not make it faster"
QUICK = ("windows=4", "ranks=6,4,2", "steps=6", "lr=0.01", "columns=8")
IDS = torch.arange(4, 20).unsqueeze(0)


def plan(toy: Path, *settings: str, **options: object) -> pipeline.PlanReport:
    return pipeline.plan(toy / "llama", method="shears", data=toy / "text.txt", settings=settings, **options)


def fit(toy: Path, out: Path, *settings: str, **options: object) -> FitReport:
    every = {"method": "shears", "data": toy / "text.txt", **options}
    return lissome.fit(toy / "llama", settings=(*QUICK, *settings), out=out, **every)


Fitted = Callable[..., tuple[Path, FitReport]]


@pytest.fixture(scope="module")
def fitted(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit once per settings; tests look at the folder and leave it alone."""
    known: dict[tuple[str, ...], tuple[Path, FitReport]] = {}

    def get(*settings: str) -> tuple[Path, FitReport]:
        if settings not in known:
            out = tmp_path_factory.mktemp("fitted") / "out"
            known[settings] = out, fit(toy, out, *settings)
        return known[settings]

    return get


def figure(report: FitReport, name: str, row: int = 1) -> float:
    return report.rows[row].figures[name].metric.value


def written(out: Path) -> int:
    return sum(file.stat().st_size for file in (out / "model.safetensors", *(out / "adapter").glob("*.safetensors")))


@pytest.mark.parametrize(
    "settings",
    [
        ("adapter=none",),
        ("adapter=none", "by=magnitude", "per=layer", "sparsity=0.7"),
        ("adapter=none", "by=sparsegpt", "pattern=2:4"),
        ("adapter=plain",),
        ("adapter=masked",),
        ("adapter=quantised",),
    ],
    ids=" ".join,
)
def test_sparse_as_planned_and_honest_about_speed(settings: tuple[str, ...], toy: Path, fitted: Fitted) -> None:
    planned = plan(toy, *QUICK, *settings)
    assert SLOW in planned.notes[0]
    assert planned.seconds is not None
    out, report = fitted(*settings)
    share = 0.7 if "sparsity=0.7" in settings else 0.5
    model = lissome.load(out)
    assert sparsity(model.module)["sparse layers"] == pytest.approx(share, abs=0.02)
    assert len(masks(model.module)) == 4 * 7
    assert figure(report, "disk") == pytest.approx(written(out), rel=0.02)
    assert planned.predicted["disk"] == pytest.approx(written(out), rel=0.05)
    assert figure(report, "dense_disk") > figure(report, "disk")
    assert SLOW in report.notes[0]
    assert any("28 layers lie in the file as integers of 4 bits" in note for note in report.notes) == (
        "adapter=quantised" in settings
    )
    assert "of sparse layers" in report.notes[0]
    assert SLOW in render(read_page(out))
    manifest = read_manifest(out)
    assert "sparse" in manifest.tags
    assert "dense" not in manifest.tags
    assert manifest.lineage[0].details["sparsity"]["sparse layers"] == pytest.approx(share, abs=0.02)
    if "adapter=none" not in settings:
        bare = fitted("adapter=none")[1]
        assert figure(report, "ppl") < figure(bare, "ppl"), "training helped"


def test_bench_says_it_too(fitted: Fitted) -> None:
    report = pipeline.measure(fitted("adapter=none")[0])
    assert SLOW in report.notes[0]
    assert report.rows[0].figures["dense_disk"].metric.value > report.rows[0].figures["disk"].metric.value


def test_zeros_of_elsewhere_are_spoken_of_too() -> None:
    model = toy_model("llama")
    assert sparse_notes(model) == ()
    weights = [model.module.get_submodule(name).weight.data for one in model.anatomy.branches for name in one.linears]
    for weight in weights:  # as files of Q4_0 and its like are read
        step = weight.abs().amax(1, keepdim=True) / 8
        weight.copy_((weight / step).round() * step)
    assert sum(int((weight == 0).sum()) for weight in weights) > 0.05 * sum(weight.numel() for weight in weights)
    assert sparse_notes(model) == (), "rounding leaves zeros too, and nobody made them to be left out"
    for weight in weights:
        weight[:] = 1
        weight[:, ::2] = 0
    (note,) = sparse_notes(model)
    assert SLOW in note
    assert "50.0% of the blocks' matrices" in note


def test_the_middle_rank_beside_a_sparse_base(fitted: Fitted) -> None:
    out, _ = fitted("adapter=plain")
    model, manifest = lissome.load(out), read_manifest(out)
    assert {adapter.rank for adapter in adapters(model.module).values()} == {4}
    assert {adapter.scale for adapter in adapters(model.module).values()} == {64 / 6}
    assert set(manifest.subnet.values()) == {4}
    assert [point.change for point in read_curve(out)] == ["largest", "heuristic", "smallest"]
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["lora_alpha"] == pytest.approx(64 * 4 / 6)


def test_a_single_rank_needs_no_choice(toy: Path, tmp_path: Path) -> None:
    settings = ("windows=2", "ranks=3", "steps=1")
    lissome.fit(toy / "llama", method="shears", data=toy / "text.txt", settings=settings, out=tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.subnet == {}
    assert manifest.lineage[0].details["mean_rank"] == 3


def test_every_size_can_be_taken_from_the_one_run(fitted: Fitted, tmp_path: Path) -> None:
    out, _ = fitted("adapter=plain")
    whole = load_file(out / "super-adapter" / "adapter_model.safetensors")
    for point, rank in zip(read_curve(out), (6, 4, 2), strict=True):
        folder = pipeline.extract_step(out, point.step, tmp_path / f"rank-{rank}")
        model = lissome.load(folder)
        assert {adapter.rank for adapter in adapters(model.module).values()} == {rank}
        assert Counter(model).count().params == point.figures["params"]
        for name, adapter in adapters(model.module).items():
            assert torch.equal(adapter.A, whole[f"base_model.model.{name}.lora_A.weight"][:rank])
            assert torch.equal(adapter.B, whole[f"base_model.model.{name}.lora_B.weight"][:, :rank])
        assert read_manifest(folder).subnet == dict(point.subnet)
        assert masks(model.module)
    same, chosen = lissome.load(tmp_path / "rank-4"), lissome.load(out)
    assert torch.equal(outputs(same.module, {"input_ids": IDS}), outputs(chosen.module, {"input_ids": IDS}))
    with pytest.raises(ArtifactError, match="merged into its weights"):
        pipeline.extract_step(fitted("adapter=masked")[0], 0, tmp_path / "no")


_FRESH = """
import sys, torch, lissome.models.auto
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], bare=True)
with torch.no_grad():
    for folder in ("adapter", "super-adapter"):
        logits = PeftModel.from_pretrained(base, f"{sys.argv[1]}/{folder}").eval()(torch.arange(4, 20)[None]).logits
        print(logits.double().abs().sum().item())
        base = AutoModelForCausalLM.from_pretrained(sys.argv[1], bare=True)
"""


def test_stock_peft_puts_adapters_on_the_sparse_base_in_a_fresh_process(fitted: Fitted, tmp_path: Path) -> None:
    out, _ = fitted("adapter=plain")
    command = [sys.executable, "-W", "ignore", "-c", _FRESH, str(out)]
    got = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    largest = pipeline.extract_step(out, 0, tmp_path / "largest")
    sums = [outputs(lissome.load(one).module, {"input_ids": IDS}).double().abs().sum().item() for one in (out, largest)]
    assert [float(one) for one in got] == pytest.approx(sums, rel=1e-5)
    assert sums[0] != pytest.approx(sums[1], rel=1e-4)


@pytest.mark.parametrize("choose", ["climb", "log"])
def test_other_choices(choose: str, fitted: Fitted, tmp_path: Path) -> None:
    out, _ = fitted(f"choose={choose}", "evaluations=6")
    curve, manifest = read_curve(out), read_manifest(out)
    best = min(curve, key=lambda point: point.quality["ppl"])
    assert dict(best.subnet) == manifest.subnet
    assert manifest.lineage[0].details["chosen"] == best.change
    assert len(curve) <= (6 if choose == "climb" else 7)
    if choose == "climb":
        assert set(curve[0].subnet.values()) == {4}, "it starts at the heuristic"
    else:
        assert curve[0].change == "median"


def test_merged_variants_keep_every_zero_of_the_base(fitted: Fitted, tmp_path: Path) -> None:
    base = masks(lissome.load(fitted("adapter=none")[0]).module)
    for form in ("masked", "quantised"):
        out, _ = fitted(f"adapter={form}")
        model = lissome.load(out)
        assert not adapters(model.module)
        assert not (out / "adapter").exists()
        for name, mask in masks(model.module).items():
            weight = model.module.get_parameter(name).detach()
            assert torch.equal(mask.bits, base[name].bits)
            assert (weight[~mask.unpacked()].view(torch.int32) == 0).all()
            if form == "quantised":
                assert f"{name}.int4" in load_file(out / "model.safetensors")
                steps = weight.view(weight.shape[0], -1, 8)
                assert max(len(row.unique()) for row in steps.flatten(0, 1)) <= 2**4


def test_integers_take_less_than_floats_and_give_equal_logits(fitted: Fitted) -> None:
    quantised, merged = fitted("adapter=quantised"), fitted("adapter=masked")
    assert figure(quantised[1], "disk") < 0.75 * figure(merged[1], "disk")
    assert figure(quantised[1], "dense_disk") == pytest.approx(figure(merged[1], "dense_disk"), rel=0.01)
    small = lissome.load(quantised[0])
    code = "import sys, torch, lissome; print(lissome.load(sys.argv[1]).module(torch.tensor([list(range(4, 20))]))"
    code += ".logits.double().sum().item().hex())"
    fresh = subprocess.run([sys.executable, "-c", code, str(quantised[0])], capture_output=True, text=True, check=True)
    assert fresh.stdout.split()[-1] == outputs(small.module, {"input_ids": IDS}).double().sum().item().hex()
    again = pipeline.measure(quantised[0])
    assert again.rows[0].figures["disk"].metric.value == figure(quantised[1], "disk")


def test_exports_merge_adapters_and_say_so(fitted: Fitted, tmp_path: Path) -> None:
    out, _ = fitted("adapter=plain")
    report = pipeline.export(out, "hf", tmp_path / "hf")
    assert any("adapters are merged" in note for note in report.notes)
    assert any("zeros are written out" in note for note in report.notes)
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    expected = outputs(lissome.load(out).module, {"input_ids": IDS})
    torch.testing.assert_close(outputs(stock.eval(), {"input_ids": IDS}), expected, rtol=1e-4, atol=1e-5)


def test_a_bound_on_disk_decides_the_share(toy: Path, tmp_path: Path) -> None:
    report = fit(toy, tmp_path / "out", "sparsity=none", budget="disk=70%")
    assert report.ok
    assert 0.65 < figure(report, "disk") / figure(report, "disk", 0) <= 0.70
    with pytest.raises(BudgetUnmetError, match=r"disk cannot be met.*sparsity=none"):
        plan(toy, *QUICK, budget="disk=70%")
    with pytest.raises(BudgetUnmetError, match=r"disk cannot be met.*allow more"):
        plan(toy, *QUICK, "sparsity=none", budget="disk=5%")
    with pytest.raises(BudgetError, match="latency cannot be bounded here: shears can follow disk"):
        plan(toy, budget="latency=85%")


def test_masks_from_elsewhere(toy: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj"
    kept = torch.rand(40, 24, generator=torch.Generator().manual_seed(0)) < 0.3
    save_file({name: kept}, tmp_path / "masks.safetensors")
    fit(toy, tmp_path / "out", "by=given", f"masks={tmp_path / 'masks.safetensors'}", "adapter=none")
    found = masks(lissome.load(tmp_path / "out").module)
    assert list(found) == [f"{name}.weight"]
    assert torch.equal(found[f"{name}.weight"].unpacked(), kept)
    with pytest.raises(ConfigError, match="has no zeros, and by=given makes none; give masks"):
        fit(toy, tmp_path / "none", "by=given")


def test_a_model_with_adapters_is_merged_first(toy: Path, tmp_path: Path) -> None:
    model = lissome.load(toy / "llama")
    add_lora(model, rank=2, seed=0)
    for adapter in adapters(model.module).values():
        torch.nn.init.normal_(adapter.B, std=0.1, generator=torch.Generator().manual_seed(0))
    base, weights = model.save(tmp_path / "base"), merged_copy(model).module.state_dict()
    settings = (*QUICK, "adapter=none", "by=magnitude", "per=layer")
    out = lissome.fit(base, method="shears", data=toy / "text.txt", settings=settings, out=tmp_path / "out").out
    pruned = lissome.load(out).module.state_dict()
    touched = [name for name, weight in pruned.items() if (weight == 0).any() and weight.ndim == 2]
    assert touched
    for name in touched:
        kept = pruned[name] != 0
        assert torch.equal(pruned[name][kept], weights[name][kept])
        assert weights[name][~kept].abs().max() <= weights[name][kept].abs().min()


def test_what_cannot_follow_is_refused(toy: Path, fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(OrderError, match="dense"):
        lissome.fit(fitted("adapter=none")[0], method="multipruner", data=toy / "text.txt", out=tmp_path / "again")
    with pytest.raises(ConfigError, match="did you mean 'up_proj'"):
        fit(toy, tmp_path / "typo", "groups=upp_proj")
    with pytest.raises(ConfigError, match="3:7 needs a multiple of 7 inputs"):
        plan(toy, "pattern=3:7")


@pytest.mark.parametrize(
    "settings",
    [
        {"pattern": "4:2"}, {"masks": "x.safetensors"}, {"sparsity": 0.99}, {"by": "wand"}, {"ranks": [8, 16]},
        {"ranks": [8, 8]}, {"ranks": []}, {"adapter": "quantised", "dropout": 0.1}, {"bits": 9},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Shears.Config.from_mapping(settings)


@pytest.mark.parametrize("family", LANGUAGE)
def test_every_language_model(family: str, tmp_path: Path) -> None:
    """From the paper's groups on each family's own layers; only branches' weights change."""
    from dataclasses import replace

    model = replace(toy_model(family, vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    text = tmp_path / "text.txt"
    text.write_text("all work and no play makes jack a dull boy. " * 200)
    data = text_splits(model, text, WindowPlan(length=32, calibration=2, selection=2, test=2, recovery=8))
    cost = SubnetCost(model)
    context = Context(
        budget=lissome.Budget(), original=cost.figures({}), seed=0, events=EventStream(), folder=tmp_path, data=data,
        cost=cost,
    )  # fmt: skip
    config = Shears.Config(ranks=(4, 2), steps=3, windows=2, adapter="masked", lr=0.01)
    outcome = Shears(config).run(model, context)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    shares = sparsity(outcome.value.module)
    assert shares["sparse layers"] == pytest.approx(0.5, abs=0.05)
    ids = toy_ids(outcome.value, 0, 1, 9)
    assert torch.isfinite(outputs(outcome.value.module, {"input_ids": ids})).all()
    assert set(outcome.details["subnet"].values()) == {4}, "of two ranks the heuristic takes the larger"


class StopError(Exception):
    """Stands for a crash."""


def test_stopped_and_continued_gives_the_same_hash(toy: Path, fitted: Fitted, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.stage == "train" and event.kind == "advance" and event.step == 3:
            raise StopError

    with pytest.raises(StopError):
        fit(toy, tmp_path / "parts", "adapter=masked", events=EventStream(stop))
    assert fit(toy, tmp_path / "parts", "adapter=masked").sha256 == fitted("adapter=masked")[1].sha256


_JOB = """
import os, signal, sys
from collections import Counter

seen = Counter()


def reached(place):
    seen[place] += 1
    if f"{place} {seen[place]}" == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)


def renaming(event, arguments):
    if event == "os.rename" and str(arguments[1]).startswith(sys.argv[3]):
        reached(os.path.relpath(arguments[1], sys.argv[3]))


sys.addaudithook(renaming)
import lissome
from lissome.core.events import EventStream

events = EventStream(lambda event: reached(event.stage) if event.kind == "advance" else None)
settings = ("windows=4", "ranks=6,4,2", "steps=20", "lr=0.01", "choose=log")
lissome.fit(sys.argv[1], method="shears", data=sys.argv[2], settings=settings, out=sys.argv[3], events=events)
"""

PLACES = {
    "pruning": "sparsify 3",
    "pruned, not stored": ".run/0-shears/sparse.safetensors 1",
    "training": "train 11",
    "choosing": ".run/0-shears/chosen.json 4",
    "cutting out": ".run/0-shears/super 1",
    "cut out, not stored": ".run/model.safetensors 1",
    "scoring": "evaluate 3",
    "putting together": ".run/artifact 1",
    "publishing": "adapter 1",
    "all but the manifest": "manifest.json 1",
}
"""The how-manieth step of a stage, or renaming of a file, that is the last thing a job does before it is killed."""


def job(toy: Path, out: Path, place: str = "") -> int:
    """Run the job in a process of its own, which kills itself at a place; what it returns, -9 when it was killed."""
    command = [sys.executable, "-c", _JOB, *map(str, (toy / "llama", toy / "text.txt", out)), place]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


def contents(out: Path) -> dict[str, str]:
    """Every file, and the hash of those that say nothing of times."""
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    timed = ("manifest.json", "result.json")
    return {name: "" if name in timed else sha256_file(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def whole(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a job leaves that nobody kills."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert job(toy, out) == 0
    return contents(out)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_killed_anywhere_and_continued_leaves_the_same_files(
    place: str, toy: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert job(toy, out, place) == -signal.SIGKILL, "the place was reached"
    with pytest.raises(ArtifactError, match="not finished"):
        lissome.load(out)
    assert job(toy, out) == 0
    assert contents(out) == whole
    assert any(name.startswith("super-adapter/") for name in whole)
