"""Claim: bits are worth more at the beginning of a text: schedules lie on or above the chord of their precisions.

What high bits alone write after held-out prompts is the reference; what other schedules would say after the same tokens
diverges from it (KL, nats per token). The control reads as many bits in the opposite order. The learnt scheduler
stands beside the paper's ablations and chance, made from texts of other articles. Times are taken in turns, with the
memory's bandwidth in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks._frame import Inequality, Store
from benchmarks.multipruner.texts import Texts, texts
from benchmarks.pmpd.judging import judge
from benchmarks.pmpd.measuring import curve, schedulers, speed
from benchmarks.pmpd.names import CASES, Case
from lissome.models.model import Model
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.ops.nested import layout_named
from lissome.pipeline import load

PROMPT = 32
"""Tokens of a prompt."""
_APART = 64  # tokens from the beginning of one test prompt to the next one's


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller."""

    cases: tuple[Case, ...]
    tokens: int
    prompts: int
    learnt_from: int
    seeds: tuple[int, ...]
    rounds: int
    threads: tuple[int, ...]


FULL = Scale(CASES, tokens=96, prompts=100, learnt_from=256, seeds=(0, 1, 2), rounds=11, threads=(1, 2))
QUICK = Scale(CASES[:1], tokens=48, prompts=24, learnt_from=32, seeds=(0,), rounds=5, threads=(1,))


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    if native.module() is None:
        print(f"pmpd is skipped: {native.choice().why}")
        return []
    scale = QUICK if quick else FULL
    cells = store.measured(_cells(scale, store))
    if store.pattern is not None:
        return []
    result, found = judge(cells, scale.cases, scale.threads)
    facts = {"tokens": scale.tokens, "prompts": scale.prompts, "learnt_from": scale.learnt_from, "prompt": PROMPT}
    source = _texts(scale.cases[0].model).source
    store.publish("schedules", {**facts, "text": source, **result, "inequalities": [vars(one) for one in found]})
    return found


def _cells(scale: Scale, store: Store) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for case in scale.cases:
        one = _Bench(case, store, scale)
        yield f"{case.name}-curve", one.curve
        yield f"{case.name}-schedulers", one.schedulers
        for threads in scale.threads:
            yield f"{case.name}-speed-{threads}", lambda one=one, threads=threads: one.speed(threads)


class _Bench:
    """The cells of one case."""

    def __init__(self, case: Case, store: Store, scale: Scale) -> None:
        self.case, self._store, self._scale = case, store, scale

    @property
    def file(self) -> Path:
        """Its nested weights, made once."""
        settings = {"model": self.case.model, "layout": self.case.layout}
        path = self._store.scratch("nested", settings) / "nested.safetensors"
        return path if path.exists() else make(_model(self.case.model), path, layout=layout_named(self.case.layout))

    def curve(self) -> dict[str, Any]:
        """Static schedules, and the control."""
        return self._cell("curve", lambda: curve(self.case, self.file, self._tests(), self._scale.tokens), {})

    def schedulers(self) -> dict[str, Any]:
        """Schedulers that look at the text."""
        scale = self._scale
        rows = _texts(self.case.model).recovery
        rows = rows[:: max(1, len(rows) // scale.learnt_from)][: scale.learnt_from]

        def compute() -> dict[str, Any]:
            learnt_from = [row[:PROMPT].tolist() for row in rows]
            return schedulers(self.case, self.file, learnt_from, self._tests(), tokens=scale.tokens, seeds=scale.seeds)

        return self._cell("schedulers", compute, {"learnt_from": len(rows), "seeds": list(scale.seeds)})

    def speed(self, threads: int) -> dict[str, Any]:
        """Seconds."""
        scale = self._scale
        more = {"threads": threads, "rounds": scale.rounds}
        return self._cell(
            f"speed-{threads}",
            lambda: speed(
                self.case, self.file, self._tests(), tokens=scale.tokens, rounds=scale.rounds, threads=threads
            ),
            more,
        )

    def _tests(self) -> list[list[int]]:
        """Beginnings of test prompts that do not overlap; the schedulers never saw their articles."""
        found = []
        for window in _texts(self.case.model).test:
            found += [window[at : at + PROMPT].tolist() for at in range(0, len(window) - PROMPT + 1, _APART)]
        return found[:: max(1, len(found) // self._scale.prompts)][: self._scale.prompts]

    def _cell(self, name: str, compute: Callable[[], dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        model, scale = _model(self.case.model), self._scale
        known = {"sha256": model.source.sha256, "text": _texts(self.case.model).facts(), **vars(self.case)}
        known |= {"tokens": scale.tokens, "prompts": scale.prompts, "prompt": PROMPT, **more}
        return self._store.cell(f"{self.case.name}-{name}", known, compute)


@cache
def _model(name: str) -> Model:
    return load(name)


@cache
def _texts(name: str) -> Texts:
    return texts(_model(name), 0)
