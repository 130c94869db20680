"""Claim: greedy removal of Mamba blocks or scans beats Block Influence and chance, and blocks less is time less.

On the models of the zoo, which were trained here: 2 and 4 of 12 blocks or scans, at equal numbers, on held-out text.
Also claimed: what is cut out equals what is masked; a decode step gets faster in proportion to the blocks (0.8 of it,
net of the head; 1.4 times with 4 of 12 gone); losing scans speeds prompts up and costs most where context is far; two
and a half minutes of training give back half of what was lost; in a hybrid, all parts that compete are no worse than
MultiPruner's choice among attentions and MLPs, which may be the same. The dense baseline scans in chunks, not token by
token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from benchmarks._frame import Inequality, Store
from benchmarks.mamba_shedder import hybrid, quality, removing, speed
from benchmarks.mamba_shedder.judging import judge, judge_hybrid
from benchmarks.mamba_shedder.names import (
    ARMS,
    BLOCKS,
    CONTEXTS,
    COUNTS,
    HYBRID,
    MODELS,
    OTHERWISE,
    PURE,
    RECOVERY_RATES,
    TARGETS,
    UNCALIBRATED,
    VARIANTS,
    Scale,
    seeds,
)  # fmt: skip
from benchmarks.mamba_shedder.texts import texts
from lissome.core.errors import AssetError
from lissome.cost.counted import Counter
from lissome.engine.walk import Walk
from lissome.models.model import Model
from lissome.models.zoo import zoo
from lissome.pipeline import load

_SHORTER = 8  # blocks of the model that is trained shorter
_MOST = {"blocks": 6, "ssm": BLOCKS}  # removals of the curve


FULL = Scale(seeds=(0, 1, 2), draws=tuple(range(10)), shorter=PURE[:1])
QUICK = Scale(seeds=(0,), draws=tuple(range(5)), shorter=())


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish the results of all models and judge them."""
    why = missing()
    if why:
        print(f"mamba_shedder is skipped: {why}")
        return []
    scale = QUICK if quick else FULL
    cells = store.measured(_cells(scale, store))
    if store.pattern is not None:
        return []
    found = []
    for name in MODELS:
        result, inequalities = (judge_hybrid if name == HYBRID else judge)(name, cells, scale)
        store.publish(name, {**result, "inequalities": [vars(inequality) for inequality in inequalities]})
        found += inequalities
    return found


def missing() -> str:
    """Return why nothing can be measured here; empty when all is there."""
    lacking = [name for name in MODELS if name not in zoo()]
    if lacking:
        return f"{', '.join(lacking)} have not been trained yet; run: python -m tools.train_zoo"
    try:
        texts(0)
    except AssetError as error:
        return str(error)
    return ""


def _cells(scale: Scale, store: Store) -> Iterator[tuple[str, Any]]:
    """Yield the name of every cell and how to get it, the most important first."""
    bench = {name: _Bench(name, store) for name in PURE}
    for one in bench.values():
        yield f"{one.name}-dense", one.dense
        for target in TARGETS:
            for arm in ARMS:
                for seed in seeds(arm, scale):
                    name = f"{one.name}-{target}-{arm}-{seed}"
                    yield name, lambda one=one, target=target, arm=arm, seed=seed: one.removal(target, arm, seed)
    for one in bench.values():
        for target in TARGETS:
            yield f"{one.name}-{target}-curve", lambda one=one, target=target: one.curve(target)
            yield f"{one.name}-{target}-pairs", lambda one=one, target=target: one.pairs(target)
            for how in OTHERWISE:
                yield f"{one.name}-{target}-{how}", lambda one=one, target=target, how=how: one.otherwise(target, how)
        yield f"{one.name}-narrower", one.narrower
        yield f"{one.name}-exactness", one.exactness
        yield f"{one.name}-context", one.context
        yield f"{one.name}-speed", one.speed
        for rate in RECOVERY_RATES:
            yield f"{one.name}-recovery-{rate:g}", lambda one=one, rate=rate: one.recovery(rate)
    mixed = _Bench(HYBRID, store)
    yield f"{HYBRID}-dense", mixed.dense
    for arm in hybrid.ARMS:
        for seed in scale.seeds:
            yield f"{HYBRID}-{arm}-{seed}", lambda arm=arm, seed=seed: mixed.mixed(arm, seed)
    for name in scale.shorter:
        yield f"{name}-shorter", bench[name].shorter


class _Bench:
    """The cells of one model."""

    def __init__(self, name: str, store: Store) -> None:
        self.name, self._store = name, store

    def dense(self) -> dict[str, Any]:
        """The original: counts, and the loss of every test window."""

        def compute() -> dict[str, Any]:
            counts = Counter(_model(self.name)).count()
            shown = {name: getattr(counts, name) for name in ("params", "block_params", "cache_bytes")}
            return {**shown, "nll": Walk(_model(self.name), texts(0).test).plain().tolist()}

        return self._cell("dense", 0, compute, calibrated=False)

    def removal(self, target: str, arm: str, seed: int) -> dict[str, Any]:
        """What an arm removes, and the loss of every test window after 2 and 4 removals."""

        def compute() -> dict[str, Any]:
            model, data = _model(self.name), texts(0 if arm == "random" else seed)
            axes = removing.CHOOSERS[arm](model, data, target, seed, self._folder(target, arm, seed))
            subnets = [removing.without(model, axes[:count]) for count in COUNTS]
            losses = removing.masked_losses(model, subnets, data, test=True)
            at = {str(count): loss.tolist() for count, loss in zip(COUNTS, losses, strict=True)}
            return {"axes": axes, "at": at}

        return self._cell(
            f"{target}-{arm}-{seed}", seed, compute,
            calibrated=arm not in UNCALIBRATED, arm=arm, target=target, counts=COUNTS,
        )  # fmt: skip

    def curve(self, target: str) -> dict[str, Any]:
        """Loss, counts and bytes held after every removal, calibration seed 0."""

        def compute() -> dict[str, Any]:
            model, axes = _model(self.name), self._axes(target)
            subnets = [removing.without(model, axes[:count]) for count in range(_MOST[target] + 1)]
            losses, counter = removing.masked_losses(model, subnets, texts(0), test=True), Counter(model)
            counts = [counter.count(subnet) for subnet in subnets]
            return {
                "axes": axes[: _MOST[target]],
                "bits": [quality.bits(loss.tolist()) for loss in losses],
                "block_params": [count.block_params for count in counts],
                "cache_bytes": [count.cache_bytes for count in counts],
            }

        return self._cell(f"{target}-curve", 0, compute, target=target, most=_MOST[target])

    def pairs(self, target: str) -> dict[str, Any]:
        """Test loss without every two parts."""
        return self._cell(
            f"{target}-pairs", 0, lambda: {"nll": removing.pairs(_model(self.name), texts(0), target)},
            calibrated=False, target=target,
        )  # fmt: skip

    def otherwise(self, target: str, how: str) -> dict[str, Any]:
        """Test loss, nats per byte, of what the method removes when it goes by something else."""

        def compute() -> dict[str, Any]:
            model = _model(self.name)
            axes = removing.otherwise(model, how, target, self._folder(target, "otherwise", how))
            subnets = [removing.without(model, axes[:count]) for count in COUNTS]
            losses = removing.masked_losses(model, subnets, texts(0), test=True)
            at = {str(count): float(loss.mean()) for count, loss in zip(COUNTS, losses, strict=True)}
            return {"axes": axes, "at": at}

        return self._cell(f"{target}-{how}", 0, compute, target=target, counts=COUNTS, otherwise=how)

    def narrower(self) -> dict[str, Any]:
        """Loss with as many parameters as 2 and 4 blocks less leave, but all mixers narrower instead."""

        def compute() -> dict[str, Any]:
            return {"at": removing.narrower(load(self.name), texts(0), COUNTS)}

        return self._cell("narrower", 0, compute, calibrated=False, counts=COUNTS)

    def exactness(self) -> dict[str, Any]:
        """Masked against cut, prefill against decode."""
        return self._cell("exactness", 0, lambda: quality.exactness(_model(self.name), self._variants(), texts(0).test))

    def context(self) -> dict[str, Any]:
        """Loss by bytes of context, whole and with less."""

        def compute() -> dict[str, Any]:
            return quality.far_context(_model(self.name), self._variants(), texts(0).test)

        return self._cell("context", 0, compute, contexts=CONTEXTS)

    def speed(self) -> dict[str, Any]:
        """Times beside the original."""
        shape = {"lengths": speed.LENGTHS, "new": speed.NEW, "rounds": speed.ROUNDS, "threads": speed.THREADS}
        return self._cell("speed", 0, lambda: speed.timed(_model(self.name), self._variants()), **shape)

    def recovery(self, rate: float) -> dict[str, Any]:
        """Loss before and after training with 4 blocks gone, at a learning rate."""

        def compute() -> dict[str, Any]:
            axes = self._axes("blocks")[: max(COUNTS)]
            folder = self._folder("recovery", f"{rate:g}", quality.RECOVERY.steps)
            return quality.recovered(load(self.name), axes, texts(0), rate, folder)

        settings = replace(quality.RECOVERY, lr=rate).to_mapping()
        return self._cell(f"recovery-{rate:g}", 0, compute, settings=settings)

    def shorter(self) -> dict[str, Any]:
        """Loss of a model of 8 blocks that was trained as long."""
        folder = self._folder("shorter", str(_SHORTER), 0)
        return self._cell(
            "shorter", 0, lambda: quality.trained_shorter(self.name, _SHORTER, texts(0).test, folder),
            calibrated=False, layers=_SHORTER,
        )  # fmt: skip

    def mixed(self, arm: str, seed: int) -> dict[str, Any]:
        """Loss of a hybrid at shares of its block parameters."""

        def compute() -> dict[str, Any]:
            return {"at": hybrid.removed(load(self.name), arm, texts(seed), seed, self._folder("mixed", arm, seed))}

        return self._cell(f"{arm}-{seed}", seed, compute, arm=hybrid.ARMS[arm], shares=hybrid.SHARES)

    def _variants(self) -> dict[str, list[str]]:
        """What the variants lack that are timed and probed."""
        return {name: self._axes(target)[:count] for name, (target, count) in VARIANTS.items()}

    def _axes(self, target: str) -> list[str]:
        return list(self.removal(target, "greedy", 0)["axes"])

    def _folder(self, *parts: object) -> Any:
        return self._store.scratch(f"{self.name}-{'-'.join(map(str, parts))}", self._settings(0))

    def _settings(self, seed: int, *, calibrated: bool = True, **more: Any) -> dict[str, Any]:
        text = texts(seed).facts(calibrated=calibrated)
        return {"model": _model(self.name).source.sha256, "text": text, "seed": seed, **more}

    def _cell(self, name: str, seed: int, compute: Any, *, calibrated: bool = True, **more: Any) -> dict[str, Any]:
        return self._store.cell(f"{self.name}-{name}", self._settings(seed, calibrated=calibrated, **more), compute)


@cache
def _model(name: str) -> Model:
    """The original, never changed; what changes a model loads one of its own."""
    return load(name)
