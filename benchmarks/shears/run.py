"""Claim: one run that trains all ranks at once on a sparse model does for what takes a run per rank, and merges.

On classes of short texts (an encoder): NLS is within a point of LoRA of the largest rank and of a run of its own at
every rank, beats LoRA cut to its leading ranks, and costs at most a tenth more per step; masked and quantised adapters
merge exactly, plain ones fill the zeros. On text (a causal language model): Wanda before magnitude, and the decisive
arms again. LoRA cut by SVD, nested and dense adapters stand beside; rates are tried with equal effort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from benchmarks._frame import Inequality, Store
from benchmarks.shears import arms, language
from benchmarks.shears.judging import judge_text, judge_words
from benchmarks.shears.names import (
    ARMS,
    DECODER,
    ENCODER,
    RATES,
    SCALE,
    SHARE,
    SHARES,
    SWEEP,
    TEXT_ARMS,
    TEXT_RATES,
    Arm,
    swept,
)  # fmt: skip
from benchmarks.shears.texts import Windows, Words, windows, words
from lissome.core.errors import AssetError
from lissome.models.model import Model
from lissome.models.precision import fast_dtype
from lissome.pipeline import load


@dataclass(frozen=True)
class Scale:
    """What ``--quick`` makes smaller.

    Attributes:
        seeds: Of classes of texts.
        arms: Those that are trained there.
        text_seeds: Of text.
        shares: Shares of zeros on text, before anything is trained.
        tuned: Seeds with which text is trained on, by share of zeros; `SHARE` has all of them.
        sweep: Whether learning rates and other settings are tried; otherwise the middle rates are used.
    """

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    text_seeds: tuple[int, ...]
    shares: tuple[float, ...]
    tuned: Mapping[float, tuple[int, ...]]
    sweep: bool


FULL = Scale((0, 1, 2, 3, 4), tuple(ARMS), (0, 1, 2), SHARES, dict.fromkeys(SHARES, (0, 1, 2)), sweep=True)
QUICK = Scale((0,), ("nls", "lora", "lora-8", "lora-4", "masked", "quantised"), (0,), (0.5, 0.6), {}, sweep=False)

_FIRST = ("nls", "lora", "lora-8", "lora-4")
_MERGED = ("masked", "quantised")


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish the results of both models and judge them."""
    why = missing()
    if why:
        print(f"shears is skipped: {why}")
        return []
    scale, cells = QUICK if quick else FULL, dict[str, dict[str, Any]]()
    for name, compute in _cells(scale, store):
        if store.wants(name):
            cells[name] = compute()
        if name == f"{DECODER}-speed" and store.pattern is None:
            print(f"training takes {training_seconds(scale, cells) / 60:.0f} minutes of one core, less what is stored")
    if store.pattern is not None:
        return []
    found = []
    for name, judge, facts in ((ENCODER, judge_words, _words().facts()), (DECODER, judge_text, _windows().facts())):
        result, inequalities = judge(cells, scale.seeds if name == ENCODER else scale.text_seeds, scale.tuned)
        shown = {"model": name, "data": facts, **result, "inequalities": [vars(one) for one in inequalities]}
        store.publish(name, shown)
        found += inequalities
    return found


def missing() -> str:
    """Return why nothing can be measured here; empty when all is there."""
    try:
        _words(), _windows()
    except AssetError as error:
        return str(error)
    return ""


def training_seconds(scale: Scale, cells: Mapping[str, Any]) -> float:
    """Seconds of processor time that all training of the claim takes, by what a step takes of either model."""
    tried = sum(len(rates) - 1 for rates in RATES.values()) if scale.sweep else 0
    on_words = len(scale.arms) * len(scale.seeds) + tried
    on_sparse = sum(map(len, scale.tuned.values()))
    on_text = 2 * on_sparse + len(scale.tuned[SHARE]) + 2 * (len(TEXT_RATES) - 1) if scale.tuned else 0
    others = [one for name in SWEEP if scale.sweep for _, _, one in swept(name)]
    on_others = sum(one.steps or arms.STEPS for one in others)
    step, text_step = (cells[f"{name}-speed"]["nls"]["step"] for name in (ENCODER, DECODER))
    return float((on_words * arms.STEPS + on_others) * step + on_text * language.STEPS * text_step)


def _cells(scale: Scale, store: Store) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of every cell and how to get it: what decides the claim comes first."""
    on_words, on_text = _OnWords(store, scale), _OnText(store, scale)
    yield f"{ENCODER}-speed", on_words.speed
    yield f"{DECODER}-speed", on_text.speed
    yield from on_words.cells(_FIRST)
    yield f"{DECODER}-dense", lambda: on_text.before("dense", 0.0, 0)
    yield f"{DECODER}-bytes", on_text.sizes
    for share in scale.shares:
        yield from on_text.cells(share)
    yield from on_words.cells(_MERGED)
    yield from on_words.cells([name for name in scale.arms if name not in {*_FIRST, *_MERGED}])
    yield from on_words.others() if scale.sweep else ()


class _OnWords:
    """Cells of the encoder."""

    def __init__(self, store: Store, scale: Scale) -> None:
        self._store, self._scale = store, scale

    def cells(self, names: Iterable[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield the cells of some arms, by seed: arms of one seed share their base."""
        for seed in self._scale.seeds:
            for name in names:
                yield f"{ENCODER}-{name}-{seed}", lambda name=name, seed=seed: self.arm(name, seed)

    def arm(self, name: str, seed: int) -> dict[str, Any]:
        """An arm at the best of its rates."""
        rate, tried = self._rate(ARMS[name].rate)
        return {**self._trained(f"{name}-{rate:g}-{seed}", ARMS[name], rate, seed), "rate": rate, "tried": tried}

    def others(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield the cells of other settings of some arms."""
        for name in SWEEP:
            for knob, value, arm in swept(name):
                cell = f"{name}-{knob}-{value}"
                yield (
                    f"{ENCODER}-{cell}",
                    lambda cell=cell, arm=arm: self._trained(cell, arm, self._rate(arm.rate)[0], 0),
                )

    def _rate(self, name: str) -> tuple[float, dict[str, float]]:
        """The rate of highest validation accuracy with seed 0, and that of all that were tried."""
        if not self._scale.sweep:
            return RATES[name][1], {}
        cells = {rate: self._trained(f"{name}-{rate:g}-0", ARMS[name], rate, 0) for rate in RATES[name]}
        tried = {rate: cell["validation"] for rate, cell in cells.items()}
        return max(tried, key=tried.__getitem__), {f"{rate:g}": value for rate, value in tried.items()}

    def _trained(self, cell: str, arm: Arm, rate: float, seed: int) -> dict[str, Any]:
        facts = {"arm": _facts(arm), "training": arms.settings_of(arm, rate).to_mapping()}
        return self._cell(cell, lambda: arms.measured(arm, rate, seed, _model(ENCODER), _words()), seed, **facts)

    def speed(self) -> dict[str, Any]:
        """Times of steps."""
        turns = {"arms": arms.TIMED, "rounds": arms.ROUNDS, "turn": arms.TURN}
        return self._cell("speed", lambda: arms.timing(_model(ENCODER), _words()), 0, **turns)

    def _cell(self, name: str, compute: Callable[[], dict[str, Any]], seed: int, **more: Any) -> dict[str, Any]:
        return self._store.cell(f"{ENCODER}-{name}", _settings(ENCODER, _words(), seed, **more), compute)


class _OnText:
    """Cells of the causal language model."""

    def __init__(self, store: Store, scale: Scale) -> None:
        self._store, self._scale = store, scale

    def cells(self, share: float) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield the cells of one share of zeros, by seed: what is measured with one seed shares its base."""
        tuned = self._scale.tuned.get(share, ())
        for seed in self._scale.text_seeds:
            yield f"{DECODER}-wanda-{share:g}-{seed}", lambda seed=seed: self.before("wanda", share, seed)
            for name in ("nls", "lora") if seed in tuned else ():
                yield f"{DECODER}-{name}-{share:g}-{seed}", lambda name=name, seed=seed: self.arm(name, share, seed)
        yield f"{DECODER}-magnitude-{share:g}-0", lambda: self.before("magnitude", share, 0)
        for seed in tuned if share == SHARE else ():
            yield f"{DECODER}-dense-{share:g}-{seed}", lambda seed=seed: self.arm("dense", share, seed)

    def before(self, kind: str, share: float, seed: int) -> dict[str, Any]:
        """Loss of a base."""
        return self._cell(
            f"{kind}-{share:g}-{seed}", lambda: language.before(kind, share, seed, _model(DECODER), _windows()), seed,
            kind=kind, share=share,
        )  # fmt: skip

    def arm(self, name: str, share: float, seed: int) -> dict[str, Any]:
        """An arm at the best of its rates, which are tried at the usual share."""
        cells = {rate: self._trained(TEXT_ARMS[name].rate, SHARE, rate, 0) for rate in TEXT_RATES}
        tried = {rate: cell["validation"] for rate, cell in cells.items()}
        best = min(tried, key=tried.__getitem__)
        shown = {f"{rate:g}": value for rate, value in tried.items()}
        return {**self._trained(name, share, best, seed), "rate": best, "tried": shown}

    def _trained(self, name: str, share: float, rate: float, seed: int) -> dict[str, Any]:
        facts = {"arm": name, "share": share, "training": language.settings(rate).to_mapping()}
        return self._cell(
            f"{name}-{share:g}-{rate:g}-{seed}",
            lambda: language.measured(name, share, rate, seed, _model(DECODER), _windows()), seed, **facts,
        )  # fmt: skip

    def speed(self) -> dict[str, Any]:
        """Times of steps."""
        turns = {"rounds": language.ROUNDS, "turn": language.TURN}
        return self._cell("speed", lambda: language.timing(_model(DECODER), _windows()), 0, **turns)

    def sizes(self) -> dict[str, Any]:
        """Bytes of files."""
        folder = self._store.scratch(f"{DECODER}-bytes", {})
        return self._cell("bytes", lambda: language.sizes(_model(DECODER), _windows(), folder), 0)

    def _cell(self, name: str, compute: Callable[[], dict[str, Any]], seed: int, **more: Any) -> dict[str, Any]:
        return self._store.cell(f"{DECODER}-{name}", _settings(DECODER, _windows(), seed, **more), compute)


def _facts(arm: Arm) -> dict[str, Any]:
    """What a cell says of its arm: all but its name, and but what all arms have alike."""
    alike = {"label": arm.label, "scale": SCALE, "dropout": 0.0, "steps": arm.steps}  # steps are the training's
    return {key: value for key, value in asdict(arm).items() if key not in alike or value != alike[key]}


def _settings(name: str, data: Words | Windows, seed: int, **more: Any) -> dict[str, Any]:
    facts = {"model": _model(name).source.sha256, "data": data.facts(), "seed": seed}
    return {**facts, "dtype": str(fast_dtype()).removeprefix("torch."), **more}


@cache
def _model(name: str) -> Model:
    """The original, frozen and never changed."""
    model = load(name)
    model.module.requires_grad_(False)
    return model


@cache
def _words() -> Words:
    return words(_model(ENCODER))


@cache
def _windows() -> Windows:
    return windows(_model(DECODER))
