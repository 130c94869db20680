"""Greedy removal: of all moves that are still possible, make the one that hurts least, and again until it is enough.

A move is any change of a Subnet: a branch away, some channels, a KV group, a query head. Moves of unlike kinds compete
by a rank that the caller defines (the loss itself, or damage per parameter or per millisecond saved). Only what follows
the changed block is run again; with `lazy` only moves that still look best are scored again, in the manner of lazy
greedy maximisation (Minoux 1978). His guarantee needs a damage that never falls while other moves are made; here some
do fall (one removal can make the next one harmless), so that all moves are looked at again on half of the windows
every few steps. Every accepted step is checkpointed and can be continued after a kill.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lissome.core.events import EventStream, Stage
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.walk import Judge, Walk
from lissome.models.anatomy import Anatomy
from lissome.models.binding import Masking
from lissome.models.space import Space, Subnet


@dataclass(frozen=True, kw_only=True)
class Laziness:
    """How little is scored.

    Attributes:
        looked: A look at a move uses one in so many windows.
        refreshed: Accepted steps between two looks at all moves; None looks at each once.
        scored: Best-looking moves that are scored on all windows at every step, at least.
    """

    looked: int
    refreshed: int | None
    scored: int


CAREFUL = Laziness(looked=2, refreshed=3, scored=3)
"""For the loss of a text, where removals change each other's damage: with one look each, BlockPruner ends 20 % worse in
perplexity than by scoring every move (SmolLM2 at 90 %); with this, equal, in a fifth of the time."""

QUICK = Laziness(looked=4, refreshed=None, scored=1)
"""For the divergence from the original when all kinds compete: there `CAREFUL` took five times as long and found no
better (SmolLM2 at 90 %, one seed)."""


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
    """An accepted move, and what it left.

    Attributes:
        move: The move.
        loss: Mean over windows of what the judge says after it, by default the NLL in nats.
        scored: How many moves were scored to find it.
        nll: Mean NLL after it, nats; equal to `loss` when that is what is judged.
    """

    move: Move
    loss: float
    scored: int
    nll: float


@dataclass
class Trace:
    """The course of a greedy removal so far; JSON-able, so that a run can be continued.

    Attributes:
        subnet: What is left.
        start: Loss of the original, as the judge sees it.
        start_nll: Mean NLL of the original, nats.
        steps: Accepted moves in order.
        stale: Damage of each move when it was last scored or looked at, by its text.
    """

    subnet: Subnet
    start: float = math.nan
    start_nll: float = math.nan
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
            [step.move.axis, step.move.value, step.move.was, step.move.block, step.loss, step.scored, step.nll]
            for step in self.steps
        ]
        starts = {"start": self.start, "start_nll": self.start_nll}
        return {"subnet": self.subnet.to_json(), **starts, "steps": steps, "stale": self.stale}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Trace:
        """Rebuild a trace from `to_json`."""
        steps = [Step(Move(*row[:4]), *row[4:]) for row in fields["steps"]]
        return cls(Subnet(fields["subnet"]), fields["start"], fields["start_nll"], steps, dict(fields["stale"]))


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


def within(most: float, rank: Rank) -> Rank:
    """Rank moves as `rank` does, but never make one whose damage is above `most` nats."""

    def limited(damage: float, before: Subnet, after: Subnet) -> float:
        return math.inf if damage > most else rank(damage, before, after)

    return limited


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
        judge: What to keep low, of each window (default: the loss on its text).
        lazy: How to score only moves that may be best; None scores all of them at every step.
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
        judge: Judge | None = None,
        lazy: Laziness | None = CAREFUL,
        cached: bool = True,
        checkpoint: Checkpoint | None = None,
        events: EventStream | None = None,
    ) -> None:
        self.masking, self.walk, self.lazy, self.cached = masking, walk, lazy if cached else None, cached
        self._judge = judge
        self._checkpoint, self._events = checkpoint, events or EventStream()
        self.trace = Trace(masking.space.full)
        saved = checkpoint.load(self._events) if checkpoint else None
        if saved is not None:
            self.trace = Trace.from_json(saved.state)
            masking.switch(self.trace.subnet)
        self._losses = walk.fill(judge=judge)  # of each window, for what is left now
        self._looked = max(1, len(self._losses) // (lazy.looked if lazy else 1))
        if saved is None:
            self.trace.start = float(self._losses.mean())
            self.trace.start_nll = self._nll(self.trace.start)

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
                self._report(stage, self.trace.steps[-1], goal)
        return self.trace

    def _unseen(self, options: list[Move]) -> list[Move]:
        return [move for move in options if str(move) not in self.trace.stale]

    def _due(self, options: list[Move]) -> list[Move]:
        """Moves to look at before the next step."""
        if self.lazy is None:
            return []
        done = len(self.trace.steps)
        again = done > 0 and self.lazy.refreshed is not None and done % self.lazy.refreshed == 0
        return options if again else self._unseen(options)

    def _look(self, move: Move) -> None:
        """Note the damage of a move on the first windows, paired with the loss of the same windows before it."""
        with self._made(move):
            losses = self.walk.score(move.block, self._looked, self._judge)
        self.trace.stale[str(move)] = float((losses - self._losses[: self._looked]).mean())

    def _best(self, options: list[Move], rank: Rank) -> Step | None:
        """Score moves, cheapest-looking first, until enough are and one is at least as good as all stale ranks.

        When none may be made, all have been scored, so that `Trace.stale` says how far from it each was.
        """
        if not options:
            return None
        for move in self._due(options):
            self._look(move)
        scored: dict[Move, float] = {}
        queue = [(self._stale_rank(move, rank), index) for index, move in enumerate(options)]
        heapq.heapify(queue)
        best: tuple[float, int] | None = None
        least = self.lazy.scored if self.lazy else len(options)
        while queue and (best is None or math.isinf(best[0]) or queue[0] < best or len(scored) < least):
            _, index = heapq.heappop(queue)
            scored[options[index]] = self._score(options[index])
            fresh = (self._rank(options[index], scored[options[index]], rank), index)
            best = fresh if best is None else min(best, fresh)
        assert best is not None
        if math.isinf(best[0]):
            return None
        loss = scored[options[best[1]]]
        return Step(options[best[1]], loss, len(scored), loss)

    def _score(self, move: Move) -> float:
        """Loss after a move; notes its damage."""
        with self._made(move):
            judged = self.walk.score(move.block, None, self._judge) if self.cached else self.walk.plain(self._judge)
        loss = float(judged.mean())
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
        self.masking.switch(self.trace.subnet)
        if self.cached:
            self._losses = self.walk.fill(step.move.block, self._judge)
        self.trace.steps.append(replace(step, nll=self._nll(step.loss)))
        if self._checkpoint is not None:
            self._checkpoint.save(len(self.trace.steps), {}, self.trace.to_json())

    def _nll(self, loss: float) -> float:
        """Mean NLL of what is left now, where something else is judged."""
        if self._judge is None:
            return loss
        return float((self.walk.exit_loss() if self.cached else self.walk.plain()).mean())

    def _report(self, stage: Stage, step: Step, goal: Callable[[Subnet], float]) -> None:
        done = _percent(goal, self.trace.subnet)
        stage.advance(
            max(0, done - stage.step), message=str(step.move), ppl=math.exp(min(step.nll, 700.0)), scored=step.scored
        )


def _percent(goal: Callable[[Subnet], float], subnet: Subnet) -> int:
    return int(100 * min(1.0, max(0.0, goal(subnet))))
