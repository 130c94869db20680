"""Settings of claims on federation that are tried before anything is judged: short runs with one seed.

Learning rates of all arms that are compared are chosen by as many trials each; other settings are tried one at a time
beside the usual one, at the rate that was chosen, and printed. Trials are judged by texts that judge nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._arms import SWEPT, Cell
from benchmarks._federated import Job, in_scratch
from benchmarks._frame import Store
from benchmarks._markdown import table

RATE = "lr"
_PLAIN = re.compile(r"[^\w.%=]+")


@dataclass(frozen=True)
class Trials:
    """What is tried.

    Attributes:
        rates: Learning rates by arm, as many for each; without trials the middle one is used.
        score: Runs an arm shortly, with some of its settings changed, in a folder; returns what is better when higher.
        facts: What a score depends on besides the arm and its changes.
        knobs: By arm and setting, the usual value and others.
        rate_of: Whose rate an arm has that is not among `rates`.
        prefix: Before the arms' names in tables and names of cells.
    """

    rates: Mapping[str, Sequence[float]]
    score: Callable[[str, Mapping[str, Any], Path], float]
    facts: Cell
    knobs: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    rate_of: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    def middle(self) -> dict[str, float]:
        """Return the rate of each arm that is used when none were tried."""
        return {arm: rates[len(rates) // 2] for arm, rates in self.rates.items()}

    def chosen(self, store: Store) -> dict[str, float]:
        """Return the rate of each arm that does best in short runs; they are measured unless they are stored."""
        found = {}
        for arm, rates in self.rates.items():
            scores = {rate: _measured(store, *self._job(arm, RATE, rate, {RATE: rate})) for rate in rates}
            found[arm] = max(scores, key=scores.__getitem__)
        return found

    def jobs(self, chosen: Mapping[str, float]) -> dict[str, Job]:
        """Return all trials, those of rates among them, given the rates that were chosen."""
        rates = [(arm, RATE, rate, {RATE: rate}) for arm, all_of_them in self.rates.items() for rate in all_of_them]
        others = [
            (arm, knob, value, {RATE: chosen[self.rate_of.get(arm, arm)], knob: value})
            for arm, knobs in self.knobs.items()
            for knob, values in knobs.items()
            for value in values[arm in self.rates :]  # with the usual one the run is that of the chosen rate
        ]
        return {name: (settings, compute) for name, settings, compute in (self._job(*one) for one in rates + others)}

    def _job(
        self, arm: str, knob: str, value: Any, changes: Mapping[str, Any]
    ) -> tuple[str, Cell, Callable[[Path], Cell]]:
        settings = {**self.facts, "arm": arm, "changes": dict(changes)}
        name = SWEPT + _PLAIN.sub("_", f"{self.prefix}{arm}.{knob}={value}")
        return name, settings, partial(self._tried, arm, knob, value, changes)

    def _tried(self, arm: str, knob: str, value: Any, changes: Mapping[str, Any], folder: Path) -> Cell:
        return {"arm": self.prefix + arm, "knob": knob, "value": value, "score": self.score(arm, changes, folder)}

    def facts_of(self, chosen: Mapping[str, float]) -> dict[str, Any]:
        """Return what tables say about the trials: rates that were chosen, and the usual value of each setting."""
        usual = {
            self.prefix + arm: {knob: values[0] for knob, values in knobs.items()} for arm, knobs in self.knobs.items()
        }
        return {
            "rates": {self.prefix + arm: rate for arm, rate in chosen.items()},
            "usual": usual,
            "trial": dict(self.facts),
        }


def _measured(store: Store, name: str, settings: Cell, compute: Callable[[Path], Cell]) -> float:
    return float(store.cell(name, settings, partial(in_scratch, store, name, settings, compute))["score"])


def tried(facts: Cell, cells: Mapping[str, Cell], words: str) -> str:
    """Write what was tried: accuracy of every setting in percent, and which one is used; nothing where nothing was.

    Args:
        facts: As of `Trials.facts_of`.
        cells: All cells of the claim.
        words: How the short runs differ from those of the claim.
    """
    scored: dict[tuple[str, str], dict[str, float]] = {}
    for name, cell in cells.items():
        if name.startswith(SWEPT):
            scored.setdefault((cell["arm"], cell["knob"]), {})[_word(cell["value"])] = cell["score"]
    rows = []
    for (arm, knob), found in scored.items():
        used = _word(facts["rates"][arm] if knob == RATE else facts["usual"][arm][knob])
        own = {used: scored[arm, RATE][_word(facts["rates"][arm])]} if (arm, RATE) in scored else {}
        scores = found if knob == RATE else {**own, **found}
        rows.append([arm, knob, "; ".join(f"{value}: {100 * score:.1f}" for value, score in scores.items()), used])
    if not rows:
        return ""
    return f"### Settings that were tried\n\n{words}\n\n{table(['arm', 'setting', 'tried', 'used'], rows)}"


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_word, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
