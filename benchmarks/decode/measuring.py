"""Times arms in turns, with the memory's bandwidth measured before each turn, and scores them on the same windows.

On one thread, times are those that this process computes: what other programs take of the machine's time falls out,
what they take of its memory bandwidth does not. On more threads they are those of the wall clock.
"""

# N windows, T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._turns import Clock, in_turns
from benchmarks.decode.apart import Remote
from benchmarks.decode.arms import Arm, request
from lissome.engine.decode.decoder import Floats
from lissome.ops.kernels import native

_PIECE = 128  # tokens whose logits are held at a time


def race(arms: Mapping[str, Arm | Remote], *, rounds: int, threads: int, prompt: int, new: int) -> dict[str, Any]:
    """Let every arm read a prompt and write after it, in every round, one arm after the other.

    Args:
        arms: By name.
        rounds: How often each is timed, after one round that is thrown away.
        threads: Threads, of which the arms know.
        prompt: Tokens of the prompt; all arms read the same.
        new: Tokens after it, given and not chosen, so that all arms do the same work.

    Returns:
        By arm and round: seconds of the prompt (``prefill``) and of the median new token (``step``); ``bytes`` that a
        new token reads, with the cache in the middle of the text; tokens of the ``prompt``; ``bandwidth`` by arm and
        round, in bytes per second.
    """
    ids = [(1 + 7 * step) % min(arm.tokens for arm in arms.values()) for step in range(prompt + new)]
    found: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "step": []} for name in arms}

    def turn(name: str, now: Clock) -> None:
        arm = arms[name]
        first, step = arm.request(ids, prompt) if isinstance(arm, Remote) else request(arm, ids, prompt, now)
        found[name]["prefill"].append(first)
        found[name]["step"].append(step)

    sizes = {name: arm.nbytes + arm.cell * (prompt + new // 2) for name, arm in arms.items()}
    bandwidth = in_turns(sizes, turn, rounds=rounds, threads=threads)
    return {
        "arms": {
            name: {kind: times[1:] for kind, times in found[name].items()}
            | {"bytes": sizes[name], "weights": arm.nbytes, "note": arm.note}
            for name, arm in arms.items()
        },
        "prompt": prompt,
        "bandwidth": bandwidth,
        "kernels": native.choice().name,
    }


def losses(arm: Arm, windows: NDArray[np.int64]) -> list[float]:
    """Return the mean loss of the next tokens of every window Int[N, T], nats."""
    found = []
    for window in windows:
        total = 0.0
        for first, logits in _pieces(arm, window):
            total += _loss(_log_softmax(logits), window, first)
        found.append(total / (len(window) - 1))
    return found


def closeness(arm: Arm, other: Arm, windows: NDArray[np.int64]) -> dict[str, Any]:
    """Compare two arms of one model on the same windows.

    Returns:
        ``nll`` of both by window, ``kl`` (of the first from the second, nats per token) and ``agreement`` (share of
        tokens whose likeliest successor is the same).
    """
    kl, same, nll = [], [], {"arm": list[float](), "other": list[float]()}
    for window in windows:
        totals = dict.fromkeys(nll, 0.0)
        for (first, mine), (_, theirs) in zip(_pieces(arm, window), _pieces(other, window), strict=True):
            own, base = _log_softmax(mine), _log_softmax(theirs)
            kl.append((np.exp(base) * (base - own)).sum(-1))
            same.append(own.argmax(-1) == base.argmax(-1))
            for name, said in (("arm", own), ("other", base)):
                totals[name] += _loss(said, window, first)
        for name, total in totals.items():
            nll[name].append(total / (len(window) - 1))
    return {**nll, "kl": float(np.concatenate(kl).mean()), "agreement": float(np.concatenate(same).mean())}


def _loss(said: Floats, window: NDArray[np.int64], first: int) -> float:
    """Sum of the losses of the tokens after those that a piece from `first` on consists of."""
    targets = window[first + 1 : first + 1 + len(said)]
    return -float(said[np.arange(len(targets)), targets].sum())


def _pieces(arm: Arm, window: NDArray[np.int64]) -> Any:
    """Yield where a piece begins, and its logits [T', V]."""
    arm.reset()
    for first in range(0, len(window), _PIECE):
        yield first, arm.feed(window[first : first + _PIECE].tolist(), first, every=True)


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found
