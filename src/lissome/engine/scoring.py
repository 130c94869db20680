"""Scores every token of a text under a model and a baseline: the two run one after the other, so that one rests."""

# n windows, B windows of a batch, T tokens of a window, D residual width

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lissome.core.errors import NumericsError
from lissome.core.events import EventStream, Stage
from lissome.engine.forward import last_states
from lissome.models.model import Model
from lissome.ops.losses import compare, rows_nll

BATCH_TOKENS = 1024
"""Tokens of a forward: full matrix speed on a CPU, and the hidden states of a batch stay in its cache."""

_STATES_BYTES = 256 << 20  # of the baseline's last states that are held at a time


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """Per-token scores on windows; each field is a Tensor[n, T-1], those of the baseline None without one.

    Attributes:
        nll: Negative log-likelihood under the model, nats.
        baseline_nll: The same under the baseline.
        kl: KL(baseline‖model) in nats.
        agrees: Whether both rank the same token first (bool).
    """

    nll: Tensor
    baseline_nll: Tensor | None = None
    kl: Tensor | None = None
    agrees: Tensor | None = None


@torch.no_grad()
def score_text(
    model: Model,
    windows: Tensor,
    *,
    baseline: Model | None = None,
    events: EventStream | None = None,
    release: Callable[[Model], None] | None = None,
) -> TextScores:
    """Score every token of windows, a batch at a time and a piece of the vocabulary projection at a time.

    Args:
        model: The model; it may be masked or cut.
        windows: LongTensor[n, T], no padding.
        baseline: What to compare it with; it runs first, over as many windows as have room for its last states.
        events: Where progress goes: a stage ``evaluate`` counted in windows of either model.
        release: As in `evaluate`.

    Raises:
        NumericsError: When a loss is NaN or infinite; names the window.
    """
    rows: list[TextScores] = []
    models = 1 if baseline is None else 2
    with (events or EventStream()).stage("evaluate", models * len(windows)) as stage:
        for start, group in _groups(windows, baseline):
            states = [] if baseline is None else _states(baseline, group, stage, release)
            for index, batch in enumerate(_batches(group)):
                reference = states[index] if states else None
                rows.append(_score_batch(model, batch, baseline, reference))
                at = start + index * len(_batches(group)[0])
                _check(rows[-1].nll, at, model)
                if rows[-1].baseline_nll is not None and baseline is not None:
                    _check(rows[-1].baseline_nll, at, baseline)
                _advance(stage, rows[-1].nll)
            if release is not None:
                release(model)

    def whole(name: str) -> Tensor | None:
        pieces = [getattr(row, name) for row in rows]
        return None if pieces[0] is None else torch.cat(pieces)

    return TextScores(
        nll=torch.cat([row.nll for row in rows]),
        baseline_nll=whole("baseline_nll"),
        kl=whole("kl"),
        agrees=whole("agrees"),
    )


def _groups(windows: Tensor, baseline: Model | None) -> Iterator[tuple[int, Tensor]]:
    """Windows whose last states under the baseline fit into memory together, and the number of the first."""
    size = len(windows)
    if baseline is not None:
        item = next(baseline.module.parameters()).dtype.itemsize
        size = max(1, _STATES_BYTES // (windows.shape[1] * baseline.anatomy.hidden * item))
    for start in range(0, len(windows), size):
        yield start, windows[start : start + size]


def _batches(windows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(windows, max(1, BATCH_TOKENS // windows.shape[1]))


def _states(baseline: Model, windows: Tensor, stage: Stage, release: Callable[[Model], None] | None) -> list[Tensor]:
    """Last states of the baseline, batch by batch; only its head is needed after that."""
    found = []
    for batch in _batches(windows):
        found.append(last_states(baseline, batch)[:, :-1].clone())
        stage.advance(len(batch))
    if release is not None:
        release(baseline)
    return found


def _score_batch(model: Model, batch: Tensor, baseline: Model | None, reference: Tensor | None) -> TextScores:
    hidden = last_states(model, batch)[:, :-1]
    targets = batch[:, 1:].flatten().to(hidden.device)
    shape = (len(batch), batch.shape[1] - 1)
    if baseline is None or reference is None:
        return TextScores(nll=rows_nll(hidden.flatten(0, 1), targets, model.anatomy.head).view(shape).cpu())
    found = compare(reference.flatten(0, 1), hidden.flatten(0, 1), targets, baseline.anatomy.head, model.anatomy.head)
    nll, other, kl, agrees = (column.view(shape).cpu() for column in found)
    return TextScores(nll=other, baseline_nll=nll, kl=kl, agrees=agrees)


def _check(nll: Tensor, start: int, model: Model) -> None:
    good = torch.isfinite(nll).all(dim=1)
    if not good.all():
        window = start + int((~good).nonzero()[0])
        raise NumericsError(
            f"the loss of {model.name} on window {window} is NaN or infinite; check the weights, or use float32."
        )


def _advance(stage: Stage, nll: Tensor) -> None:
    stage.advance(len(nll), ppl=bounded_exp(float(nll.double().mean())))


def bounded_exp(nats: float) -> float:
    """Return e**nats, at most e**700: a wrecked model gets a huge perplexity that JSON can still hold."""
    return math.exp(min(nats, 700.0))


def perplexity(losses: Sequence[Tensor], mode: Literal["sparsegpt", "tokens"] = "sparsegpt") -> float:
    """Return the perplexity of windows.

    Args:
        losses: Next-token NLL of each window in nats, Tensor[T-1] each.
        mode: ``"sparsegpt"`` weighs a window by its T tokens although T-1 are predicted, as the reference code does;
            ``"tokens"`` is the exact mean over predicted tokens. Equal for windows of equal length.
    """
    if mode == "sparsegpt":
        sizes = [len(window) + 1 for window in losses]
        total = sum(float(w.double().mean()) * size for w, size in zip(losses, sizes, strict=True))
        return bounded_exp(total / sum(sizes))
    return bounded_exp(sum(float(w.double().sum()) for w in losses) / sum(map(len, losses)))
