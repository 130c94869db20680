"""Claim: a decoder engine on nested weights writes sooner than what a user would pick instead, at equal perplexity.

Baselines in the same rounds: llama.cpp on the file that the model comes as and on the types that its users choose,
PyTorch in fp32 and bf16, OpenVINO with int8 and int4 weights where it is installed; each in a process of its own.
Beside every time stands the memory bandwidth of the same rounds and what share of it the bytes read make up, beside
every arm its perplexity on held-out text. Also: fewer bits in the same file, greedy tokens against transformers, and
half of the weights pruned.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks._frame import Inequality, Store
from benchmarks._numbers import file_name
from benchmarks.decode import greedy, linears, openvino, sparse
from benchmarks.decode.apart import Apart, Remote
from benchmarks.decode.arms import Own
from benchmarks.decode.files import Files
from benchmarks.decode.judging import judge
from benchmarks.decode.measuring import closeness, losses, race
from benchmarks.decode.names import BITS, LLAMA, MODELS, OPENVINO, SOURCE, TORCH, llama, nested
from benchmarks.decode.opening import open_arm
from benchmarks.multipruner.texts import Texts, texts
from lissome.core.optional import optional_import
from lissome.cost.llama_cpp import features
from lissome.engine.decode import Decoder
from lissome.ops.kernels import native

SHORT, LONG = {"prompt": 16, "new": 48}, {"prompt": 512, "new": 16}
"""What is read and written in a turn: decoding with nearly no cache, and a prompt with decoding after it."""
WORK = {MODELS[0]: {"short": SHORT, "long": LONG}, MODELS[1]: {"short": SHORT}}
"""Prompts are timed of the first model alone: no inequality needs those of the other."""


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller."""

    rounds: int
    windows: int
    prompts: int
    threads: tuple[int, ...]
    models: tuple[str, ...] = MODELS


FULL = Scale(rounds=9, windows=16, prompts=50, threads=(1, 2))
QUICK = Scale(rounds=3, windows=2, prompts=10, threads=(1,), models=MODELS[:1])


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    if native.module() is None:
        print(f"decode is skipped: {native.choice().why}")
        return []
    optional_import("llama_cpp", extra="llama")
    scale = QUICK if quick else FULL
    cells = store.measured(_cells(scale, store))
    if store.pattern is not None:
        return []
    result, found = judge(cells, scale.models, scale.threads)
    facts = {"llama_cpp": features(), "openvino": openvino.installed(), "machine": platform.machine()}
    store.publish("engine", {**result, **facts, "inequalities": [vars(one) for one in found]})
    return found


def _cells(scale: Scale, store: Store) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of every cell and how to get it, the most important first."""
    bench = {name: _Bench(name, store, scale) for name in scale.models}
    for threads in scale.threads:
        for one in bench.values():
            for kind, work in WORK[one.name].items():
                name = f"{one.name}-{kind}-{threads}"
                yield name, lambda one=one, kind=kind, work=work, threads=threads: one.times(kind, work, threads)
        yield f"linears-{threads}", lambda threads=threads: _linears(store, scale, threads)
    for one in bench.values():
        for arm in one.arms:
            yield f"{one.name}-ppl-{file_name(arm)}", lambda one=one, arm=arm: one.quality(arm)
        yield f"{one.name}-modes", one.modes
        yield f"{one.name}-greedy", one.greedy
    first = bench[MODELS[0]]
    for threads in scale.threads:
        yield f"{first.name}-wanda-{threads}", lambda threads=threads: first.pruned(threads)
    yield f"{first.name}-wanda-ppl", first.pruned_quality


def _linears(store: Store, scale: Scale, threads: int) -> dict[str, Any]:
    settings = {"size": linears.SIZE, "layers": linears.LAYERS, "rounds": 3 * scale.rounds, "threads": threads}
    return store.cell(f"linears-{threads}", settings, lambda: linears.race(rounds=3 * scale.rounds, threads=threads))


class _Bench:
    """The cells of one model."""

    def __init__(self, name: str, store: Store, scale: Scale) -> None:
        self.name, self._store, self._scale = name, store, scale

    @cached_property
    def files(self) -> Files:
        return Files(self.name, self._store.scratch("files", {"model": self.name}))

    @cached_property
    def texts(self) -> Texts:
        return texts(self.files.model, 0)

    @cached_property
    def test(self) -> Tensor:
        return self.texts.test[:: len(self.texts.test) // self._scale.windows]

    @property
    def arms(self) -> list[str]:
        """Every arm that can run here."""
        types = [SOURCE[self.name], *(kind for kind in LLAMA if kind != SOURCE[self.name])]
        return [*map(nested, BITS), *map(llama, types), *TORCH, *(OPENVINO if openvino.installed() else ())]

    def times(self, kind: str, work: Mapping[str, int], threads: int) -> dict[str, Any]:
        """Seconds of all arms, in turns."""

        def compute() -> dict[str, Any]:
            with ExitStack() as stack:
                room = work["prompt"] + work["new"]
                opened: dict[str, Remote] = {}
                for arms in ([*map(nested, BITS)], *([arm] for arm in self.arms[len(BITS) :])):
                    process = Apart(self.files, arms, room=room, threads=threads)
                    opened |= stack.enter_context(closing(process)).arms
                return race(opened, rounds=self._scale.rounds, threads=threads, **work)

        more = {"threads": threads, "rounds": self._scale.rounds, "arms": sorted(self.arms), **work}
        return self._cell(f"{kind}-{threads}", compute, more)

    def quality(self, arm: str) -> dict[str, Any]:
        """Loss of every test window."""

        def compute() -> dict[str, Any]:
            with closing(
                open_arm(self.files, arm, room=self.test.shape[1], threads=max(self._scale.threads))
            ) as opened:
                return {"nll": losses(opened, self.test.numpy())}

        return self._cell(f"ppl-{file_name(arm)}", compute, {"arm": arm, "text": self._text()})

    def modes(self) -> dict[str, Any]:
        """Integer activations against those as they are, on the same weights."""

        def compute() -> dict[str, Any]:
            options = {"cells": self.test.shape[1], "threads": max(self._scale.threads)}
            whole = Own(Decoder.open(self.files.nested, activations="f32", kv="f32", **options), BITS[0])
            own = Own(Decoder.open(self.files.nested, **options), BITS[0])
            return closeness(own, whole, self.test.numpy())

        return self._cell("modes", compute, {"text": self._text()})

    def greedy(self) -> dict[str, Any]:
        """Texts that equal those of transformers."""
        windows = self.texts.recovery
        windows = windows[:: max(1, len(windows) // self._scale.prompts)][: self._scale.prompts]
        more = {"prompts": len(windows), "tokens": greedy.TOKENS, "prompt": greedy.PROMPT, "text": self.texts.source}
        return self._cell("greedy", lambda: greedy.compared(self.files, windows, BITS[0]), more)

    def pruned(self, threads: int) -> dict[str, Any]:
        """Seconds of the arms of the pruned model, with nested weights of the whole one beside them."""

        def compute() -> dict[str, Any]:
            room = SHORT["prompt"] + SHORT["new"]
            opened = sparse.arms(self.files, self.texts.calibration, room=room, threads=threads)
            opened[nested(BITS[0])] = open_arm(self.files, nested(BITS[0]), room=room, threads=threads)
            return race(opened, rounds=self._scale.rounds, threads=threads, **SHORT)

        more = {"threads": threads, "rounds": self._scale.rounds, "share": sparse.SHARE, **SHORT}
        return self._cell(f"wanda-{threads}", compute, {**more, "calibration": self.texts.facts()["calibration"]})

    def pruned_quality(self) -> dict[str, Any]:
        """Loss of every test window, by arm of the pruned model."""

        def compute() -> dict[str, Any]:
            room, threads = self.test.shape[1], max(self._scale.threads)
            opened = sparse.arms(self.files, self.texts.calibration, room=room, threads=threads)
            return {"nll": {name: losses(arm, self.test.numpy()) for name, arm in opened.items()}}

        more = {"share": sparse.SHARE, "calibration": self.texts.facts()["calibration"], "text": self._text()}
        return self._cell("wanda-ppl", compute, more)

    def _text(self) -> list[Any]:
        return [self.texts.source, *self.test.shape, int(np.asarray(self.test).sum())]

    def _cell(self, name: str, compute: Callable[[], dict[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
        known = {"model": self.name, "sha256": self.files.model.source.sha256, **more}
        return self._store.cell(f"{self.name}-{name}", known, compute)
