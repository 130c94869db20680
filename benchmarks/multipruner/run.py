"""Claim: letting blocks, widths and heads compete beats block removal alone and five baselines at equal parameters.

Also claimed: the greedy engine needs at most 0.55 (cached) and 0.25 (lazy) of the naive loop's time, and ten minutes of
LoRA recovery give back at least half of what was lost. Perplexity is on held-out text; all arms see the same
calibration windows; cells are stored one by one in an order that puts what matters most first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from benchmarks._frame import Inequality, Store
from benchmarks._numbers import exponential, file_name, perplexity
from benchmarks.multipruner.baselines import BASELINES, SEEDLESS
from benchmarks.multipruner.efficiency import RECOVERY, SEARCH, compare_searches, recovered
from benchmarks.multipruner.measuring import TARGETS, at_targets, fast, median_row, settings
from benchmarks.multipruner.names import SPLITS, TASKS
from benchmarks.multipruner.pruning import prune
from benchmarks.multipruner.quality import accuracies, dense_answers, paired
from benchmarks.multipruner.texts import Texts, texts
from lissome.core.metrics import Metric
from lissome.cost.counted import Counter
from lissome.engine.walk import Walk
from lissome.models.model import Model
from lissome.ops.stats import Interval, paired_bootstrap
from lissome.pipeline import load

MODELS = ("smollm2-135m", "gemma-3-270m")
ABLATION: dict[str, dict[str, Any]] = {
    "0:100:0": {"split": "0:100:0"},
    "44:52:4": {"split": "44:52:4"},
    "auto, damage=loss": {"split": "auto", "damage": "loss"},
    "100:0:0, damage=kl": {"split": "100:0:0", "damage": "kl"},
    "auto, score=magnitude": {"split": "auto", "score": "magnitude"},
    "auto, score=none": {"split": "auto", "score": "none"},
    "100:0:0, lazy=false": {"split": "100:0:0", "lazy": False},  # whether lazy scoring is fair to BlockPruner
}
"""A fixed split ends its stages at shares of the target, so that its curve means nothing elsewhere: 90 % only."""

GAIN = 0.8
DEPTH = min(TARGETS)
_DTYPE_TOLERANCE = 0.002  # bfloat16 may move the dense perplexity by so much, else the test would need float32


@dataclass(frozen=True)
class _Scale:
    """What ``--quick`` makes smaller."""

    seeds: tuple[int, ...]
    random_seeds: tuple[int, ...]
    questions: int
    ablation: bool


FULL = _Scale(seeds=(0, 1, 2), random_seeds=(0, 1, 2, 3, 4), questions=150, ablation=True)
QUICK = _Scale(seeds=(0,), random_seeds=(0, 1, 2), questions=40, ablation=False)


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish the results of both models and judge them."""
    scale = QUICK if quick else FULL
    cells = store.measured(_cells(scale, store))
    if store.pattern is not None:
        return []
    found = []
    for name in MODELS:
        result, inequalities = _judge(name, cells, scale)
        store.publish(name, result)
        found += inequalities
    return found


def _cells(scale: _Scale, store: Store) -> Iterator[tuple[str, Any]]:
    """Yield the name of every cell and how to get it, the most important first."""
    bench = {name: _Bench(name, store) for name in MODELS}
    small = bench[MODELS[0]]
    for one in bench.values():
        yield f"{one.name}-dense", one.dense
        for seed in scale.seeds:
            for arm in SPLITS:
                yield f"{one.name}-{arm}-{seed}", lambda one=one, arm=arm, seed=seed: one.removal(arm, seed)
    yield f"{small.name}-search", small.search
    yield f"{small.name}-recovery", small.recovery
    for one in bench.values():
        yield from _baseline_cells(one, scale)
    for one in bench.values():
        yield f"{one.name}-choice-dense", lambda one=one: one.choice_dense(scale.questions)
        for arm in SPLITS:
            for target in TARGETS:
                name = f"{one.name}-choice-{arm}-{target:g}"
                yield name, lambda one=one, arm=arm, target=target: one.choice(arm, target, scale.questions)
    for arm in ABLATION if scale.ablation else ():
        yield f"{small.name}-ablation-{file_name(arm)}", lambda arm=arm: small.ablation(arm)


def _baseline_cells(one: _Bench, scale: _Scale) -> Iterator[tuple[str, Any]]:
    for arm in BASELINES:
        for seed in _seeds(arm, scale):
            yield f"{one.name}-{arm}-{seed}", lambda arm=arm, seed=seed: one.baseline(arm, seed)


def _seeds(arm: str, scale: _Scale) -> tuple[int, ...]:
    return (0,) if arm in SEEDLESS else scale.random_seeds if arm == "random" else scale.seeds


class _Bench:
    """The cells of one model."""

    def __init__(self, name: str, store: Store) -> None:
        self.name, self._store = name, store

    def dense(self) -> dict[str, Any]:
        """The original: counts, and loss on the test in the fast number type and in float32."""
        model, data = _model(self.name), _texts(self.name, 0)

        def compute() -> dict[str, Any]:
            counts = Counter(model).count()
            every = max(1, len(data.test) // 4)  # float32 is slow, and a quarter says it to 0.1 %
            exact = Walk(model, data.test[::every]).plain()
            quick = Walk(fast(model), data.test).plain()
            return {
                "params": counts.params,
                "block_params": counts.block_params,
                "embedding_params": counts.embedding_params,
                "nll": quick.tolist(),
                "dtype_ratio": math.exp(float(quick[::every].mean() - exact.mean())),
            }

        return self._cell("dense", 0, compute)

    def removal(self, arm: str, seed: int) -> dict[str, Any]:
        """An arm of MultiPruner: the curve, and the loss at the targets."""
        options = {"split": SPLITS[arm]}
        return self._cell(f"{arm}-{seed}", seed, lambda: self._removed(options, seed, TARGETS), options=options)

    def ablation(self, arm: str) -> dict[str, Any]:
        """Another split or order, with seed 0 at the larger target."""
        options, targets = ABLATION[arm], TARGETS[:1]
        name = f"ablation-{file_name(arm)}"
        return self._cell(name, 0, lambda: self._removed(options, 0, targets), options=options, targets=targets)

    def baseline(self, arm: str, seed: int) -> dict[str, Any]:
        """A baseline's loss at the targets."""

        def compute() -> dict[str, Any]:
            return {"at": BASELINES[arm](load(self.name), _texts(self.name, 0 if arm == "random" else seed), seed)}

        return self._cell(f"{arm}-{seed}", seed, compute, arm=arm)

    def search(self) -> dict[str, Any]:
        """Time of the naive, cached and lazy search."""
        return self._cell("search", 0, lambda: compare_searches(self.name, _texts(self.name, 0)), **SEARCH)

    def recovery(self) -> dict[str, Any]:
        """Loss before and after ten minutes of LoRA at the smaller target."""
        training = RECOVERY.to_mapping()

        def compute() -> dict[str, Any]:
            data, folder = _texts(self.name, 0), self._folder({"split": "auto"}, 0, DEPTH)
            pruned = prune(self.name, {"split": "auto"}, seed=0, share=DEPTH, folder=folder)
            return recovered(pruned, data, self._store.scratch(f"{self.name}-recovery", {"training": training}))

        return self._cell("recovery", 0, compute, training=training)

    def choice_dense(self, questions: int) -> dict[str, Any]:
        """The original's answers to the choice tasks."""
        return self._cell(
            "choice-dense", 0, lambda: dense_answers(_model(self.name), questions), tasks=TASKS, questions=questions
        )

    def choice(self, arm: str, target: float, questions: int) -> dict[str, Any]:
        """Answers, KL and agreement of the point of the curve nearest to a target, with seed 0."""

        def compute() -> dict[str, Any]:
            options = {"split": SPLITS[arm]}
            pruned = prune(self.name, options, seed=0, share=DEPTH, folder=self._folder(options, 0, DEPTH))
            return accuracies(pruned, target, _texts(self.name, 0).test, questions)

        name = f"choice-{arm}-{target:g}"
        return self._cell(name, 0, compute, tasks=TASKS, questions=questions, split=SPLITS[arm], target=target)

    def _removed(self, options: Mapping[str, Any], seed: int, targets: Sequence[float]) -> dict[str, Any]:
        share = min(targets)
        pruned = prune(self.name, options, seed=seed, share=share, folder=self._folder(options, seed, share))
        test = _texts(self.name, seed).test
        return {"at": at_targets(fast(pruned.model), pruned.space, pruned.curve, test, targets), **pruned.facts}

    def _folder(self, options: Mapping[str, Any], seed: int, share: float) -> Any:
        known = settings(_model(self.name), _texts(self.name, seed), seed, options=options, share=share)
        return self._store.scratch(f"{self.name}-removal", known)

    def _cell(self, name: str, seed: int, compute: Any, **more: Any) -> dict[str, Any]:
        # Settings need the tokenizer and the file's hash, which is why a model is read even for stored cells.
        known = settings(_model(self.name), _texts(self.name, seed), seed, **more)
        return self._store.cell(f"{self.name}-{name}", known, compute)


@cache
def _model(name: str) -> Model:
    """The original, never changed; what changes a model loads one of its own."""
    return load(name)


@cache
def _texts(name: str, seed: int) -> Texts:
    return texts(_model(name), seed)


def _judge(name: str, cells: Mapping[str, Any], scale: _Scale) -> tuple[dict[str, Any], list[Inequality]]:
    """Turn the cells of one model into its stored result and its inequalities."""
    dense = cells[f"{name}-dense"]
    result: dict[str, Any] = {
        "model": name,
        "text": _texts(name, 0).facts(),
        "seeds": list(scale.seeds),
        "dense": {key: dense[key] for key in ("params", "block_params", "embedding_params")}
        | {"ppl": _ppl("ppl", dense["nll"]).to_json(), "dtype_ratio": dense["dtype_ratio"]},
    }
    change = abs(dense["dtype_ratio"] - 1)
    found = [Inequality.of(f"{name}: bfloat16 moves the dense perplexity by", change, "<=", _DTYPE_TOLERANCE)]
    result["targets"] = {}
    for target in TARGETS:
        arms, more = _compare(name, f"{target:g}", cells, scale)
        result["targets"][f"{target:g}"] = arms
        found += more
    result["choice"] = _choice(name, cells)
    if f"{name}-search" in cells:
        result["search"], more = _judge_search(name, cells[f"{name}-search"])
        found += more
    if f"{name}-recovery" in cells:
        result["recovery"], more = _judge_recovery(name, cells[f"{name}-recovery"], dense)
        found += more
    if scale.ablation and name == MODELS[0]:
        rows = {arm: cells[f"{name}-ablation-{file_name(arm)}"]["at"] for arm in ABLATION}
        result["ablation"] = {arm: _ppl("ppl", at["0.9"]["nll"]).to_json() for arm, at in rows.items()}
    result["inequalities"] = [vars(inequality) for inequality in found]
    return result, found


def _compare(
    name: str, target: str, cells: Mapping[str, Any], scale: _Scale
) -> tuple[dict[str, Any], list[Inequality]]:
    """Compare all arms at one target; each seed's mean log-perplexity counts once."""
    losses = {arm: _losses(name, arm, target, cells, scale.seeds) for arm in SPLITS}
    losses |= {arm: _losses(name, arm, target, cells, _seeds(arm, scale)) for arm in BASELINES}
    auto = losses["auto"].mean(0)
    rows, found = {}, []
    for arm, values in losses.items():
        centre = median_row(values) if arm == "random" else values.mean(0)
        ratio = exponential(paired_bootstrap((auto - centre).numpy()))
        per_seed = [math.exp(value) for value in values.mean(1).tolist()]
        rows[arm] = {
            "ppl": _ppl("ppl", centre.tolist()).to_json(),
            "per_seed": per_seed,
            "auto_to_this": _metric("ppl_ratio", ratio).to_json(),
        }
        if arm == "auto":
            continue
        limit, factor = ("<=", GAIN) if arm == "blocks" else ("<", 1.0)
        label = f"{name} at {float(target):.0%} of block_params: ppl of auto against {arm}" + (
            " × 0.8" if factor < 1 else ""
        )
        spread = f"ratio {ratio.value:.3f}, 95 % {ratio.low:.3f}–{ratio.high:.3f}"
        detail = f"({spread}, n={ratio.n} windows, {len(values)} seeds)"
        bound = factor * math.exp(float(centre.mean()))
        found.append(Inequality.of(label, math.exp(float(auto.mean())), limit, bound, detail))  # type: ignore[arg-type]
    return rows, found


def _losses(name: str, arm: str, target: str, cells: Mapping[str, Any], seeds: Sequence[int]) -> torch.Tensor:
    """Loss by seed and test window, float64 [S, N]."""
    return torch.tensor([cells[f"{name}-{arm}-{seed}"]["at"][target]["nll"] for seed in seeds], dtype=torch.float64)


def _choice(name: str, cells: Mapping[str, Any]) -> dict[str, Any]:
    dense = cells[f"{name}-choice-dense"]
    arms = {
        f"{arm} {target:g}": paired(cells[f"{name}-choice-{arm}-{target:g}"], dense)
        for arm in SPLITS
        for target in TARGETS
    }
    return {"dense": paired(dense, None), **arms}


def _judge_search(name: str, cell: Mapping[str, Any]) -> tuple[dict[str, Any], list[Inequality]]:
    naive, cached, lazy = (cell["runs"][kind] for kind in ("naive", "cached", "lazy"))
    detail = f"(CPU time of {cell['steps']} accepted steps)"

    def ratio(part: str, run: Mapping[str, Any]) -> float:
        return float(run[part] / naive[part])

    change = abs(math.exp(lazy["test_loss"] - naive["test_loss"]) - 1)
    found = [
        Inequality.of(f"{name}: cached search, time in blocks / naive", ratio("block_cpu", cached), "<=", 0.55, detail),
        Inequality.of(f"{name}: cached search, whole time / naive", ratio("cpu", cached), "<=", 0.67, detail),
        Inequality.of(f"{name}: cached search, choices that differ", _differ(naive, cached), "==", 0),
        Inequality.of(f"{name}: lazy search, whole time / naive", ratio("cpu", lazy), "<=", 0.25, detail),
        Inequality.of(f"{name}: lazy search, change of held-out ppl", change, "<=", 0.01, "(same number of steps)"),
    ]
    return dict(cell), found


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
    return sum(a != b for a, b in zip(first["moves"], second["moves"], strict=True))


def _judge_recovery(
    name: str, cell: Mapping[str, Any], dense: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Inequality]]:
    before, after, whole = (
        torch.tensor(row, dtype=torch.float64) for row in (cell["before"], cell["after"], dense["nll"])
    )
    lost, back = float((before - whole).mean()), paired_bootstrap((before - after).numpy())
    minutes = f"{cell['limit_seconds'] / 60:g} minutes"
    given = f"(95 % {back.low / lost:.3f}–{back.high / lost:.3f}, n={back.n} windows)"
    found = [
        Inequality.of(
            f"{name}: share of the lost log-perplexity that {minutes} of LoRA give back at 80 %",
            back.value / lost, ">=", 0.5, given,
        ),
        Inequality.of(f"{name}: seconds of recovery", cell["seconds"], "<=", cell["limit_seconds"]),
    ]  # fmt: skip
    ppl = {key: _ppl("ppl", cell[key]).to_json() for key in ("before", "after")}
    facts = {key: cell[key] for key in ("share", "steps", "seconds", "limit_seconds")}
    return {**facts, **ppl, "given_back": back.value / lost, "low": back.low / lost, "high": back.high / lost}, found


def _ppl(name: str, losses: Sequence[float]) -> Metric:
    return _metric(name, perplexity(losses))


def _metric(name: str, found: Interval) -> Metric:
    return Metric(name=name, value=found.value, se=found.se, low=found.low, high=found.high, n=found.n, better="lower")
