"""The claim on models with states: its parts on toys, its judgement on made-up numbers; figures need the zoo."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._frame import Store
from benchmarks.mamba_shedder import hybrid, judging, names, quality, removing, run, speed, table, texts
from benchmarks.mamba_shedder.texts import Texts
from lissome.core.files import read_json
from lissome.data.local import data_dir
from lissome.engine.walk import Walk
from lissome.models import zoo
from lissome.models.binding import extract
from lissome.testing.toys import toy_model
from tools import train_zoo

PURE = ("mamba", "mamba2")


def toy_texts(length: int = 12) -> Texts:
    ids = torch.randint(3, 61, (10, length), generator=torch.Generator().manual_seed(0))
    return Texts(calibration=ids[:2], selection=ids[:0], recovery=ids[:6], test=ids[4:])


@pytest.mark.parametrize("family", PURE)
@pytest.mark.parametrize("target", names.TARGETS)
@pytest.mark.parametrize("arm", names.ARMS)
def test_every_arm_orders_all_there_is(arm: str, target: str, family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    axes = removing.CHOOSERS[arm](model, toy_texts(), target, 0, tmp_path)
    known = removing.candidates(model, target)
    assert len(set(axes)) == len(axes) >= len(known) - (target == "blocks") and set(axes) <= set(known)
    assert axes == removing.CHOOSERS[arm](model, toy_texts(), target, 0, tmp_path)


@pytest.mark.parametrize("family", PURE)
def test_what_does_nothing_has_no_influence_and_goes_first(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    mixer: Any = model.module.backbone.layers[2].mixer
    mixer.out_proj.weight.data.zero_()
    if mixer.out_proj.bias is not None:
        mixer.out_proj.bias.data.zero_()
    for arm in ("influence", "one-shot", "greedy"):
        axes = removing.CHOOSERS[arm](model, toy_texts(), "blocks", 0, tmp_path / arm)
        assert arm != "influence" or axes[0] == "layers.2.mixer"
    losses = removing.masked_losses(
        model, [removing.without(model, []), removing.without(model, ["layers.2.mixer"])], toy_texts()
    )
    assert torch.allclose(*losses)


@pytest.mark.parametrize("family", PURE)
def test_no_arm_beats_the_best_pair(family: str, tmp_path: Path) -> None:
    model, data = toy_model(family), toy_texts()
    known = removing.pairs(model, data, "ssm")
    parts = len(removing.candidates(model, "ssm"))
    assert len(known) == parts * (parts - 1) // 2
    for arm in names.ARMS:
        axes = removing.CHOOSERS[arm](model, data, "ssm", 0, tmp_path / arm)[:2]
        (loss,) = removing.masked_losses(model, [removing.without(model, axes)], data, test=True)
        assert float(loss.mean()) == pytest.approx(known[" ".join(sorted(axes))]) and known[
            " ".join(sorted(axes))
        ] >= min(known.values())


@pytest.mark.parametrize("family", PURE)
def test_narrower_models_are_read_off_at_the_share_of_blocks(family: str) -> None:
    found = removing.narrower(toy_model(family), toy_texts(), (1, 2))
    assert set(found) == {"1", "2"} and all(len(losses) == 6 for losses in found.values())


@pytest.mark.parametrize("family", PURE)
def test_the_probe_sees_as_many_bytes_as_it_says(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CONTEXTS", (3, 24))
    monkeypatch.setattr(quality, "SCORED", 4)
    model, test = toy_model(family), toy_texts(28).test
    found = quality.far_context(model, {"scanless": removing.candidates(model, "ssm")}, test)
    changed = test.clone()
    changed[:, : 28 - 4 - 3] = 5  # beyond the shorter context
    again = quality.far_context(model, {}, changed)
    assert again["original"]["3"] == pytest.approx(found["original"]["3"])
    assert again["original"]["24"] != pytest.approx(found["original"]["24"])
    small = extract(model, removing.without(model, removing.candidates(model, "ssm")), space=model.space())
    assert quality.by_context(small, test)["24"] == pytest.approx(found["scanless"]["24"], rel=1e-4)
    tail = Walk(model, test[:, -5:]).plain()  # 1 byte of context and 4 scored are not what 3 and 4 are
    assert tail.tolist() != pytest.approx(found["original"]["3"])


@pytest.mark.parametrize("family", PURE)
def test_cuts_are_exact(family: str) -> None:
    model = toy_model(family)
    variants = {"one": ["layers.1.mixer"], "scans": removing.candidates(model, "ssm")}
    found = quality.exactness(model, variants, toy_texts(64).test)
    assert len(found) == 2 and max(found.values()) <= judging._EXACT


@pytest.mark.parametrize("family", PURE)
def test_times_are_of_all_variants_and_lengths(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LENGTHS", (16, 32))
    monkeypatch.setattr(speed, "NEW", 5)
    monkeypatch.setattr(speed, "ROUNDS", 3)
    model = toy_model(family)
    found = speed.timed(model, {"blocks-2": ["layers.0.mixer", "layers.2.mixer"], "ssm": ["layers.1.mixer.ssm"]})
    assert set(found["rows"]) == {"original", "blocks-2", "ssm", "one block"}
    assert {"16", "32"} == set(found["scan_share"]) and all(0 < share < 1 for share in found["scan_share"].values())
    assert found["rows"]["original"]["decode"]["value"] == 1
    assert found["rows"]["blocks-2"]["held"] * 2 == found["rows"]["original"]["held"] > found["rows"]["ssm"]["held"]
    assert not any("scanned" in vars(module) for module in model.module.modules())
    assert speed.net_speedup(found, "original") == 1


@pytest.mark.parametrize("arm", hybrid.ARMS)
def test_a_hybrid_is_cut_to_both_shares(arm: str, tmp_path: Path) -> None:
    found = hybrid.removed(toy_model("bamba"), arm, toy_texts(), 0, tmp_path)
    assert set(found) == {"0.9", "0.8"} and all(map(math.isfinite, found["0.8"]))


def test_without_the_zoo_it_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(run, "zoo", dict)
    assert run.run(True, Store(tmp_path, scratch=tmp_path)) == []
    assert "zoo-mamba2, zoo-hybrid have not been trained yet" in capsys.readouterr().out


def made_up(*, greedy: float = 2.0, scans_far: float = 0.3, step: float = 0.7) -> dict[str, Any]:
    """Cells in which everything holds: greedy is best, blocks less is time less, scans matter where context is far."""

    def nll(bits: float) -> list[float]:
        return [bits * math.log(2) + shift for shift in (-0.1, 0.0, 0.1)]

    def times(factor: float) -> dict[str, Any]:
        ratio = {"value": 1 / factor, "low": 0.95 / factor, "high": 1.05 / factor, "n": 9}
        lengths = [str(length) for length in speed.LENGTHS]
        return {
            "prefill": dict.fromkeys(lengths, ratio), "decode": ratio, "held": 2048, "blocks": 12,
            "seconds": {"step": factor, **dict.fromkeys(lengths, factor)},
        }  # fmt: skip

    cells: dict[str, Any] = {}
    for name in names.MODELS:
        cells[f"{name}-dense"] = {"params": 9, "block_params": 6, "cache_bytes": 4, "nll": nll(1.8)}
        for arm in hybrid.ARMS:
            bits = greedy if arm == "auto" else 2.5
            cells |= {f"{name}-{arm}-{seed}": {"at": {"0.9": nll(bits), "0.8": nll(bits)}} for seed in range(3)}
    for name in names.PURE:
        for target in names.TARGETS:
            for arm in names.ARMS:
                bits = greedy if arm == "greedy" else 2.5
                at = {str(count): nll(bits) for count in names.COUNTS}
                cells |= {f"{name}-{target}-{arm}-{seed}": {"axes": [], "at": at} for seed in range(10)}
            curve = {"bits": [1.8 + k / 10 for k in range(13)], "block_params": list(range(24, 11, -1))}
            cells[f"{name}-{target}-curve"] = {**curve, "cache_bytes": [1] * 13, "axes": []}
            at = dict.fromkeys(map(str, names.COUNTS), 1.4)
            cells |= {f"{name}-{target}-{how}": {"axes": [], "at": at} for how in names.OTHERWISE}
            cells[f"{name}-{target}-pairs"] = {"nll": {"a b": 1.4, "a c": 1.3, "b c": 1.5}}
        cells[f"{name}-exactness"] = {"masked = cut": 1e-7, "prefill = decode": 1e-6}
        cells[f"{name}-narrower"] = {"at": {str(count): nll(2.2) for count in names.COUNTS}}
        contexts = {str(size): nll(2.0) for size in names.CONTEXTS}
        worse = {**contexts, str(names.CONTEXTS[-1]): nll(2.0 + scans_far)}
        cells[f"{name}-context"] = {"original": contexts, **dict.fromkeys(names.VARIANTS, worse)}
        rows = {"original": times(1.0), "one block": times(0.1), "blocks-2": times(0.85), "blocks-4": times(step)}
        rows |= {f"ssm-{count}": times(0.8) for count in (4, 8, 12)}
        shares = {str(length): 0.4 for length in speed.LENGTHS}
        cells[f"{name}-speed"] = {"rows": rows, "outside": 0.02, "scan_share": shares}
        for rate, bits in zip(names.RECOVERY_RATES, (2.0, 1.9, 1.85), strict=True):
            # the last is best on the test text and not on the one that chooses
            choice = bits if bits != 1.85 else 2.1
            found = {"before": nll(2.2), "after": nll(bits), "choice": choice, "seconds": 150.0}
            cells[f"{name}-recovery-{rate:g}"] = found
        cells[f"{name}-shorter"] = {"nll": nll(1.85), "layers": 8, "seconds": 1.0}
    return cells


def judged(monkeypatch: pytest.MonkeyPatch, **numbers: float) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    facts = {"source": "noise", "calibration": [[16, 256], "a"], "test": [[3, 256], "b"]}
    monkeypatch.setattr(judging, "facts", lambda: facts)
    monkeypatch.setattr(judging, "zoo_facts", lambda _: {"summary": "a toy", "bits_per_byte": {"mean": 1.8}})
    cells, results, found = made_up(**numbers), [], {}
    for name in names.MODELS:
        result, inequalities = (judging.judge_hybrid if name == names.HYBRID else judging.judge)(name, cells, run.FULL)
        rows = [vars(inequality) for inequality in inequalities]
        results.append(json.loads(json.dumps({**result, "inequalities": rows, "environments": [_MACHINE]})))
        found |= {inequality.name: inequality.ok for inequality in inequalities}
    return results, found


_MACHINE = {
    "cpu": "X", "capability": "AVX2", "cores": 2, "threads": 2, "system": "S", "python": "3", "versions": {"a": "1"},
}  # fmt: skip


def test_everything_holds_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    results, found = judged(monkeypatch)
    each = 2 * 2 * 3 + 2 + 2 + 1 + len(speed.LENGTHS) + 1 + 1
    assert len(found) == len(names.PURE) * each + len(hybrid.SHARES)
    assert all(found.values()), [name for name, ok in found.items() if not ok]
    assert results[0]["recovery"]["rate"] == f"{names.RECOVERY_RATES[1]:g}"
    assert results[0]["recovery"]["given_back"]["value"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("numbers", "word", "count"),
    [
        ({"greedy": 2.6}, "bits per byte, ", 26),
        ({"scans_far": 0.0}, "beyond those", 2),
        ({"step": 0.9}, "decode speed-up", 4),
    ],
)
def test_a_broken_sentence_is_named(
    monkeypatch: pytest.MonkeyPatch, numbers: dict[str, float], word: str, count: int
) -> None:
    broken = [name for name, ok in judged(monkeypatch, **numbers)[1].items() if not ok]
    assert len(broken) == count and all(word in name for name in broken)


def test_the_same_removals_are_no_win_and_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    results, found = judged(monkeypatch, greedy=2.5)
    broken = [name for name, ok in found.items() if not ok]
    assert len(broken) == 16 and all(
        name.endswith(("greedy against influence", "greedy against random")) for name in broken
    )
    assert sum("no worse than" in name for name in found) == len(hybrid.SHARES)
    page = table.page(results)
    assert page.count("; the same removals with 3 of 3 calibration seeds)") == 2 * 2 * 2 * 3 + len(hybrid.SHARES)
    assert f"| {names.ARMS['random']} | 2.500 = |" in page and f"| {names.ARMS['greedy']} | 2.500 |" in page
    assert f"| {table._HYBRID['transformer']} | 2.500 = | 2.500 = |" in page
    assert " = |" not in table.page(judged(monkeypatch)[0])


def test_tables_name_every_arm_and_mark_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    results, _ = judged(monkeypatch, scans_far=0.0)
    page = table.page(results)
    assert all(label in page for label in (*names.ARMS.values(), *table._HYBRID.values()))
    assert page.count("**fails**") == 2 and "40% at 256" in page and "trained with 8 blocks" in page
    assert "4 scans less" in page and "without 4 of its 12 scans" in table.summary(results)
    assert "—" not in page


_TINY: dict[str, dict[str, Any]] = {
    "zoo-mamba": {"hidden_size": 16, "state_size": 4},
    "zoo-mamba2": {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 4},
    "zoo-hybrid": {"hidden_size": 16, "intermediate_size": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
}


@pytest.mark.slow
def test_the_whole_claim_runs_on_tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training to tables; the numbers mean nothing."""
    for name, fields in _TINY.items():
        recipe = train_zoo.RECIPES[name]
        monkeypatch.setitem(train_zoo.RECIPES, name, replace(recipe, fields={**recipe.fields, **fields}))
    if not (data_dir() / "lm").is_dir():
        pytest.skip("the text that the zoo is trained on is not here: set LISSOME_DATA")
    monkeypatch.setattr(train_zoo, "_TEST_WINDOWS", 8)
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")
    for module, fields in (
        (texts, {"CALIBRATION": 4, "TEST": 8, "RECOVERY": 64}),
        (speed, {"LENGTHS": (16, 512), "NEW": 4, "ROUNDS": 3}),
        (quality, {"RECOVERY": quality.RecoverConfig(steps=2, small=1 << 20)}),
        (run, {"FULL": names.Scale(seeds=(0, 1), draws=(0, 1), shorter=names.PURE[:1])}),
    ):
        for key, value in fields.items():
            monkeypatch.setattr(module, key, value)
    for cached in (train_zoo.texts, texts.texts, run._model):
        cached.cache_clear()
    train_zoo.main([*_TINY, "--steps", "2", "--out", str(tmp_path / "zoo"), "--work", str(tmp_path / "work")])
    store = Store(tmp_path / "results", scratch=tmp_path / "scratch")
    try:
        found = run.run(False, store)
        assert len(found) == 2 * (12 + 2 + 2 + 1 + 2 + 1 + 1) + 2 and all(map(str, found))
        results = [read_json(path) for path in sorted((tmp_path / "results").glob("*.json"))]
        page = table.page(results)
        assert page.count("zoo-mamba2, 2 scans less") == 2 and "trained with 8 blocks" in page
        assert "`damage=kl`" in page
        assert len(run.run(False, store)) == len(found), "and everything is stored"
    finally:
        for cached in (train_zoo.texts, texts.texts, run._model):
            cached.cache_clear()
