"""Rounds that train only where there is a reason to: clients are asked first, and say yes or no.

The server's side of `lissome.engine.federate.continual`: a phase of its own before the training, after which those take
part that said yes, when they are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lissome.engine.federate.continual import HOT, TRIGGER
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Report
from lissome.engine.federate.subnets import SubnetProgram


class Triggered(SubnetProgram):
    """Asks before it trains.

    Attributes:
        least: Fewest triggered clients with which a round trains.
        sends: Whether clients need the global tensors to answer.
    """

    least: int = 1
    sends: bool = False

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._hot: frozenset[str] = frozenset()

    def phases(self, round: int) -> Sequence[Phase]:
        """The question, then what there is to do."""
        return (Phase(action=TRIGGER, kind="evaluate", sends=self.sends, merger=None), *super().phases(round))

    def takes_part(self, phase: Phase, client: Profile) -> bool:
        """Whether a client said yes, and enough others did."""
        hot = phase.action == TRIGGER or (client.name in self._hot and len(self._hot) >= self.least)
        return hot and super().takes_part(phase, client)

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> Mapping[str, float]:
        """Remember who said yes; or as usual."""
        if phase.action != TRIGGER:
            return super().conclude(phase, round, merged, reports)
        self._hot = frozenset(one.client for one in reports if one.metrics.get(HOT, 0.0) > 0)
        return {"clients": float(len(self._hot))}
