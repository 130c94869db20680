"""What a method decides on the server. Every default is plain federated averaging of whole models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from torch import Tensor

from lissome.engine.federate.codec import Codec
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.merge import Merger, Overlap
from lissome.engine.federate.outer import Outer, Replace
from lissome.engine.federate.parcel import Kind
from lissome.engine.federate.profile import Profile
from lissome.models.model import Model
from lissome.models.space import Subnet

Who = Literal["sampled", "all"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One action of a round, and what becomes of the answers.

    Attributes:
        action: What the clients are told to do.
        kind: What it is in Flower's words.
        who: Those sampled for this round, or all that are there.
        sends: Whether global tensors go down.
        merger: What the answers' tensors are merged by; None when answers bring numbers alone.
        down: Codec of the orders.
        up: Codec of the answers.
        extra: Bytes of notes that an answer may bring besides its tensors.
    """

    action: str = "train"
    kind: Kind = "train"
    who: Who = "sampled"
    sends: bool = True
    merger: Merger | None = Overlap
    down: Codec = field(default_factory=Codec)
    up: Codec = field(default_factory=Codec)
    extra: int = 0


TRAIN = Phase()
EVALUATE = Phase(action="evaluate", kind="evaluate", merger=None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one client's answer says besides its tensors.

    Attributes:
        client: Its name.
        weight: How much it counts.
        metrics: Numbers by name.
        subnet: What it worked on; None is the whole model.
        staleness: Rounds since its order; 0 when it is in time.
        notes: What the method's client says to its server.
    """

    client: str
    weight: float
    metrics: Mapping[str, float]
    subnet: Subnet | None = None
    staleness: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


class Program:
    """The server's side of a method; subclasses override what differs.

    In every round the engine asks `phases`; for each of them `assign` (once per round), `settings`, `layout` and
    `static_names`; it merges the answers with the phase's merger and hands the result to `conclude`. After the round it
    asks `evaluate`. Everything that must survive a kill is in `tensors`, in the outer optimizer, or in `state`.

    Args:
        tensors: The global tensors by name, on the CPU; changed in place by `conclude`.
        outer: Optimizer on the server.
        phases: The phases of a round.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, outer: Outer | None = None, phases: Sequence[Phase] = (TRAIN,)
    ) -> None:
        self.tensors: dict[str, Tensor] = dict(tensors)
        self.outer: Outer = outer or Replace()
        self._phases = tuple(phases)

    def change(self, **fields: Any) -> None:
        """Change fields of all phases, such as their merger."""
        self._phases = tuple(replace(phase, **fields) for phase in self._phases)

    def phases(self, round: int) -> Sequence[Phase]:
        """Return the phases of a round, from 1."""
        return self._phases

    def check(self, client: Profile) -> None:
        """Refuse a client that this method has nothing for, before it joins.

        Raises:
            LissomeError: Says why, for example that nothing meets its budget.
        """

    def takes_part(self, phase: Phase, client: Profile) -> bool:
        """Whether a client is asked in a phase, given what the phases before it concluded.

        Default: yes, but without examples there is nothing to train on.
        """
        return phase.merger is None or client.examples > 0

    def measurement(self) -> Phase | None:
        """Return the phase in which clients measure what merged tensors give, before these are judged; or None."""
        return None

    def evaluation(self) -> Phase:
        """Return the phase in which clients evaluate what they hold."""
        return EVALUATE

    def assign(self, round: int, clients: Sequence[Profile], rng: Random) -> Mapping[str, Subnet | None]:
        """Return what each client works on, by its name; None is the whole model.

        Args:
            round: Number of the round.
            clients: The sampled ones, by name.
            rng: Of this round, the same after a kill.
        """
        return dict.fromkeys((one.name for one in clients), None)

    def judged(
        self, round: int, clients: Sequence[Profile], trained: Mapping[str, Subnet | None], rng: Random
    ) -> Mapping[str, Subnet | None]:
        """Return what each client evaluates; default: what it trained, and for the others what they are assigned."""
        missing = [one for one in clients if one.name not in trained]
        return {**trained, **(self.assign(round, missing, rng) if missing else {})}

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return which global tensors, and what of them, go to a client in a phase of a round."""
        return Layout.whole(self.tensors)

    def returns(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return which of them come back, where there is a merger; default: what goes down."""
        return self.layout(phase, round, client, subnet)

    def static(self, client: Profile, subnet: Subnet | None) -> tuple[str, Mapping[str, Tensor]]:
        """Return tensors that a client is sent once and keeps, with a tag that changes when they do; default: none."""
        return "", {}

    def settings(self, phase: Phase, round: int, client: Profile) -> Mapping[str, Any]:
        """Return what a client is told besides; JSON-able."""
        return {}

    def accept(self, phase: Phase, report: Report) -> None:
        """Refuse an answer by what its notes say, before it counts; default: notes are free.

        Raises:
            FederationError: Says what a client of this method never sends; it is a strike against this one.
        """

    def weigh(self, phase: Phase, report: Report) -> float:
        """Return how much an answer counts in the merge, above 0; default: its examples."""
        return report.weight

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> Mapping[str, float]:
        """Take in what a phase gave, when enough clients answered; return numbers worth following.

        Args:
            phase: The phase.
            round: Number of the round.
            merged: The merged tensors, of the phase's layout; empty without a merger.
            reports: One for each answer that was used, by client name.
        """
        if merged:
            self.tensors |= self.outer.step(self.tensors, merged)
        return {}

    def remarks(self, phase: Phase, reports: Sequence[Report]) -> Mapping[str, str]:
        """Return what whoever runs the server should know of a phase, a line by what it is about; each is said once."""
        return {}

    def evaluate(self, round: int) -> Mapping[str, float]:
        """Return numbers that the server itself finds about the global tensors, 0 for those at the start."""
        return {}

    def outcome(self) -> Model | None:
        """Return the global model, when it is another than the whole one with the global tensors in it."""
        return None

    def state(self) -> tuple[Mapping[str, Tensor], Any]:
        """Return what else must survive a kill: tensors by name, and a JSON value."""
        return {}, None

    def restore(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Take back what `state` gave."""
