"""What schedules do to the tokens of held-out texts, and how long they take."""

# N new tokens, S texts

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._turns import Clock, in_turns
from benchmarks.pmpd.names import TAUGHT, Case
from lissome.engine.decode import Decoder, Session
from lissome.engine.decode.judge import Judge
from lissome.engine.decode.phases import Phases, Policy
from lissome.engine.decode.schedulers import KINDS, Learnt, switches, switching
from lissome.engine.decode.session import advance
from lissome.engine.decode.teach import teach
from lissome.models.nested.file import NestedFile, open_nested

Prompts = Sequence[Sequence[int]]


def judge(case: Case, file: NestedFile, prompts: Prompts, tokens: int) -> Judge:
    """Let high bits alone write."""
    return Judge(file, prompts, tokens=tokens, prefill=case.high, high=case.high)


def curve(case: Case, path: Path, prompts: Prompts, tokens: int) -> dict[str, Any]:
    """Divergence of every text by schedule.

    Returns:
        ``high first`` and ``low first``, by the share of steps at high bits: mean ``bits``, and ``kl`` of every text,
        nats per token. The share 0 is low bits alone, from which the chord to high bits begins.
    """
    one, steps = judge(case, open_nested(path), prompts, tokens), tokens - 1
    shares, ways = (0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75), list[tuple[str, float, list[int]]]()
    for share in shares:
        first = round(share * steps)
        high, low = [case.high] * first, [case.low] * (steps - first)
        ways += [("high first", share, high + low), ("low first", share, low + high)]
    found: dict[str, Any] = {"high first": {}, "low first": {}}
    for (way, share, bits), (kl, same) in zip(ways, one.compared([bits for *_, bits in ways]), strict=True):
        told = {"bits": float(np.mean(bits)), "kl": kl.mean(1).tolist(), "agreement": float(same.mean())}
        found[way][f"{share:.2f}"] = told
    return found


def schedulers(
    case: Case, path: Path, learnt_from: Prompts, prompts: Prompts, *, tokens: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Make every scheduler from some texts and judge it on others.

    A text's class is the smallest T whose divergence is at most the mean one at T = N/3, all on the texts learnt from:
    a limit at which classes differ.

    Returns:
        ``limit``, ``prior`` (shares of classes), ``static`` (T that the limit gives all texts), and by scheduler and
        seed: mean ``bits`` and ``kl`` of every text.
    """
    file = open_nested(path)
    school = judge(case, file, learnt_from, tokens)
    table = school.table(case.low)
    limit = float(table[:, 1].mean())
    labels = (table <= limit).argmax(1)
    prior = np.bincount(labels, minlength=4).astype(np.float32) / len(labels)
    features = school.features()
    exam = judge(case, file, prompts, tokens)
    found: dict[str, Any] = {"limit": limit, "prior": prior.tolist(), "by": {}}
    found["static"] = int(next(at for at, kl in zip(switches(tokens), table.mean(0), strict=True) if kl <= limit))
    decided: dict[str, list[list[int]]] = {}
    for word, kind in KINDS.items():
        for seed in seeds if word in TAUGHT else seeds[:1]:
            weights: dict[str, Any] = {"prior": prior} if word == "random" else {}
            if word in TAUGHT:
                heads = _heads(file) if word == TAUGHT[0] else None
                weights = teach(features, labels.tolist(), heads=heads, seed=seed)
            made = kind(case.high, case.high, case.low, tokens, weights=weights)
            decided[f"{word}-{seed}"] = exam.decided(made)
    for (name, bits), (kl, _) in zip(decided.items(), exam.compared(list(decided.values())), strict=True):
        found["by"][name] = {"bits": np.mean(bits, axis=1).tolist(), "kl": kl.mean(1).tolist()}
    return found


def _heads(file: NestedFile) -> int:
    return max(layer.attention.heads for layer in file.spec.layers if layer.attention is not None)


def speed(case: Case, path: Path, prompts: Prompts, *, tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """Time uniform bits, a schedule and the learnt scheduler in turns; each round takes another prompt.

    Returns:
        ``seconds`` of the new tokens by arm and round, ``deciding`` seconds of the learnt scheduler by round, ``bytes``
        of weights that a token reads by arm, and the ``bandwidth`` by arm and round in bytes per second.
    """
    decoder = Decoder.open(path, cells=max(map(len, prompts)) + tokens, threads=threads)
    heads, size = _heads(decoder.file), max(one.attention.size for one in decoder.spec.layers if one.attention)
    example = np.zeros((1, size), np.float32)
    weights = teach([(example, example)], [0], heads=heads, seed=0, epochs=0)  # untaught, but of the right sizes
    learnt = Learnt(case.high, case.high, case.low, tokens, weights=weights)
    arms: dict[str, Policy] = {
        f"{case.high} bits": Phases(case.high, ((case.high, None),)),
        f"{case.low} bits": Phases(case.high, ((case.low, None),)),
        "half": switching(case.high, case.high, case.low, tokens // 2, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    deciding: list[float] = []

    def turn(name: str, now: Clock) -> None:
        session = Session(decoder, keep=0)
        session.forget()
        logits = session.feed(prompts[len(seconds[name]) % len(prompts)], lambda _: case.high)
        start = now()
        learnt.decide(session)
        deciding.append(now() - start)
        steps = arms[name].decide(session)
        start = now()
        for step in range(tokens - 1):
            (logits,) = advance([session], [int(logits.argmax())], [steps.bits(step)])
        seconds[name].append(now() - start)

    size = {bits: decoder.weight_bytes(bits) for bits in (case.high, case.low)}
    read = dict(zip(arms, (size[case.high], size[case.low], (size[case.high] + size[case.low]) // 2), strict=True))
    bandwidth = in_turns(read, turn, rounds=rounds, threads=threads)
    return {
        "seconds": {name: times[1:] for name, times in seconds.items()},
        "deciding": deciding[len(arms) :],
        "bytes": read,
        "bandwidth": bandwidth,
        "steps": tokens - 1,
    }
