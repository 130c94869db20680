"""Claim: one run that trains adapters at all widths does for a run of LoRA at each, and shrinks the model.

MiniLM with a new head learns the languages of short texts with its weights frozen. LoNAS trains ranks and widths
together; beside it, for each width, the model is cut to it first by magnitude and plain adapters are trained on that,
with as many steps, the same rate and the same rank. The ceiling is LoRA on the whole model. SmolLM2 becomes elastic in
its MLPs on addresses to Congress, and is judged on them and on text that it was not tuned to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _elastic, _tasks
from benchmarks._elastic import Cell, Cells, Scale, Subject
from benchmarks._frame import Inequality, Store
from lissome import pipeline
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.data.text import text_splits
from lissome.engine.objective import NextToken
from lissome.engine.ranking import ranking, saliency
from lissome.engine.scoring import perplexity, score_text
from lissome.engine.train import train
from lissome.methods.elastic.lonas import LoNAS
from lissome.models.adapters import merge_lora
from lissome.models.binding import extract, reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.pipeline.job import WINDOWS, data_for

WIDTHS = (1.0, 0.75, 0.5)
HEADS = (1.0, 0.75, 0.5)
CHEAP = 0.75
RANKS = (8, 4, 2)
STEPS, RATE = 1500, 2e-3
"""The rate is the best of three for LoRA and for elastic adapters on such a task, as the claim on Shears found."""
TRIALS = 100
LANGUAGE: dict[str, Any] = {
    "steps": 120,
    "lr": 1e-3,
    "batch": 1,
    "ranks": (8,),
    "widths": (1.0, 0.75, 0.5),
    "tune_steps": 0,
}
"""Of SmolLM2: one window of 256 tokens at each step."""
MARGIN = 1.0
FEW = 0.05
"""Share of all numbers that have optimizer state, at most."""
_TEST = 16  # windows of 256 tokens of each text that SmolLM2 is judged on


def run(quick: bool, store: Store) -> list[Inequality]:
    """Measure what is not stored yet, publish and judge it."""
    return _elastic.run("lonas", quick, store, cells=cells, judge=judge, needs=(_tasks.languages, _tasks.addresses))


def cells(scale: Scale, store: Store) -> Iterator[Cell]:
    """Yield what is measured, seed by seed."""
    facts, it = {"steps": STEPS, "trials": TRIALS, "rate": RATE, "ranks": RANKS}, partial(fresh, store)
    for seed in scale.seeds:
        yield Cell(f"lonas-{seed}", {**facts, "seed": seed}, lambda folder, seed=seed: made(it(), folder, scale, seed))
        for share in WIDTHS:
            yield Cell(
                f"lora-{share:g}-{seed}",
                {**facts, "seed": seed, "share": share},
                lambda _, share=share, seed=seed: lora(it(), share, scale.of(STEPS), seed),
            )
    yield Cell("language", {"settings": LANGUAGE, "test": _TEST}, partial(language, scale))


def fresh(store: Store) -> Subject:
    """MiniLM with a new head, which has learnt nothing."""
    return _elastic.encoder(store.scratch("model", {"steps": 0}), _tasks.languages(), steps=0)


def made(it: Subject, folder: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """The super-network, searched; what is cut out of it, and each width."""
    settings = {
        "steps": scale.of(STEPS), "lr": RATE, "ranks": RANKS, "widths": WIDTHS, "heads": HEADS, "tune_steps": 0,
        "multiple": 1,
    }  # fmt: skip
    place = _elastic.supernet(it, folder, method="lonas", settings=settings, trials=scale.of(TRIALS, 12), seed=seed)
    found = _elastic.measured(it, place, (CHEAP,), folder / "cut")
    details, model = read_manifest(place).lineage[0].details, pipeline.load(place)
    space = Space.from_json(read_manifest(place).space)
    widths = {f"{share:g}": _elastic.packed(at_width(model, space, share), _elastic.objective(it)) for share in WIDTHS}
    return {
        **found, "widths": widths, "trained": details["trained"] / details["of"],
        "latency": _elastic.latency(it, folder / "cut" / f"{CHEAP:g}"),
    }  # fmt: skip


def at_width(model: Model, space: Space, share: float) -> Model:
    """Return what a super-network gives at one share of all widths and the largest rank, adapters merged."""
    values = {
        axis.name: axis.full if axis.name.endswith(".rank") else max(c for c in axis.choices if c <= share * axis.full)
        for axis in space.axes
    }
    small: Model = extract(model, Subnet(values), space=space)
    merge_lora(small)
    return small


def lora(it: Subject, share: float, steps: int, seed: int) -> dict[str, Any]:
    """Prune to a width by magnitude, then train plain adapters of the largest rank and the head."""
    judge, given = _elastic.objective(it), _elastic.original(it)
    work = given.derived(extract(given, given.space().full).module)
    reorder(work, ranking(work, saliency(work, "l1")))
    subnet, space = _elastic.uniform(work, share, multiple=1)
    small = extract(work, subnet, space=space)
    LoNAS(LoNAS.Config(ranks=RANKS[:1])).adapt(small, seed=seed)
    task = judge.task(small)
    train(task, judge.training(steps=steps, lr=RATE, batch=None, max_seconds=None), seed=seed)
    with torch.no_grad():
        merge_lora(small)
    macs = Counter(small).count().macs / Counter(given).count().macs
    return {"test": _elastic.packed(small, judge), "macs": macs}


def language(scale: Scale, folder: Path) -> dict[str, Any]:
    """SmolLM2 elastic in its MLPs, beside LoRA on SmolLM2 cut to each width: perplexity of both texts."""
    settings = {**LANGUAGE, "steps": scale.of(LANGUAGE["steps"])}
    model, texts = pipeline.load("smollm2-135m"), windows()
    assignments = _elastic.assignments(settings)
    pipeline.supernet(
        "smollm2-135m", method="lonas", data=str(_tasks.addresses()), settings=assignments, out=folder / "S"
    )
    whole, space = pipeline.load(folder / "S"), Space.from_json(read_manifest(folder / "S").space)
    found: dict[str, Any] = {"given": perplexities(model, texts)}
    for share in WIDTHS:
        small = at_width(whole, space, share)
        found[f"lonas-{share:g}"] = {**perplexities(small, texts), "params": Counter(small).count().params}
        values = {
            axis.name: max(c for c in axis.choices if c <= share * axis.full)
            for axis in space.axes
            if axis.name.endswith(".width")
        }
        cut: Model = extract(model, {**model.anatomy.space(finest=True).full, **values})
        found[f"cut-{share:g}"] = perplexities(cut, texts)
        found[f"lora-{share:g}"] = perplexities(_tuned_by_lora(cut, settings), texts)
    return found


def windows() -> dict[str, torch.Tensor]:
    """Held-out windows of the addresses, and of text that nothing is tuned to."""
    model = pipeline.load("smollm2-135m")
    sources = {"addresses": str(_tasks.addresses()), "other text": None}
    return {name: text_splits(model, source, WINDOWS, seed=0).test[:_TEST] for name, source in sources.items()}


def perplexities(model: Model, texts: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Perplexity by text."""
    return {name: perplexity(list(score_text(model, rows).nll)) for name, rows in texts.items()}


def _tuned_by_lora(small: Model, settings: dict[str, Any]) -> Model:
    """Train plain adapters on a model that was cut already, as many steps."""
    work = small.derived(extract(small, small.anatomy.space(finest=True).full).module)
    _, splits = data_for(work, _tasks.addresses(), seed=0, searched=True)
    judge = NextToken(splits)
    LoNAS(LoNAS.Config(ranks=settings["ranks"])).adapt(work, seed=0)
    made_of = judge.training(steps=settings["steps"], lr=settings["lr"], batch=settings["batch"], max_seconds=None)
    train(judge.task(work), made_of, seed=0)
    merge_lora(work)
    return work


def judge(found: Cells, seeds: Sequence[int]) -> list[Inequality]:
    """Turn the cells into inequalities."""
    made_of = [found[f"lonas-{seed}"] for seed in seeds]
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
    tests, slow = [one["test"] for one in cut], max(one["latency"][2] for one in made_of)
    return [
        *told,
        Inequality.of("multiply-accumulates of what was found, most", most, "<=", CHEAP),
        _elastic.not_worse("what was found against LoRA on the whole model, points", tests, lora_of[1.0], MARGIN),
        Inequality.of("share of numbers with optimizer state, most", few, "<=", FEW),
        Inequality.of("latency of what was found, upper end", slow, "<", 1.0),
    ]
