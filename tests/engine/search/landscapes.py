"""Spaces and figures that tests search: model-free, with a known best, and fast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from lissome.engine.search import Bound, Goal, Objective, Problem
from lissome.models.space import Axis, Space, Subnet


def layers(count: int) -> Space:
    """A stack of branches: each may go, or have one of eight widths; one of the first two must stay."""
    axes = []
    for index in range(count):
        axes += [Axis(f"l{index}", (0, 1)), Axis(f"l{index}.width", tuple(range(8, 72, 8)), switch=f"l{index}")]
    return Space(tuple(axes), (("l0", "l1"),))


def separable(space: Space, subnet: Mapping[str, int]) -> dict[str, float]:
    """A loss and a cost that add up over branches; what a branch is worth spans two orders of magnitude."""
    count = len(space.axes) // 2
    kept = [subnet[f"l{index}"] * subnet[f"l{index}.width"] / 64 for index in range(count)]
    worth = [10 ** (2 * ((index * 7 % count) / count - 1)) for index in range(count)]
    loss = sum(value * (1 - share) ** 2 for value, share in zip(worth, kept, strict=True))
    return {"loss": 4 * loss / count, "macs": sum(kept) / count}


def problem(count: int = 8, *, bound: float | None = None, objectives: tuple[str, ...] = ("loss", "macs")) -> Problem:
    """Loss against cost of a stack."""
    space = layers(count)
    bounds = () if bound is None else (Bound("macs", "<=", bound),)
    goal = Goal(tuple(Objective(name, "lower") for name in objectives), bounds)
    return Problem(space=space, goal=goal, evaluate=lambda subnet: separable(space, subnet))


def slow(seconds: float, log: Path, count: int = 8) -> Problem:
    """The same, slowly; every Subnet that is begun leaves a line in a file."""
    plain = problem(count)

    def evaluate(subnet: Subnet) -> Mapping[str, float]:
        with log.open("a") as file:
            file.write(",".join(map(str, subnet.values())) + "\n")
        time.sleep(seconds)
        return plain.evaluate(subnet)

    return Problem(space=plain.space, goal=plain.goal, evaluate=evaluate)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Model-free Spaces: any choices, also uneven ones, sometimes a switch and a quorum."""
    axes: list[Axis] = []
    keeps: list[str] = []
    for index in range(draw(st.integers(1, 5))):
        switch = None
        if draw(st.booleans()):
            switch = f"keep{index}"
            keeps.append(switch)
            axes.append(Axis(switch, (0, 1)))
        choices = tuple(sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=5))))
        axes.append(Axis(f"size{index}", choices, switch=switch))
    axes.append(Axis("other", (2, 3, 5)))
    return Space(tuple(axes), (tuple(keeps),) if keeps and draw(st.booleans()) else ())
