"""From cells to inequalities and tables, on numbers made up here."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks._numbers import file_name
from benchmarks.multipruner import run, table
from benchmarks.multipruner.baselines import BASELINES
from benchmarks.multipruner.names import LABELS, SPLITS, TASKS

NAME = run.MODELS[0]


def made_up(*, auto: float = 40.0, blocks: float = 60.0, lazy: float = 2.0) -> dict[str, Any]:
    """Cells of one model in which every other arm is at perplexity 80."""

    def at(ppl: float) -> dict[str, Any]:
        nll = [math.log(ppl) + shift for shift in (-0.2, 0.0, 0.2)]
        return {"at": {target: {"nll": nll, "between": [0.9, 0.8]} for target in ("0.9", "0.8")}}

    def answers(share: float) -> dict[str, Any]:
        return {task: {"indices": [0, 1, 2, 3], "correct": [1, 0, 1, int(share > 0.85)]} for task in TASKS}

    def search(cpu: float, **more: Any) -> dict[str, Any]:
        times = {"cpu": cpu, "wall": cpu, "block_cpu": cpu * 0.8, "block_wall": cpu}
        return {**times, "moves": ["a", "b"], "scored": [3, 2], "loss": 3.0, "test_loss": 3.0, **more}

    metric = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    dense = at(30.0)["at"]["0.9"]["nll"]
    cells = {
        f"{NAME}-dense": {"params": 9, "block_params": 6, "embedding_params": 3, "nll": dense, "dtype_ratio": 1.001},
        f"{NAME}-choice-dense": {"answers": answers(1.0)},
        f"{NAME}-search": {"steps": 2, "runs": {"naive": search(10), "cached": search(5), "lazy": search(lazy)}},
        f"{NAME}-recovery": {
            "before": [nll + 0.4 for nll in dense], "after": [nll + 0.1 for nll in dense], "share": 0.8, "steps": 90,
            "seconds": 480.0, "limit_seconds": 600.0,
        },
    }  # fmt: skip
    cells |= {f"{NAME}-{arm}-{seed}": at(80.0) for arm in BASELINES for seed in range(5)}
    cells |= {f"{NAME}-{arm}-{seed}": at(ppl) for arm, ppl in (("auto", auto), ("blocks", blocks)) for seed in range(3)}
    cells |= {f"{NAME}-ablation-{file_name(arm)}": at(50.0) for arm in run.ABLATION}
    for arm in SPLITS:
        for target in run.TARGETS:
            cell = {"share": target, "answers": answers(target), "kl": metric, "agreement": metric, "ppl_ratio": metric}
            cells[f"{NAME}-choice-{arm}-{target:g}"] = cell
    return cells


def judged(monkeypatch: pytest.MonkeyPatch, **numbers: float) -> tuple[dict[str, Any], dict[str, bool]]:
    facts = {"source": "noise", "calibration": [[4, 256], "a"], "test": [[3, 512], "b"]}
    monkeypatch.setattr(run, "_texts", lambda *_: SimpleNamespace(facts=lambda: facts))
    result, found = run._judge(NAME, made_up(**numbers), run.FULL)
    return json.loads(json.dumps(result)), {inequality.name: inequality.ok for inequality in found}


def test_everything_holds_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    result, found = judged(monkeypatch)
    assert len(found) == 1 + 2 * (1 + len(BASELINES)) + 5 + 2
    assert all(found.values())
    assert result["recovery"]["given_back"] == pytest.approx(0.75)
    assert result["targets"]["0.8"]["blocks"]["auto_to_this"]["value"] == pytest.approx(40 / 60)


@pytest.mark.parametrize(
    ("numbers", "word", "count"),
    [
        ({"blocks": 49.0}, "against blocks", 2),
        ({"auto": 81.0, "blocks": 120.0}, "against", 12),
        ({"lazy": 2.6}, "lazy", 1),
    ],
)
def test_a_broken_sentence_is_named(
    monkeypatch: pytest.MonkeyPatch, numbers: dict[str, float], word: str, count: int
) -> None:
    _, found = judged(monkeypatch, **numbers)
    broken = [name for name, ok in found.items() if not ok]
    assert len(broken) == count
    assert all(word in name for name in broken)


def test_the_median_of_random_runs_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = made_up()
    for seed, ppl in enumerate((900.0, 100.0, 300.0, 200.0, 800.0)):
        cells[f"{NAME}-random-{seed}"] = {"at": {t: {"nll": [math.log(ppl)] * 3} for t in ("0.9", "0.8")}}
    rows, _ = run._compare(NAME, "0.9", cells, run.FULL)
    assert rows["random"]["ppl"]["value"] == pytest.approx(300)


def test_tables_name_every_arm_and_mark_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = judged(monkeypatch, blocks=49.0)
    one = {
        "cpu": "X",
        "capability": "AVX2",
        "cores": 2,
        "threads": 2,
        "system": "S",
        "python": "3",
        "versions": {"a": "1"},
    }
    page = table.page([{**result, "environments": [one]}])
    assert all(label in page for label in LABELS.values())
    assert page.count("**fails**") == 2
    assert "75% [75%, 75%]" in page
    assert "smollm2-135m with 80% of its blocks" in table.summary([{**result, "environments": [one]}])
    assert "—" not in page
