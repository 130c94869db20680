"""Greedy removal: of all moves that are still possible, make the one that hurts least, and again until it is enough.

A move is any change of a Subnet: a branch away, some channels, a KV group, a query head. Moves of unlike kinds compete
by a rank that the caller defines (the loss itself, or damage per parameter or per millisecond saved). Only what follows
the changed block is run again; with `lazy` only moves that still look best are scored again, in the manner of lazy
greedy maximisation (Minoux 1978): the damage of a move rarely falls while others are made, so that a stale damage is a
good lower bound. A move that was never scored is screened on a quarter of the windows first. Every accepted step is
checkpointed and can be continued after a kill.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lissome.core.events import EventStream, Stage
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.walk import Walk
from lissome.models.anatomy import Anatomy
from lissome.models.binding import Masking
from lissome.models.space import Space, Subnet

_SCREENED = 4  # a move that was never scored is first looked at on one in so many windows


@dataclass(frozen=True)
class Move:
    """One possible change.

    Attributes:
        axis: The axis that changes.
        value: Its new value.
        was: Its present value.
        block: First block whose output changes.
    """

    axis: str
    value: int
    was: int
    block: int

    @property
    def kind(self) -> str:
        """What is removed: ``"attention"``, ``"mlp"``, ``"width"``, ``"groups"`` or ``"queries"``."""
        return self.axis.rsplit(".", 1)[-1]

    def __str__(self) -> str:
        return f"{self.axis} {self.was}->{self.value}"


@dataclass(frozen=True)
class Step:
    """An accepted move, the loss after it (mean NLL in nats), and how many moves were scored to find it."""

    move: Move
    loss: float
    scored: int


@dataclass
class Trace:
    """The course of a greedy removal so far; JSON-able, so that a run can be continued.

    Attributes:
        subnet: What is left.
        start: Loss of the original, mean NLL in nats.
        steps: Accepted moves in order.
        stale: Damage of each move when it was last scored or screened, by its text.
    """

    subnet: Subnet
    start: float = math.nan
    steps: list[Step] = field(default_factory=list)
    stale: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Loss of what is left."""
        return self.steps[-1].loss if self.steps else self.start

    def subnets(self, space: Space) -> list[Subnet]:
        """The Subnet after each step, the full one first."""
        found = [space.full]
        for step in self.steps:
            found.append(space.canonical(found[-1].replace({step.move.axis: step.move.value})))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the trace as JSON-able fields."""
        steps = [
            [step.move.axis, step.move.value, step.move.was, step.move.block, step.loss, step.scored]
            for step in self.steps
        ]
        return {"subnet": self.subnet.to_json(), "start": self.start, "steps": steps, "stale": self.stale}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Trace:
        """Rebuild a trace from `to_json`."""
        steps = [Step(Move(*row[:4]), row[4], row[5]) for row in fields["steps"]]
        return cls(Subnet(fields["subnet"]), fields["start"], steps, dict(fields["stale"]))


class Rank(Protocol):
    """Orders moves: the lowest wins."""

    def __call__(self, damage: float, before: Subnet, after: Subnet) -> float:
        """Rank a move by its damage (rise of the loss, nats) and the Subnets before and after it."""


def lowest_loss(damage: float, before: Subnet, after: Subnet) -> float:  # noqa: ARG001
    """The rank of the papers: nothing but the damage counts."""
    return damage


def damage_per(cost: Callable[[Subnet], float]) -> Rank:
    """Rank moves by damage per unit of `cost` saved.

    A move that does no damage, or improves the loss, is ranked by its damage times the saving, so that the larger
    saving wins there too. A move that saves nothing is never made.
    """

    def rank(damage: float, before: Subnet, after: Subnet) -> float:
        saved = cost(before) - cost(after)
        if saved <= 0:
            return math.inf
        return damage / saved if damage > 0 else damage * saved

    return rank


def moves(space: Space, anatomy: Anatomy, subnet: Subnet, kinds: Iterable[str]) -> list[Move]:
    """List every single change of the given kinds that the Space still allows.

    Args:
        space: The Space.
        anatomy: The model's parts.
        subnet: What is left now.
        kinds: Branch kinds (removal) and dim names (one choice smaller).
    """
    wanted = frozenset(kinds)
    found: list[Move] = []
    for branch in anatomy.branches:
        if not subnet[branch.name]:
            continue
        if branch.kind in wanted and space.allows(subnet.replace({branch.name: 0})):
            found.append(Move(branch.name, 0, 1, branch.block))
        for dim in branch.dims:
            axis = space.by_name.get(branch.axis(dim.name))
            below = axis.below(subnet[axis.name]) if axis and dim.name in wanted else None
            if axis and below is not None:
                found.append(Move(axis.name, below, subnet[axis.name], branch.block))
    return found


class Greedy:
    """The removal loop over one model and one calibration set.

    Args:
        masking: The model under its mask; it follows the accepted moves.
        walk: The calibration windows.
        lazy: Score only moves that may be best (default), or all moves at every step.
        cached: Start each score at the changed block (default), or at the embeddings, as the published code does;
            then nothing is lazy.
        checkpoint: Where accepted steps are kept.
        events: Where progress is reported.
    """

    def __init__(
        self,
        masking: Masking,
        walk: Walk,
        *,
        lazy: bool = True,
        cached: bool = True,
        checkpoint: Checkpoint | None = None,
        events: EventStream | None = None,
    ) -> None:
        self.masking, self.walk, self.lazy, self.cached = masking, walk, lazy and cached, cached
        self._checkpoint, self._events = checkpoint, events or EventStream()
        self.trace = Trace(masking.space.full)
        saved = checkpoint.load() if checkpoint else None
        if saved is not None:
            self.trace = Trace.from_json(saved.state)
            masking.switch(self.trace.subnet)
        self._losses = walk.fill()  # of each window, for what is left now
        self._screen = max(1, len(self._losses) // _SCREENED)
        if saved is None:
            self.trace.start = float(self._losses.mean())

    def run(
        self, kinds: Iterable[str], *, rank: Rank, enough: Callable[[Subnet], bool], goal: Callable[[Subnet], float]
    ) -> Trace:
        """Make moves of the given kinds until `enough` holds or none is left.

        Args:
            kinds: As in `moves`.
            rank: Orders competing moves.
            enough: Whether a Subnet is small enough.
            goal: Share of the way that a Subnet has gone, 0..1; shown as progress.
        """
        kinds = tuple(kinds)
        if not self.lazy:
            self.trace.stale.clear()
        elif not enough(self.trace.subnet):  # nearly all moves are new at the start of a stage: show how far it is
            new = self._unseen(moves(self.masking.space, self.walk.model.anatomy, self.trace.subnet, kinds))
            with self._events.stage("look at every move", len(new)) as stage:
                for move in new:
                    self._look(move)
                    stage.advance()
        with self._events.stage("remove " + "+".join(kinds), 100, done=_percent(goal, self.trace.subnet)) as stage:
            while not enough(self.trace.subnet):
                step = self._best(moves(self.masking.space, self.walk.model.anatomy, self.trace.subnet, kinds), rank)
                if step is None:
                    break
                self._accept(step)
                self._report(stage, step, goal)
        return self.trace

    def _unseen(self, options: list[Move]) -> list[Move]:
        return [move for move in options if str(move) not in self.trace.stale]

    def _look(self, move: Move) -> None:
        """Note the damage of a move on the first windows, paired with the loss of the same windows before it."""
        with self._made(move):
            losses = self.walk.score(move.block, self._screen)
        self.trace.stale[str(move)] = float((losses - self._losses[: self._screen]).mean())

    def _best(self, options: list[Move], rank: Rank) -> Step | None:
        """Score moves, cheapest-looking first, until one is at least as good as all stale ranks."""
        if not options:
            return None
        for move in self._unseen(options) if self.lazy else ():
            self._look(move)
        scored: dict[Move, float] = {}
        queue = [(self._stale_rank(move, rank), index) for index, move in enumerate(options)]
        heapq.heapify(queue)
        best: tuple[float, int] | None = None
        while queue and (not self.lazy or best is None or queue[0] < best):
            _, index = heapq.heappop(queue)
            scored[options[index]] = self._score(options[index])
            fresh = (self._rank(options[index], scored[options[index]], rank), index)
            best = fresh if best is None else min(best, fresh)
        assert best is not None
        if math.isinf(best[0]):
            return None
        return Step(options[best[1]], scored[options[best[1]]], len(scored))

    def _score(self, move: Move) -> float:
        """Loss after a move; notes its damage."""
        with self._made(move):
            loss = float((self.walk.score(move.block) if self.cached else self.walk.plain()).mean())
        self.trace.stale[str(move)] = loss - self.trace.loss
        return loss

    @contextlib.contextmanager
    def _made(self, move: Move) -> Iterator[None]:
        before = self.trace.subnet
        self.masking.switch(self._after(move))
        try:
            yield
        finally:
            self.masking.switch(before)

    def _after(self, move: Move) -> Subnet:
        return self.masking.space.canonical(self.trace.subnet.replace({move.axis: move.value}))

    def _rank(self, move: Move, loss: float, rank: Rank) -> float:
        return rank(loss - self.trace.loss, self.trace.subnet, self._after(move))

    def _stale_rank(self, move: Move, rank: Rank) -> float:
        if str(move) not in self.trace.stale:  # every move is scored at every step
            return -math.inf
        return rank(self.trace.stale[str(move)], self.trace.subnet, self._after(move))

    def _accept(self, step: Step) -> None:
        self.trace.subnet = self._after(step.move)
        self.trace.steps.append(step)
        self.masking.switch(self.trace.subnet)
        if self.cached:
            self._losses = self.walk.fill(step.move.block)
        if self._checkpoint is not None:
            self._checkpoint.save(len(self.trace.steps), {}, self.trace.to_json())

    def _report(self, stage: Stage, step: Step, goal: Callable[[Subnet], float]) -> None:
        done = _percent(goal, self.trace.subnet)
        stage.advance(
            max(0, done - stage.step), message=str(step.move), ppl=math.exp(min(step.loss, 700.0)), scored=step.scored
        )


def _percent(goal: Callable[[Subnet], float], subnet: Subnet) -> int:
    return int(100 * min(1.0, max(0.0, goal(subnet))))
