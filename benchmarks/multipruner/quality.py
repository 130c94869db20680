"""Zero-shot choice accuracy and closeness to the original, of points on a curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.multipruner.measuring import fast
from benchmarks.multipruner.names import TASKS
from benchmarks.multipruner.pruning import Pruned
from lissome.data.choice import find_task
from lissome.engine.evaluate import Report, evaluate
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.ops.stats import mcnemar_exact, mean_se, paired_bootstrap
from lissome.pipeline import load

_SEED = 0  # of the draw of questions: the same for all models


def dense_answers(model: Model, questions: int) -> dict[str, Any]:
    """Let the original answer the choice tasks."""
    return {"answers": _answers(evaluate(fast(model), text=None, tasks=TASKS, limit=questions, seed=_SEED))}


def accuracies(pruned: Pruned, target: float, test: Tensor, questions: int) -> dict[str, Any]:
    """Score the point nearest to a share: answers, and KL and agreement with the original on the test windows."""
    share, subnet = pruned.near(target)
    work, dense = fast(pruned.model), fast(load(pruned.model.name))
    with masked(work, subnet, space=pruned.space):
        report = evaluate(work, text=None, tasks=TASKS, limit=questions, seed=_SEED)
        close = evaluate(work, baseline=dense, text=test, seed=_SEED)
    differences = {name: close.metric(name, "differences").to_json() for name in ("kl", "agreement", "ppl_ratio")}
    return {"share": share, "answers": _answers(report), **differences}


def _answers(report: Report) -> dict[str, Any]:
    """Per task: which questions, and whether each was answered correctly by the score that papers report."""
    return {
        task: {"indices": list(facts["indices"]), "correct": list(facts[f"model.{find_task(task).score}"])}
        for task, facts in report.answers.items()
    }


def paired(cell: Mapping[str, Any], dense: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return accuracies with their standard errors and, beside a baseline, the paired differences (95 %)."""
    rows: dict[str, Any] = {key: value for key, value in cell.items() if key != "answers"}
    everything: list[int] = []
    baseline: list[int] = []
    for task, facts in cell["answers"].items():
        rows[task] = _row(facts["correct"], None if dense is None else dense["answers"][task]["correct"])
        everything += facts["correct"]
        baseline += [] if dense is None else dense["answers"][task]["correct"]
    rows["all"] = _row(everything, baseline or None)
    return rows


def _row(correct: list[int], baseline: list[int] | None) -> dict[str, Any]:
    value, se = mean_se(correct)
    row = {"acc": value, "se": se, "n": len(correct), "better": "higher"}
    if baseline is None:
        return row
    change = paired_bootstrap([a - b for a, b in zip(correct, baseline, strict=True)])
    pairs = list(zip(correct, baseline, strict=True))
    p = mcnemar_exact(pairs.count((1, 0)), pairs.count((0, 1)))
    return {**row, "difference": change.value, "low": change.low, "high": change.high, "mcnemar_p": p}
