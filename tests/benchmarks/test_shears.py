"""The claim on sparse models: its parts on toys, its judgement on made-up numbers; figures need the real ones."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks._frame import Store
from benchmarks.shears import arms, hooks, judging, language, merging, names, run, table, texts
from lissome.core.errors import AssetError
from lissome.engine.classify import Encoded
from lissome.engine.supernet import Paths
from lissome.models.adapters import Design, adapters, add_adapters, rank_space
from lissome.models.binding import masked
from lissome.models.sparse import masks
from lissome.testing.toys import toy_model


def toy_words() -> texts.Words:
    """Texts of which the first token says the class, of three."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 61, (90, 7), generator=generator)
    labels = torch.arange(90) % 3
    ids[:, 0] = labels + 2
    mask = torch.ones_like(ids)
    mask[::4, 5:] = 0
    parts = [Encoded(ids[part], mask[part], labels[part]) for part in (slice(48), slice(48, 66), slice(66, 90))]
    return texts.Words(*parts, "toy")


def toy_windows() -> texts.Windows:
    ids = torch.randint(3, 61, (12, 10), generator=torch.Generator().manual_seed(0))
    return texts.Windows(ids[:6], ids[6:8], ids[8:])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, few texts to prune by."""
    for part in (arms, language):
        monkeypatch.setattr(part, "STEPS", 6)
        monkeypatch.setattr(part, "WARMUP", 1)
        monkeypatch.setattr(part, "ROUNDS", 2)
        monkeypatch.setattr(part, "TURN", 4)
    monkeypatch.setattr(texts, "CALIBRATION_TEXTS", 8)
    monkeypatch.setattr(texts, "CALIBRATION", 3)
    arms.base.cache_clear()


def test_parts_share_no_run_of_words_and_no_article() -> None:
    def declaration(language: str) -> str:
        lines = ["everyone has the right to everything"]
        for article in range(1, 31):
            lines += [
                f"Article {article}",
                f"{language}{'abcdefghij'[article % 10] * article} is a word, and so is this",
            ]
        return "\n".join(lines)

    found = texts.dealt({name: declaration(name) for name in ("xa", "yb", "zc")})
    seen = [set(part.texts) for part in found.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert all(part.classes == ("xa", "yb", "zc") for part in found.values())
    assert not any(text.startswith(("everyone", "and so")) for part in found.values() for text in part.texts), (
        "what languages share says nothing of them"
    )
    own = {part: {text.split()[0] for text in one.texts} for part, one in found.items()}
    assert own["test"] == {f"{name}{'abcdefghij'[k % 10] * k}" for name in ("xa", "yb", "zc") for k in range(2, 31, 4)}
    assert [texts.part_of(article) for article in (0, 1, 2, 3, 4)] == ["train", "train", "test", "train", "validation"]


def test_the_real_words_are_enough() -> None:
    try:
        found = texts.declarations()
    except AssetError as error:
        pytest.skip(str(error))
    assert len(found["test"]) >= 1800
    assert len(found["test"].classes) == len(texts.LANGUAGES) == len(set(found["test"].labels))
    assert not set(found["train"].texts) & set(found["test"].texts)


@pytest.mark.parametrize("name", names.ARMS)
def test_every_arm_is_trained_and_cut(name: str) -> None:
    model, data = toy_model("bert"), toy_words()
    arm = names.ARMS[name]
    found = json.loads(json.dumps(arms.measured(names.ARMS[name], 1e-3, 0, model, data)))
    expected = {str(rank) for rank in arm.ranks} or {""}
    expected |= {f"svd {rank}" for rank in names.RANKS[1:]} if name == "lora" else set()
    assert set(found["test"]) == expected and 0 <= found["validation"] <= 1
    assert names.used(arm) in expected
    assert all(len(arms.unpacked(one)) == 24 for one in found["test"].values())
    assert ("merging" in found) == (arm.adapter != "none" and arm.base != "dense")
    if name == "nls":
        again = arms.measured(names.ARMS[name], 1e-3, 0, model, data)
        assert again["test"] == found["test"] and again["loss"] == found["loss"]
    assert not adapters(model.module) and not masks(model.module), "the original is left alone"


def test_other_settings_are_tried_one_at_a_time_and_change_what_is_trained() -> None:
    model, data = toy_model("bert"), toy_words()
    own = arms.measured(names.ARMS["nls"], 1e-2, 0, model, data)
    for knob, value, arm in names.swept("nls"):
        if knob == "steps":
            assert arms.settings_of(arm, 1e-2).steps == int(value) != arms.STEPS
            continue
        found = arms.measured(arm, 1e-2, 0, model, data)
        assert set(found["test"]) == {str(rank) for rank in arm.ranks} and found["loss"] != own["loss"]
        assert run._facts(arm) != run._facts(names.ARMS["nls"])
    assert not {"scale", "dropout", "label", "steps"} & set(run._facts(names.ARMS["nls"])), "cells keep their names"


def test_arms_of_one_seed_begin_alike_and_see_the_same_batches() -> None:
    model, data = toy_model("bert"), toy_words()
    firsts = [arms.measured(names.ARMS[name], 0.0, 3, model, data)["loss"] for name in ("nls", "lora-4", "masked")]
    assert all(one == pytest.approx(firsts[0]) for one in firsts), "B is zero, and a rate of 0 leaves it there"


def test_merging_keeps_zeros_or_loses_them() -> None:
    model, data = toy_model("bert"), toy_words()
    found = {
        name: arms.measured(names.ARMS[name], 1e-2, 0, model, data)["merging"]
        for name in ("masked", "quantised", "lora")
    }
    assert found["masked"]["zeros_before"] == found["masked"]["zeros_after"] > 0
    assert found["masked"]["difference"] == 0, "one product of the same sum"
    assert 0 < found["masked"]["apart"] <= 1e-5, "two sums in another order"
    assert found["quantised"]["difference"] == 0 and found["quantised"]["revived"] == 0
    assert found["quantised"]["on_grid"] == found["quantised"]["layers"] > 0
    assert found["lora"]["zeros_after"] < 0.05 * found["lora"]["zeros_before"]


def test_turned_pairs_are_the_same_product_and_cut_best() -> None:
    model = toy_model("llama")
    add_adapters(model, Design(ranks=names.RANKS, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters(model.module).values():
        adapter.B.data = torch.randn(adapter.B.shape, generator=generator)
    before = {name: adapter.delta() for name, adapter in adapters(model.module).items()}

    @torch.no_grad()
    def errors() -> list[float]:
        pairs = {name: (one.A, one.B, one.scale) for name, one in adapters(model.module).items()}
        return [float((b[:, :4] @ a[:4] * scale - before[name]).norm()) for name, (a, b, scale) in pairs.items()]

    naive = errors()
    arms.turned(model)
    for name, adapter in adapters(model.module).items():
        torch.testing.assert_close(adapter.delta(), before[name], rtol=1e-4, atol=1e-4)
    assert all(mine <= other for mine, other in zip(errors(), naive, strict=True))


def test_a_clock_around_hooks_draws_the_same() -> None:
    model = toy_model("bert")
    add_adapters(model, Design(ranks=(4, 2)), seed=0)
    space = rank_space(model)
    plain, wrapped = Paths(model, space), hooks.Clock(Paths(model, space))
    with plain.path(0, random.Random(7)) as one:
        expected = one.subnet
    with wrapped.path(0, random.Random(7)) as other:
        assert other.subnet == expected
    wrapped.snapshot(1, model.module)
    assert len(wrapped.seconds) == 1 and min(wrapped.seconds[0]) >= 0


def test_times_are_ratios_to_the_first() -> None:
    found = arms.timing(toy_model("bert"), toy_words())
    assert list(found) == list(arms.TIMED)
    assert found["lora"]["value"] == 1 and found["nls"]["n"] == 2 * (4 - 2)


@pytest.mark.parametrize("name", names.TEXT_ARMS)
def test_text_is_learnt_and_scored_at_every_rank(name: str) -> None:
    model, data = toy_model("llama"), toy_windows()
    found = json.loads(json.dumps(language.measured(name, 0.5, 1e-3, 0, model, data)))
    cuts = {"nls": ["16", "8", "4"], "lora": ["16", "8", "4", "svd 8", "svd 4"], "dense": ["16"]}[name]
    assert list(found["test"]) == cuts
    assert all(len(one["nll"]) == len(one["right"]) == len(data.test) for one in found["test"].values())
    assert math.isfinite(found["validation"])


def test_bases_are_what_they_are_called(tmp_path: Path) -> None:
    model, data = toy_model("llama"), toy_windows()
    dense = language.before("dense", 0.0, 0, model, data)
    assert dense == language.scored(model, data.test)
    for kind in ("wanda", "magnitude"):
        sparse = arms.base(model, kind, 0.5, 0, data)
        assert masks(sparse.module) and not masks(model.module)
        assert language.before(kind, 0.5, 0, model, data) != dense
    sizes = language.sizes(model, data, tmp_path)
    assert set(sizes) == {"dense", "sparse", "adapters"} and not list(tmp_path.iterdir())


def test_what_is_right_survives_packing() -> None:
    right = torch.rand(37, generator=torch.Generator().manual_seed(0)) > 0.5
    assert arms.unpacked(json.loads(json.dumps(arms.packed(right)))).tolist() == right.double().tolist()


def made_up(*, nls: float = 0.8, naive: float = 0.4, step: float = 1.05, wanda: float = 40.0) -> dict[str, Any]:
    """Cells of both models in which all that is not given is at 0.8 or at perplexity 50."""
    n = 200

    def right(share: float) -> dict[str, Any]:
        return arms.packed(torch.arange(n) < round(share * n))

    cells: dict[str, Any] = {}
    facts = {
        "numel": 100,
        "zeros_before": 50,
        "zeros_after": 50,
        "revived": 0,
        "difference": 0.0,
        "layers": 4,
        "on_grid": 4,
        "apart": 1e-6,
    }
    for name, arm in names.ARMS.items():
        cuts = {str(rank): nls if name == "nls" else 0.8 for rank in arm.ranks} or {"": 0.3}
        if name == "lora":
            cuts |= {"8": naive + 0.1, "4": naive, "svd 8": 0.79, "svd 4": 0.7}
        more = {"merging": {**facts, "zeros_after": 0} if name == "lora" else facts} if arm.adapter != "none" else {}
        for seed in range(5):
            cells[f"{names.ENCODER}-{name}-{seed}"] = {
                "test": {cut: right(value) for cut, value in cuts.items()}, "loss": [3.0, 0.3], "seconds": 60.0,
                "steps": 9, "rate": 2e-3, "tried": {"0.001": 0.7, "0.002": 0.8}, **more,
            }  # fmt: skip
    for name in names.SWEEP:
        for knob, value, arm in names.swept(name):
            cells[f"{names.ENCODER}-{name}-{knob}-{value}"] = {"test": {str(rank): right(0.7) for rank in arm.ranks}}
    times = {"step": 0.07, "low": 1.0, "high": 1.1, "n": 80, "se": 0.01, "wall": {"value": 1.0, "low": 1, "high": 1}}
    rows = {arm: {**times, "value": 1.0 if arm == "lora" else step} for arm in arms.TIMED}
    cells[f"{names.ENCODER}-speed"] = rows
    cells[f"{names.DECODER}-speed"] = {arm: rows[arm] for arm in ("lora", "nls")}

    def text(ppl: float) -> dict[str, Any]:
        return {"nll": [math.log(ppl) + shift for shift in (-0.2, 0.0, 0.2)], "right": [0.4, 0.3, 0.5]}

    cells[f"{names.DECODER}-dense"] = text(25)
    for share in names.SHARES:
        cells[f"{names.DECODER}-magnitude-{share:g}-0"] = text(45)
        for seed in range(3):
            cells[f"{names.DECODER}-wanda-{share:g}-{seed}"] = text(wanda)
            for name, arm in names.TEXT_ARMS.items():
                cuts = {str(rank): text(30.0) for rank in arm.ranks}
                if name == "lora":
                    cuts |= {"8": text(33), "4": text(36), "svd 8": text(31), "svd 4": text(31)}
                cells[f"{names.DECODER}-{name}-{share:g}-{seed}"] = {
                    "test": cuts, "loss": [4.0, 3.0], "seconds": 90.0, "steps": 200, "rate": 2e-3,
                    "tried": {"0.001": 3.5, "0.002": 3.4}, "validation": 3.4,
                }  # fmt: skip
    cells[f"{names.DECODER}-bytes"] = {"dense": 1000, "sparse": 600, "adapters": 50}
    return cells


def judged(**numbers: float) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    cells, results, found = made_up(**numbers), [], {}
    data = {
        names.ENCODER: {"words": 3, "languages": 20, "sizes": {"train": 500, "test": 200}, "sha256": "a"},
        names.DECODER: {"test": [3, 256, "a"]},
    }
    one = {
        "cpu": "X",
        "capability": "A",
        "cores": 2,
        "threads": 1,
        "system": "S",
        "python": "3",
        "versions": {"a": "1"},
    }
    for name, judge in ((names.ENCODER, judging.judge_words), (names.DECODER, judging.judge_text)):
        seeds = run.FULL.seeds if name == names.ENCODER else run.FULL.text_seeds
        result, inequalities = judge(cells, seeds, run.FULL.tuned)
        rows = [vars(inequality) for inequality in inequalities]
        shown = {"model": name, "data": data[name], **result, "inequalities": rows, "environments": [one]}
        results.append(json.loads(json.dumps(shown)))
        found |= {inequality.name: inequality.ok for inequality in inequalities}
    return results, found


def test_everything_holds_when_it_does() -> None:
    results, found = judged()
    assert len(found) == 4 + len(names.RANKS) + 5 + 6
    assert all(found.values())
    assert results[0]["arms"]["nls"]["cuts"]["8"]["value"] == pytest.approx(80)
    assert len(results[1]["tuned"]) == 4


@pytest.mark.parametrize(
    ("numbers", "words", "count"),
    [
        ({"nls": 0.785}, "at most 1 point below, accuracy", 4),
        ({"naive": 0.85}, "cut to its leading", 2),
        ({"step": 1.2}, "time of a step", 2),
        ({"wanda": 46.0}, "Wanda against magnitude", 2),
    ],
)
def test_a_broken_sentence_is_named(numbers: dict[str, float], words: str, count: int) -> None:
    _, found = judged(**numbers)
    broken = [name for name, ok in found.items() if not ok]
    assert len(broken) == count and all(words in name for name in broken)


def test_the_quick_claim_is_judged_by_the_same_sentences() -> None:
    cells = {name: cell for name, cell in made_up().items() if not name.endswith(("-1", "-2", "-3", "-4"))}
    kept = {f"{names.ENCODER}-{arm}-0" for arm in run.QUICK.arms} | {f"{names.ENCODER}-speed"}
    result, found = judging.judge_words({name: cells[name] for name in kept}, (0,), {})
    assert list(result["arms"]) == list(run.QUICK.arms) and len(found) == 12 and all(one.ok for one in found)
    _, found = judging.judge_text(cells, (0,), {})
    assert all(one.ok for one in found)


def test_tables_name_every_arm_and_mark_what_failed() -> None:
    results, _ = judged(nls=0.785)
    page, short = table.page(results), table.summary(results)
    labels = [arm.label for name, arm in names.ARMS.items() if not name.startswith("lora")]
    assert all(label in page for label in [*labels, *names.CUTS.values()])
    assert page.count("**fails**") == 4
    assert "78.5, 78.5, 78.5 % right from one run" in short and "—" not in page + short
    assert "together 65%" in page
    assert f"{3 * 9} steps are as many as a run for each rank takes" in page
    assert "| steps 9 | 78.5 | 78.5 | 78.5 |" in page and "| ranks 8+4 |  | 70.0 | 70.0 |" in page
    assert np.isclose(results[0]["arms"]["nls"]["cuts"]["4"]["value"], 78.5)


def test_merged_models_of_a_toy_answer_alike() -> None:
    data = toy_words()
    one = arms.tuned(arms.base(toy_model("bert"), "wanda", 0.5, 0, data), names.ARMS["masked"], 0, 3)
    for adapter in adapters(one.model.module).values():
        adapter.B.data.normal_(generator=torch.Generator().manual_seed(2))
    with masked(one.model, one.path(4), space=one.space):
        expected = merging.logits_of(one.classifier, data.test.ids, data.test.mask)
    small = arms.cut_out(one, 4, merge=True)
    torch.testing.assert_close(merging.logits_of(small, data.test.ids, data.test.mask), expected, rtol=1e-4, atol=1e-4)


def test_the_expected_time_counts_every_run() -> None:
    cells = made_up()
    full, quick = (run.training_seconds(scale, cells) for scale in (run.FULL, run.QUICK))
    step = cells[f"{names.ENCODER}-speed"]["nls"]["step"]
    tried, text = 2 * len(names.RATES), 2 * len(names.SHARES) * 3 + 3 + 2 * 2
    others = [arm.steps or arms.STEPS for name in names.SWEEP for _, _, arm in names.swept(name)]
    on_words = (5 * len(names.ARMS) + tried) * arms.STEPS + sum(others)
    assert full == pytest.approx(step * (on_words + text * language.STEPS))
    assert quick == pytest.approx(step * len(run.QUICK.arms) * arms.STEPS)


@pytest.mark.parametrize("scale", [run.FULL, run.QUICK])
def test_every_cell_that_is_judged_is_measured_and_what_decides_comes_first(scale: run.Scale, tmp_path: Path) -> None:
    order = [name for name, _ in run._cells(scale, Store(tmp_path, scratch=tmp_path))]
    assert len(set(order)) == len(order)
    made = made_up()
    cells = {name: made[name] for name in order}
    judging.judge_words(cells, scale.seeds, scale.tuned), judging.judge_text(cells, scale.text_seeds, scale.tuned)
    decisive = [f"{names.ENCODER}-{arm}-{scale.seeds[-1]}" for arm in ("nls", "lora", "lora-4")]
    assert max(map(order.index, decisive)) < min(
        map(order.index, (f"{names.DECODER}-dense", f"{names.ENCODER}-masked-0"))
    )
