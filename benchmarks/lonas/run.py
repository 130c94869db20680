"""Claim: one run that trains adapters at all widths does for a run of LoRA at each, and shrinks the model.

MiniLM with a new head learns the languages of short texts with its weights frozen. LoNAS trains ranks and widths
together; beside it, for each width, the model is cut to it first by magnitude and plain adapters are trained on that,
with as many steps. The ceiling is LoRA on the whole model. Every arm has the best of as many learning rates and ranks,
found with shorter runs on examples to choose by. The run that is judged trains three sub-networks at each step (the
sandwich), which is as many passes as the three runs that it replaces; beside it stands one with three ranks and a
single random sub-network at each step, as published. SmolLM2 becomes elastic in its MLPs on addresses to Congress, and
is judged on them and on text that it was not tuned to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Cell, Cells, Scale, Subject
from benchmarks._frame import Inequality, Store
from benchmarks._lora import lora as tuned_by_lora
from benchmarks._numbers import exponential
from benchmarks._sweep import Sweep, told
from lissome import pipeline
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.data.text import spread, text_splits
from lissome.engine.objective import NextToken
from lissome.engine.ranking import ranking, saliency
from lissome.engine.scoring import score_text
from lissome.models.adapters import merge_lora
from lissome.models.binding import extract, reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops.stats import Interval, paired_bootstrap
from lissome.pipeline.job import WINDOWS, data_for

WIDTHS = (1.0, 0.75, 0.5)
HEADS = (1.0, 0.75, 0.5)
CHEAP = 0.75
RANKS = (8, 4, 2)
SPACE: dict[str, Any] = {
    "ranks": RANKS, "widths": WIDTHS, "heads": HEADS, "tune_steps": 0, "multiple": 1, "adapt": "all",
}  # fmt: skip
STEPS = 1500
TRIALS = 150
QUALITY = "loss"
"""What is searched for, beside few multiply-accumulates."""
TRIED = 600
"""Steps of a run in which settings are tried."""
_WARM = {"warm_steps": TRIED // 4, "steps": TRIED - TRIED // 4}
USUAL: dict[str, Any] = {
    "lr": 2e-3, "order": "none", "warm_steps": 0, "paths": "sandwich", "even": 0.0, "distil": 0.0, "dropout": 0.1,
    "steps": TRIED,
}  # fmt: skip
CHANGES: tuple[dict[str, Any], ...] = (
    {"lr": 1e-3},
    {"lr": 4e-3},
    {"ranks": (8,)},
    {"ranks": (32, 16, 8)},
    {"order": "l1"},
    {"order": "random"},
    {"order": "wanda", **_WARM},
    {"paths": "random"},
    {"paths": "random", "steps": _elastic.PASSES * TRIED},
    {"even": 0.5},
    {"even": 1.0},
    {"distil": 0.7},
    {"dropout": 0.0},
)
LORA: dict[str, Any] = {"lr": 2e-3, "alpha": 16.0, "dropout": 0.1, "adapt": "all"}
LORA_EVERY: tuple[dict[str, Any], ...] = (
    {"lr": 1e-3}, {"lr": 4e-3}, {"ranks": (4,)}, {"ranks": (16,)}, {"dropout": 0.0},
)  # fmt: skip
LORA_CHANGES = (
    *LORA_EVERY, {"alpha": 8.0}, {"alpha": 32.0}, {"alpha": 64.0}, {"dropout": 0.2}, {"order": "none"},
    {"ranks": (32,)}, {"batch": 32}, {"dropout": 0.05},
)  # fmt: skip
"""What is tried of LoRA at the middle width; at the others it is rates, ranks and no dropout."""
PUBLISHED: dict[str, Any] = {"paths": "random", "ranks": RANKS, "order": "none", "even": 0.0, "dropout": 0.1}
"""How the paper trains a super-network; one seed."""
CHOSEN = {"lonas": ("lr", "ranks", "order", "even", "dropout"), "lora": ("lr", "ranks", "dropout")}
"""What of it each arm then takes: the best value of each; neurons and heads of LoRA are sorted by magnitude."""
DECODER = "smollm2-135m"
LANGUAGE: dict[str, Any] = {
    "steps": 120,
    "batch": 1,
    "ranks": (8,),
    "widths": WIDTHS,
    "tune_steps": 0,
}
"""Of SmolLM2: one window of 256 tokens at each step."""
LANGUAGE_USUAL: dict[str, Any] = {"lr": 1e-3, "steps": 60}
LANGUAGE_RATES: tuple[dict[str, Any], ...] = ({"lr": 5e-4}, {"lr": 2e-3}, {"lr": 4e-3})
"""What is tried of LoNAS, and of LoRA at the middle width: runs of half the length."""
WINDOWS_OF_EACH = 20
"""Windows of 256 tokens of each text that SmolLM2 is judged on, evenly from all that are held out."""
TEXTS = ("addresses", "other text")
MARGIN = 1.0
FEW = 0.05
"""Share of all numbers that have optimizer state, at most."""
_MIDDLE = sorted(WIDTHS)[len(WIDTHS) // 2]


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("lonas", quick, store, cells=cells, judge=judge, needs=(_tasks.languages, _tasks.addresses))


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured: first what rates are chosen by, then seed by seed."""
    it = partial(fresh, store)
    words, text = word_sweeps(it, scale), text_sweeps(scale)
    for sweep in (*words.values(), *text.values()):
        yield from sweep.cells()
    known = {**SPACE, "steps": STEPS, "trials": TRIALS, "quality": QUALITY, "cheap": CHEAP}
    ways: list[tuple[int, dict[str, Any]]] = [(seed, {"paths": "sandwich"}) for seed in scale.seeds]
    for seed, way in [*ways, (scale.seeds[0], PUBLISHED)]:
        elastic = Cell(
            f"{way['paths']}-{seed}",
            {**known, "seed": seed, "sweep": words["lonas"].described, **way},
            lambda folder, seed=seed, way=way: made(
                it(), folder, scale, {**words["lonas"].chosen(store, scale, CHOSEN["lonas"]), **way}, seed
            ),
        )
        yield elastic
        if way is not PUBLISHED:
            yield _elastic.latency_of(elastic, CHEAP, it, scale, store)
    for seed, share in ((seed, share) for seed in scale.seeds for share in WIDTHS):
        sweep = words[f"lora-{share:g}"]
        yield Cell(
            f"lora-{share:g}-{seed}",
            {"steps": STEPS, "seed": seed, "share": share, "sweep": sweep.described},
            lambda _, share=share, seed=seed, sweep=sweep: pruned(
                it(), share, scale, sweep.chosen(store, scale, CHOSEN["lora"]), seed
            ),
        )
    facts = {"model": DECODER, "settings": LANGUAGE, "windows": vars(WINDOWS), "of_each": WINDOWS_OF_EACH}
    yield Cell("language-given", facts, lambda _: untuned())
    for seed in scale.seeds:
        yield Cell(
            f"language-{seed}",
            {**facts, "seed": seed, "sweep": [sweep.described for sweep in text.values()]},
            lambda folder, seed=seed: language(
                scale, folder, {name: sweep.best(store, scale, "lr") for name, sweep in text.items()}, seed
            ),
        )


def _told(arm: str, chosen: Mapping[str, Any]) -> str:
    return told({name: chosen[name] for name in CHOSEN[arm]})


def fresh(store: Store) -> Subject:
    """MiniLM with a new head, which has learnt nothing."""
    return _elastic.encoder(store.scratch("model", {"steps": 0}), _tasks.languages(), steps=0)


def word_sweeps(it: Callable[[], Subject], scale: Scale) -> dict[str, Sweep]:
    """What is tried on the languages of texts: of LoNAS, its mean over widths; of LoRA, each width for itself."""

    def elastic(settings: Mapping[str, Any], folder: Path) -> float:
        model, space = supernet(it(), folder, scale, settings, 0)
        accuracy = [_elastic.chosen_by(at_best_rank(model, space, share, it()), it()) for share in WIDTHS]
        return sum(accuracy) / len(accuracy)

    def alone(share: float, settings: Mapping[str, Any], _: Path) -> float:
        chosen = {"ranks": RANKS, **settings}
        return _elastic.chosen_by(lora(it(), share, scale.of(TRIED), chosen, 0), it())

    found = {"lonas": Sweep("lonas", SPACE, USUAL, CHANGES, elastic)}
    for share in WIDTHS:
        changes = LORA_CHANGES if share == _MIDDLE else LORA_EVERY
        known = {"ranks": RANKS, "share": share, "steps": TRIED}
        name = f"lora-{share:g}"
        found[name] = Sweep(name, known, LORA, changes, partial(alone, share))
    return found


def supernet(it: Subject, folder: Path, scale: Scale, chosen: Mapping[str, Any], seed: int) -> tuple[Model, Space]:
    """A super-network that is not searched; its steps and those of the warm-up are in the settings."""
    pipeline.supernet(
        str(it.folder), method="lonas", data=str(it.data), seed=seed, out=folder / "S",
        settings=_elastic.assignments(_settings(scale, chosen)),
    )  # fmt: skip
    return _elastic.opened(folder / "S")


def _settings(scale: Scale, chosen: Mapping[str, Any]) -> dict[str, Any]:
    steps = {name: scale.of(chosen[name]) for name in ("steps", "warm_steps") if chosen.get(name)}
    return {**SPACE, **chosen, **steps}


def made(it: Subject, folder: Path, scale: Scale, chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The super-network, searched; what is cut out of it, and each width, whose rank is chosen."""
    settings = _settings(scale, {"steps": STEPS, **chosen})
    place = _elastic.supernet(
        it, folder, method="lonas", settings=settings, trials=scale.of(TRIALS, 12), seed=seed, quality=QUALITY
    )
    found = _elastic.measured(it, place, (CHEAP,), folder / "cut")
    details, (model, space) = read_manifest(place).lineage[0].details, _elastic.opened(place)
    best = {share: at_best_rank(model, space, share, it) for share in WIDTHS}
    widths = {f"{share:g}": _elastic.packed(one, _elastic.objective(it)) for share, one in best.items()}
    return {
        **found, "widths": widths, "trained": details["trained"] / details["of"], "chosen": _told("lonas", chosen),
    }  # fmt: skip


def at_best_rank(model: Model, space: Space, share: float, it: Subject) -> Model:
    """Return what a super-network gives at one share of all widths, with the rank that is best to choose by."""
    ranks = sorted({rank for axis in space.axes if axis.name.endswith(".rank") for rank in axis.choices})
    every = (at_width(model, space, share, rank) for rank in ranks or [None])
    return max(every, key=lambda one: _elastic.chosen_by(one, it))


def at_width(model: Model, space: Space, share: float, rank: int | None = None) -> Model:
    """Return what a super-network gives at one share of all widths and one rank (None: the largest), merged."""
    most = {axis.name: rank or axis.full if axis.name.endswith(".rank") else share * axis.full for axis in space.axes}
    values = {axis.name: max(choice for choice in axis.choices if choice <= most[axis.name]) for axis in space.axes}
    small: Model = extract(model, Subnet(values), space=space)
    merge_lora(small)
    return small


def pruned(it: Subject, share: float, scale: Scale, chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """LoRA at one width by itself."""
    given = _elastic.original(it)
    small = lora(it, share, scale.of(STEPS), {**LORA, **chosen}, seed)
    macs = Counter(small).count().macs / Counter(given).count().macs
    return {
        "test": _elastic.packed(small, _elastic.objective(it)),
        "macs": macs,
        "chosen": _told("lora", chosen),
    }


def lora(it: Subject, share: float, steps: int, settings: Mapping[str, Any], seed: int) -> Model:
    """Prune to a width by magnitude, then train plain adapters and the head; they are merged."""
    judge, given = _elastic.objective(it), _elastic.original(it)
    work = given.derived(extract(given, given.space().full).module)
    if settings.get("order") != "none":
        reorder(work, ranking(work, saliency(work, "l1")))
    subnet, space = _elastic.uniform(work, share, multiple=1)
    small = extract(work, subnet, space=space)
    plain = {name: value for name, value in settings.items() if name not in {"ranks", "order"}}
    return tuned_by_lora(small, judge, rank=settings["ranks"][0], steps=steps, seed=seed, **plain)


def text_sweeps(scale: Scale) -> dict[str, Sweep]:
    """Rates that are tried on SmolLM2: of LoNAS, at the middle width that it is cut to; of LoRA, at that width."""
    facts = {"model": DECODER, "settings": LANGUAGE, "share": _MIDDLE}

    def elastic(settings: Mapping[str, Any], folder: Path) -> float:
        model, space = text_supernet(scale, folder, settings, 0)
        return _chosen_by(at_width(model, space, _MIDDLE))

    def alone(settings: Mapping[str, Any], _: Path) -> float:
        return _chosen_by(text_lora(_MIDDLE, scale, settings, 0))

    ways = {"lonas": elastic, "lora": alone}
    return {
        name: Sweep(f"smollm2-{name}", facts, LANGUAGE_USUAL, LANGUAGE_RATES, compute, figure="ppl")
        for name, compute in ways.items()
    }


def _chosen_by(model: Model) -> float:
    """Perplexity of the addresses that are there to choose by."""
    return NextToken(data_for(model, _tasks.addresses(), seed=0, searched=True)[1]).figures(model, "selection")["ppl"]


def untuned() -> dict[str, Any]:
    """SmolLM2 as it is, and cut to each width by magnitude."""
    texts = windows()
    cut = {f"cut-{share:g}": losses(narrow(share), texts) for share in WIDTHS if share < 1}
    return {"given": losses(pipeline.load(DECODER), texts), **cut}


def language(scale: Scale, folder: Path, rates: Mapping[str, float], seed: int) -> dict[str, Any]:
    """SmolLM2 elastic in its MLPs, beside LoRA on SmolLM2 cut to each width."""
    chosen = {arm: {"lr": rate, "steps": LANGUAGE["steps"]} for arm, rate in rates.items()}
    texts, (whole, space) = windows(), text_supernet(scale, folder, chosen["lonas"], seed)
    found: dict[str, Any] = {"rates": dict(rates), "params": {}}
    for share in WIDTHS:
        small = at_width(whole, space, share)
        found["params"][f"{share:g}"] = Counter(small).count().params
        found[f"lonas-{share:g}"] = losses(small, texts)
        found[f"lora-{share:g}"] = losses(text_lora(share, scale, chosen["lora"], seed), texts)
    return found


def text_supernet(scale: Scale, folder: Path, chosen: Mapping[str, Any], seed: int) -> tuple[Model, Space]:
    """SmolLM2, trained at all widths of its MLPs."""
    settings = {**LANGUAGE, "lr": chosen["lr"], "steps": scale.of(chosen["steps"])}
    pipeline.supernet(
        DECODER, method="lonas", data=str(_tasks.addresses()), settings=_elastic.assignments(settings),
        seed=seed, out=folder / "S",
    )  # fmt: skip
    return _elastic.opened(folder / "S")


def text_lora(share: float, scale: Scale, chosen: Mapping[str, Any], seed: int) -> Model:
    """SmolLM2 cut to a width by magnitude, with plain adapters that are trained as many steps and merged."""
    work = narrow(share)
    judge = NextToken(data_for(work, _tasks.addresses(), seed=0, searched=True)[1])
    steps, batch, (rank,) = scale.of(chosen["steps"]), LANGUAGE["batch"], LANGUAGE["ranks"]
    return tuned_by_lora(work, judge, rank=rank, steps=steps, lr=chosen["lr"], seed=seed, batch=batch)


def narrow(share: float) -> Model:
    """SmolLM2 with a share of the neurons of every MLP, those with the largest weights; all of it is a copy."""
    model = pipeline.load(DECODER)
    full = model.anatomy.space(finest=True).full
    axes = [name for name in full if name.endswith(".width")]
    work: Model = extract(model, full)
    reorder(work, ranking(work, saliency(work, "l1"), axes=axes))
    return extract(work, {**full, **{name: int(share * full[name]) // 8 * 8 for name in axes}})


def windows() -> dict[str, torch.Tensor]:
    """Held-out windows of the addresses, and of text that nothing is tuned to."""
    model = pipeline.load(DECODER)
    sources = dict(zip(TEXTS, (str(_tasks.addresses()), None), strict=True))
    held = {name: text_splits(model, source, WINDOWS, seed=0).test for name, source in sources.items()}
    return {name: spread(rows, WINDOWS_OF_EACH) for name, rows in held.items()}


def losses(model: Model, texts: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Mean loss of every window by text, nats, to five digits."""
    return {name: [round(float(one.mean()), 5) for one in score_text(model, rows).nll] for name, rows in texts.items()}


def ratio(mine: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Interval:
    """Perplexity over another on the same windows, means of the loss over seeds, with its 95 % interval."""
    return exponential(paired_bootstrap(np.mean(mine, axis=0) - np.mean(other, axis=0)))


def judge(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    made_of = [found[f"sandwich-{seed}"] for seed in seeds]
    lora_of = {share: [found[f"lora-{share:g}-{seed}"]["test"] for seed in seeds] for share in WIDTHS}
    told = [
        _elastic.not_worse(
            f"one run at {share:.0%} of widths against LoRA on a model pruned to it, points",
            [one["widths"][f"{share:g}"] for one in made_of], lora_of[share], MARGIN,
        )
        for share in WIDTHS
    ]  # fmt: skip
    cut = [one["cut"][f"{CHEAP:g}"] for one in made_of]
    most, few = max(one["macs"] for one in cut), max(one["trained"] for one in made_of)
    tests, slow = [one["test"] for one in cut], max(found[f"latency-sandwich-{seed}"]["latency"][2] for seed in seeds)
    return [
        *told,
        Inequality.of("multiply-accumulates of what was found, most", most, "<=", CHEAP),
        _elastic.not_worse("what was found against LoRA on the whole model, points", tests, lora_of[1.0], MARGIN),
        Inequality.of("share of numbers with optimizer state, most", few, "<=", FEW),
        Inequality.of("latency of what was found, upper end", slow, "<", 1.0),
        *(_tuned(found, seeds, share) for share in WIDTHS),
    ]


def _tuned(found: Cells, seeds: Sequence[int], share: float) -> Inequality:
    """Whether one run for all widths tuned this one; how far it is from a run for this one alone is told beside it."""
    first, runs = found["language-given"], [found[f"language-{seed}"] for seed in seeds]
    mine, alone = ([one[f"{arm}-{share:g}"][TEXTS[0]] for one in runs] for arm in ("lonas", "lora"))
    given = first["given" if share == 1 else f"cut-{share:g}"][TEXTS[0]]
    gain, gap = ratio(mine, [given]), ratio(mine, alone)
    detail = (
        f"({gain.value:.3f}, n={gain.n} windows, {len(seeds)} seeds; over LoRA at this width alone: "
        f"{gap.value:.3f}, 95 % {gap.low:.3f} to {gap.high:.3f})"
    )
    name = f"SmolLM2, MLPs at {share:.0%}: perplexity of the addresses over that without tuning, upper end"
    return Inequality.of(name, gain.high, "<", 1.0, detail)
