"""What the arms, rates and shares of the claim are; the tables need nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

RANKS = (16, 8, 4)


def middle(ranks: tuple[int, ...]) -> int:
    """What the heuristic takes everywhere."""
    return ranks[(len(ranks) - 1) // 2]


MIDDLE = middle(RANKS)
SCALE = 2.0
"""alpha over the largest rank, that of the papers; an adapter of one smaller rank has the same."""

ENCODER, DECODER = "minilm", "smollm2-135m"

SHARE = 0.5
SHARES = (0.5, 0.6, 0.4, 0.7)
"""Shares of zeros of the sweep on text, the most important first; most of the claim is at `SHARE`."""


@dataclass(frozen=True)
class Arm:
    """One way to get a tuned model.

    Attributes:
        label: How tables call it.
        base: What the weights are under the adapters.
        adapter: What is trained beside the head.
        ranks: Ranks it is built with, the largest first; an elastic one is trained at all of them.
        draws: Which ranks a step trains: always the largest, one per group, or one for all groups.
        rate: The arm whose learning rates were tried; this one uses the best of those.
        scale: alpha over the largest rank.
        dropout: Of the adapters' inputs. None by default: ranks that are drawn are noise enough.
        steps: Of the training, where they are not those of all arms.
    """

    label: str
    base: Literal["wanda", "magnitude", "dense"] = "wanda"
    adapter: Literal["plain", "masked", "quantised", "none"] = "plain"
    ranks: tuple[int, ...] = RANKS
    draws: Literal["largest", "each", "together"] = "largest"
    rate: str = "lora"
    scale: float = SCALE
    dropout: float = 0.0
    steps: int | None = None


ARMS = {
    "nls": Arm("**NLS**, one run for all ranks", draws="each", rate="nls"),
    "lora": Arm(f"LoRA of rank {RANKS[0]}"),
    **{f"lora-{rank}": Arm(f"LoRA of rank {rank}", ranks=(rank,)) for rank in RANKS[1:]},
    "masked": Arm("**NLS, masked** (SparsePEFT), merged", adapter="masked", draws="each", rate="nls"),
    "quantised": Arm("**NLS, 4 bits** (QA-SparsePEFT), merged", adapter="quantised", draws="each", rate="nls"),
    "together": Arm("DyLoRA: one rank per step for all groups", draws="together", rate="nls"),
    "dense": Arm(f"LoRA of rank {RANKS[0]} on the dense model", base="dense", ranks=RANKS[:1]),
    "magnitude": Arm("NLS on a base pruned by magnitude", base="magnitude", draws="each", rate="nls"),
    "head": Arm("sparse model, head alone", adapter="none", ranks=(), rate="head"),
}
"""Arms on classes of texts; the base is pruned by Wanda where none is named."""


SWEEP: dict[str, dict[str, tuple[Any, ...]]] = {
    "nls": {
        "steps": (1000, 9000),
        "ranks": ((RANKS[0], RANKS[-1]), RANKS[1:]),
        "scale": (SCALE / 2, 2 * SCALE),
        "dropout": (0.05, 0.1),
    },
    f"lora-{RANKS[-1]}": {"steps": (1000, 9000), "scale": (SCALE / 2, 2 * SCALE), "dropout": (0.05, 0.1)},
}
"""Settings that are tried beside an arm's own, one at a time, with seed 0; 9,000 steps are those of a run per rank."""


def swept(name: str) -> Iterator[tuple[str, str, Arm]]:
    """Yield every other setting of an arm: what is set, to what, and the arm that has it."""
    for knob, others in SWEEP[name].items():
        for value in others:
            yield knob, shown(value), replace(ARMS[name], **{knob: value})


def shown(value: Any) -> str:
    """A setting as tables and cells call it."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def used(arm: Arm) -> str:
    """The cut with which an arm is used: the middle rank where it has learnt all, else the only one that it has."""
    return str(middle(arm.ranks)) if arm.draws != "largest" else "".join(map(str, arm.ranks[:1]))


def served(arm: Arm) -> tuple[str, ...]:
    """The cuts that an arm is to serve: all ranks where it has learnt all, else the one that it is used with."""
    return tuple(map(str, arm.ranks)) if arm.draws != "largest" else (used(arm),)


RATES = {
    "nls": (5e-4, 1e-3, 2e-3),
    "lora": (5e-4, 1e-3, 2e-3),
    "head": (1e-3, 3e-3, 1e-2),
}
"""Learning rates that were tried, as many for each; the best on validation texts with seed 0 is used with all seeds.

Judged by the mean over the cuts that the arm is to serve: one of them alone differs by less than its chance.
"""

TEXT_ARMS = {name: ARMS[name] for name in ("nls", "lora", "dense")}
"""Arms on text that are trained; `CUTS` of the second are free."""
TEXT_RATES = (1e-3, 2e-3, 4e-3)

CUTS = {
    "naive": f"LoRA of rank {RANKS[0]} cut to its leading ranks",
    "svd": f"LoRA of rank {RANKS[0]} cut by SVD",
}
"""What becomes of a trained adapter of the largest rank when a smaller one is wanted."""
