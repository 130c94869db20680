"""How long the parts of a job take, predicted: operations and bytes over what this machine reaches.

Good to a factor of about two: how many removals a search tries is known only when it has run. It is said before any
work, so that nobody waits for an hour who expected a minute.
"""

# T tokens, D residual width, V vocabulary, L blocks

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from lissome.core.method import ModelCard
from lissome.cost.measured import ROUNDS, Request
from lissome.cost.roofline import Peaks, measure_peaks
from lissome.models.precision import fast_dtype

_REACHED = 0.45  # share of the best matrix speed that a whole forward reaches: norms, attention and softmax are not it
_BACKWARD = 3.0  # a training step in forwards: activations' and adapters' gradients, and the forward itself
_READ = 0.7  # share of the memory's best that single-token steps reach


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What this machine does at best in the type it is fastest in, and in float32."""

    fast: Peaks
    exact: Peaks


@cache
def speeds_here() -> Speeds:
    """Measure this machine, once per process; takes two to three seconds."""
    exact = measure_peaks()
    return Speeds(fast=exact if fast_dtype() == torch.float32 else measure_peaks(dtype=fast_dtype()), exact=exact)


def forward_seconds(card: ModelCard, tokens: float, peaks: Peaks, *, depth: float = 1.0, head: bool = True) -> float:
    """Seconds of a forward of so many tokens through a share `depth` of the blocks, and the head."""
    weights = depth * card.figures["block_params"] + (card.hidden * card.vocabulary if head else 0)
    return 2 * weights * tokens / (peaks.flops * _REACHED)


def search_seconds(
    card: ModelCard, speeds: Speeds, *, kept: float, ordering: int, scored: float, looked: float, kinds: int
) -> float:
    """Seconds of a greedy removal, ordering included.

    Args:
        card: The original.
        speeds: Of this machine.
        kept: Share of the block parameters that stays.
        ordering: Tokens that channels are ordered by.
        scored: Moves that are scored at a step.
        looked: Looks at all moves before the first step, and, spread over them, at later steps, in whole scores.
        kinds: Moves that a block has (attention, MLP, width …).
    """
    n, length = card.windows
    score = forward_seconds(card, n * length, speeds.fast, depth=0.5)  # on average half of the blocks follow a change
    steps = 8 * card.layers * (1 - kept)  # a width step is an eighth of a block's channels
    looks = kinds * card.layers * looked
    return forward_seconds(card, ordering, speeds.fast, head=False) + score * (looks + steps * (1 + scored))


def training_seconds(card: ModelCard, speeds: Speeds, *, tokens: int, kept: float) -> float:
    """Seconds of training adapters on so many tokens."""
    return _BACKWARD * forward_seconds(card, tokens, speeds.fast, depth=kept)


def measuring_seconds(card: ModelCard, speeds: Speeds, *, tokens: int, kept: float) -> float:
    """Seconds of timing original and result in turns and scoring both on so many held-out tokens, in float32."""
    request = Request()
    step = card.figures["disk"] / (speeds.exact.bandwidth * _READ) if "causal-lm" in card.tags else 0.0
    timed = (ROUNDS + 1) * (forward_seconds(card, request.prompt, speeds.exact) + request.steps * step)
    return (1 + kept) * (timed + forward_seconds(card, tokens, speeds.exact))
