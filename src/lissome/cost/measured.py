"""How long a request takes, of one model or of two in turns: prefill and decode, or one forward.

A causal language model reads a prompt and writes tokens. A request to any other model (an encoder, a model of images,
an encoder-decoder) is one forward of a made-up input (`lissome.models.example`), without a prefill or decode figure.

Two models are compared in lockstep inside one process: prefill A, prefill B, one token of A, one of B …, with the
order swapped every time. Whatever else the machine does then falls on both. A request's decode time is its number
of steps times the *median* step, so that a time slice taken by another job is not counted as the model's; over
rounds the median is taken again, and the interval of a ratio resamples rounds, in which both models were timed
together. The spread of all steps (p10, p90) is reported beside it, so that a noisy machine shows. Of a model that
only runs forward, a round takes the median of several passes.

In turns, models share the caches of the machine: one that would fit into the last-level cache when alone is timed as
if it did not.
"""

# B batch, T prompt tokens, V vocabulary

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lissome.core.budget import TERMS
from lissome.core.config import MethodConfig, option
from lissome.core.errors import NumericsError, UnsupportedModelError
from lissome.core.events import EventStream
from lissome.core.metrics import Metric
from lissome.cost.clock import Clock, fixed_threads
from lissome.cost.timed import Timed, Writing
from lissome.models.anatomy import TASKS
from lissome.models.example import described, example
from lissome.models.model import Model
from lissome.models.parts import CACHES
from lissome.ops.stats import ratio_of_medians

ROUNDS = 7
"""Default rounds; each holds `Request.new` decode steps of every model, so that 7 rounds are 441 steps."""

_ROUND, _MOST = 0.5, 9  # s and forwards of a round, of models that only run forward
_WARM_STEPS = 5  # enough for allocators, thread pools and kernels' first-call choices to settle


@dataclass(frozen=True, kw_only=True)
class Request(MethodConfig):
    """The request whose time is the budget's ``latency``."""

    prompt: int = option(128, "prompt tokens", low=1)
    new: int = option(64, "new tokens, the first of which the prefill gives", low=2)
    batch: int = option(1, "requests at once; 1 is a user at a laptop", low=1)

    @property
    def steps(self) -> int:
        """Decode steps: the prefill already gives the first new token."""
        return self.new - 1


@dataclass(frozen=True)
class Lap:
    """One request of one model.

    Attributes:
        prefill: Seconds until the first new token, or of the forward.
        steps: Seconds of every further token; empty for a forward.
    """

    prefill: float
    steps: tuple[float, ...]

    @property
    def step(self) -> float:
        """Seconds of the median decode step."""
        return float(np.median(self.steps))

    @property
    def latency(self) -> float:
        """Seconds of the request when every decode step is the median one."""
        return self.prefill + (len(self.steps) * self.step if self.steps else 0.0)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one model took.

    Attributes:
        metrics: ``latency``, median seconds of a request, and where tokens are written ``prefill``, prompt tokens per
            second, and ``decode``, new tokens per second.
        spread: 10th and 90th percentile by metric name, in the metric's unit; of single steps for ``decode``.
        laps: The measurements themselves.
    """

    metrics: tuple[Metric, ...]
    spread: Mapping[str, tuple[float, float]]
    laps: tuple[Lap, ...]

    def metric(self, name: str) -> Metric:
        """Return a metric by name.

        Raises:
            KeyError: When the model has none of that name.
        """
        return {metric.name: metric for metric in self.metrics}[name]

    def figures(self) -> dict[str, float]:
        """Return the values by budget term."""
        return {metric.name: metric.value for metric in self.metrics}

    @classmethod
    def of(cls, laps: Sequence[Lap], request: Request) -> Timing:
        """Sum up the laps of one model."""
        samples = _samples(laps, request)
        spread = {name: _tails(values) for name, values in samples.items()}
        if "decode" in samples:
            spread["decode"] = _tails([request.batch / step for lap in laps for step in lap.steps])
        kinds = {name: TERMS[name] for name in samples}
        metrics = tuple(_median(name, samples[name], kind.unit, kind.better) for name, kind in kinds.items())
        return cls(metrics=metrics, spread=spread, laps=tuple(laps))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models timed in turns.

    Attributes:
        base: The original.
        other: The model compared with it.
        ratios: Other ÷ base by budget term, each with its 95 % interval; below 1 is better for ``latency``, above 1
            for ``prefill`` and ``decode``.
    """

    base: Timing
    other: Timing
    ratios: Mapping[str, Metric]


Target = Model | nn.Module | Writing


def measure(
    target: Target,
    request: Request | None = None,
    *,
    rounds: int = ROUNDS,
    threads: int | None = None,
    events: EventStream | None = None,
) -> Timing:
    """Time requests of one model.

    Args:
        target: The model, in evaluation mode, on a CPU or a CUDA GPU; or what writes by other means.
        request: The request (default: 128 prompt tokens, 64 new ones, batch 1).
        rounds: Requests to time, after a short warm-up.
        threads: CPU threads (default: as many as torch uses now).
        events: Where progress is reported.

    Raises:
        NumericsError: When the model's logits are NaN.
    """
    request = request or Request()
    (laps,) = race([target], request, rounds=rounds, threads=threads, events=events)
    return Timing.of(laps, request)


def compare(
    base: Target,
    other: Target,
    request: Request | None = None,
    *,
    rounds: int = ROUNDS,
    threads: int | None = None,
    events: EventStream | None = None,
) -> Comparison:
    """Time two models in turns; arguments and errors as in `measure`."""
    _, (comparison,) = compare_all(base, [other], request, rounds=rounds, threads=threads, events=events)
    return comparison


def compare_all(
    base: Target,
    others: Sequence[Target],
    request: Request | None = None,
    *,
    rounds: int = ROUNDS,
    threads: int | None = None,
    events: EventStream | None = None,
) -> tuple[Timing, list[Comparison]]:
    """Time several models in turns, and compare each with the first one; arguments and errors as in `measure`."""
    request = request or Request()
    first, *rest = race([base, *others], request, rounds=rounds, threads=threads, events=events)
    ours, timing = _samples(first, request), Timing.of(first, request)
    found = []
    for laps in rest:
        theirs = _samples(laps, request)
        ratios = {name: _ratio(name, theirs[name], ours[name]) for name in ours}
        found.append(Comparison(base=timing, other=Timing.of(laps, request), ratios=ratios))
    return timing, found


def _samples(laps: Sequence[Lap], request: Request) -> dict[str, list[float]]:
    """Figures of every lap by budget term."""
    found = {"latency": [lap.latency for lap in laps]}
    if all(lap.steps for lap in laps):
        found["prefill"] = [request.batch * request.prompt / lap.prefill for lap in laps]
        found["decode"] = [request.batch / lap.step for lap in laps]
    return found


def race(
    targets: Sequence[Target],
    request: Request,
    *,
    rounds: int = ROUNDS,
    threads: int | None = None,
    events: EventStream | None = None,
) -> list[list[Lap]]:
    """Time any number of models in lockstep; returns the laps of each, `rounds` long.

    Raises:
        NumericsError: When what a model gives is NaN.
        UnsupportedModelError: When the models compute different things, so that no request suits all.
    """
    events, forward = events or EventStream(), _only_forward(targets)
    with fixed_threads(threads), torch.inference_mode(), events.stage("time", rounds) as stage:
        runners = [_timed(target, request, forward=forward) for target in targets]
        warm = _lockstep(runners, 0 if forward else min(_WARM_STEPS, request.steps), 0)
        passes = _passes(warm) if forward else 1
        laps: list[list[Lap]] = [[] for _ in runners]
        for turn in range(rounds):
            again = [_lockstep(runners, 0 if forward else request.steps, turn + each) for each in range(passes)]
            for own, found in zip(laps, zip(*again, strict=True), strict=True):
                own.append(_middle(found))
            stage.advance()
    return laps


def _timed(target: Target, request: Request, *, forward: bool) -> Timed:
    if not isinstance(target, Model | nn.Module):
        return target.timed(request)
    return Forward(target, request) if forward else Runner(_module(target), request)


def asked(target: Model, request: Request | None = None) -> str:
    """Word what is timed of a model."""
    request = request or Request()
    if _writes(target):
        return f"{request.prompt} prompt tokens and {request.new} new ones, batch {request.batch}"
    return f"one forward of {described(example(target, tokens=request.prompt, batch=request.batch))}"


def _writes(target: Target) -> bool:
    return not isinstance(target, Model) or target.anatomy.task == "causal-lm"


def _only_forward(targets: Sequence[Target]) -> bool:
    """Whether a request is one forward; models are compared by the same request only."""
    tasks = {target.anatomy.task if isinstance(target, Model) else "causal-lm" for target in targets}
    if len(tasks) > 1:
        what = " and ".join(sorted(TASKS[task] for task in tasks))
        raise UnsupportedModelError(f"no one request suits {what}; compare models of one kind, or time each alone.")
    return not all(map(_writes, targets))


def _passes(warm: Sequence[Lap]) -> int:
    """How many forwards a round takes: what fits into `_ROUND` seconds, at most `_MOST`."""
    return int(min(_MOST, max(1, _ROUND / sum(lap.prefill for lap in warm))))


def _middle(laps: Sequence[Lap]) -> Lap:
    """One lap that stands for several forwards of a model; a lap alone is itself."""
    return laps[0] if len(laps) == 1 else Lap(float(np.median([lap.prefill for lap in laps])), ())


def _lockstep(runners: Sequence[Timed], steps: int, turn: int) -> list[Lap]:
    """Run one request of every model, a piece of each at a time, the order turned round after every piece."""
    orders = (runners, runners[::-1])
    prefills = {runner: runner.prefill() for runner in orders[turn % 2]}
    times: dict[Timed, list[float]] = {runner: [] for runner in runners}
    for step in range(steps):
        for runner in orders[(turn + step + 1) % 2]:
            times[runner].append(runner.step())
    for runner in runners:
        runner.close()
    return [Lap(prefills[runner], tuple(times[runner])) for runner in runners]


class Forward:
    """One model that reads the same made-up input again and again; it writes nothing."""

    def __init__(self, target: Model | nn.Module, request: Request) -> None:
        model = target if isinstance(target, Model) else Model(target)
        self._module, self._clock = model.module, Clock.of(model.module)
        self._inputs = example(model, tokens=request.prompt, batch=request.batch)

    def prefill(self) -> float:
        """Run forward once; seconds."""
        self._clock.settle()
        start = self._clock.mark()
        output = self._module(**self._inputs)
        end = self._clock.mark()
        self._clock.settle()
        _check(_first(output))
        return self._clock.seconds(start, end)

    def step(self) -> float:
        """Nothing follows a forward."""
        return 0.0

    def close(self) -> None:
        """Nothing is held."""


class Runner:
    """One model answering one request after the other: greedy, with its cache, without `generate` around it."""

    def __init__(self, module: nn.Module, request: Request) -> None:
        self._module, self._clock = module, Clock.of(module)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary(module), (request.batch, request.prompt), generator=generator)
        self._ids = ids.to(next(module.parameters()).device)  # LongTensor[B, T]
        self._token: Tensor = self._ids[:, :1]
        self._cache: dict[str, Any] = {}

    def prefill(self) -> float:
        """Read the prompt into a fresh cache; seconds."""
        self._cache = {}
        return self._forward(self._ids)

    def step(self) -> float:
        """Add one token; seconds."""
        return self._forward(self._token)

    def close(self) -> None:
        """Let the cache go."""
        self._cache = {}

    def _forward(self, ids: Tensor) -> float:
        self._clock.settle()
        start = self._clock.mark()
        output = self._module(ids, **self._cache, use_cache=True, logits_to_keep=1)
        self._token = output.logits[:, -1:].argmax(-1)
        end = self._clock.mark()
        self._clock.settle()
        self._cache = {name: output[name] for name in CACHES if name in output}
        _check(output.logits)
        return self._clock.seconds(start, end)


def _first(output: Any) -> Tensor:
    """The first tensor of what a forward gives."""
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return next(value for value in leaves if isinstance(value, Tensor))


def _check(output: Tensor) -> None:
    if torch.isnan(output.flatten()[-1]):
        raise NumericsError("what the model gives is NaN; check its weights before timing it.")


def vocabulary(module: nn.Module) -> int:
    """Number of rows of a model's input embedding."""
    embedding: nn.Embedding = module.get_input_embeddings()  # type: ignore[operator]
    return embedding.num_embeddings


def _module(target: Model | nn.Module) -> nn.Module:
    if not isinstance(target, Model):
        return target
    target.anatomy.require("causal-lm", "a request")
    return target.module


def _tails(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, (10, 90))
    return float(low), float(high)


def _median(name: str, values: Sequence[float], unit: str, better: Any) -> Metric:
    interval = ratio_of_medians(values, [1.0], paired=False)  # over 1: the interval of one median
    return Metric(
        name=name, value=interval.value, unit=unit, better=better,
        low=interval.low, high=interval.high, n=interval.n,
    )  # fmt: skip


def _ratio(name: str, other: Sequence[float], base: Sequence[float]) -> Metric:
    interval = ratio_of_medians(other, base)
    return Metric(
        name=f"{name}_ratio", value=interval.value, better="lower" if name == "latency" else "higher",
        low=interval.low, high=interval.high, n=interval.n,
    )  # fmt: skip
