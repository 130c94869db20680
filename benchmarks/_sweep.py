"""Settings that are tried beside an arm's usual ones, one change at a time.

They are judged on examples that are there to choose by. No test example is looked at: those are for what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _elastic
from benchmarks._elastic import Cell, Scale
from benchmarks._frame import Store
from benchmarks._markdown import table
from benchmarks._numbers import file_name

_START = "sweep-"
_SHOWN: Mapping[str, Callable[[float], str]] = {
    "accuracy": lambda value: f"{100 * value:.2f}", "ppl": lambda value: f"{value:.2f}",
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What is tried of one arm, with one seed.

    Attributes:
        arm: What it is called in cells and tables.
        facts: What every try depends on besides its settings, JSON-able; a change may set one of them otherwise.
        usual: Settings of the first try, all those that change among them.
        changes: What is set otherwise in each of the others.
        compute: Trains with some settings, in a folder that survives a kill; gives the figure to choose by.
        figure: What that is: ``"ppl"``, or something of which more is better, such as ``"accuracy"``.
    """

    arm: str
    facts: Mapping[str, Any]
    usual: Mapping[str, Any]
    changes: tuple[Mapping[str, Any], ...]
    compute: Callable[[Mapping[str, Any], Path], float]
    figure: str = "accuracy"

    @property
    def described(self) -> dict[str, Any]:
        """All that the outcome depends on, for the keys of cells that use it."""
        return {**self.facts, "usual": self.usual, "changes": self.changes}

    def cells(self) -> Iterator[Cell]:
        """Yield a cell for each setting, the usual one first."""
        for change in ({}, *self.changes):
            yield self._cell(change)

    def best(self, store: Store, scale: Scale, name: str) -> Any:
        """Return the value of one setting with the best figure, of those that were tried alone."""
        alone = ({}, *(change for change in self.changes if set(change) == {name}))
        found = {
            {**self.facts, **self.usual, **change}[name]: _elastic.measure(self._cell(change), scale, store)["value"]
            for change in alone
        }
        return (min if self.figure == "ppl" else max)(found, key=found.__getitem__)

    def chosen(self, store: Store, scale: Scale, names: Iterable[str]) -> dict[str, Any]:
        """Return the best value of each of some settings."""
        return {name: self.best(store, scale, name) for name in names}

    def _cell(self, change: Mapping[str, Any]) -> Cell:
        settings = {**self.usual, **change}
        name = f"{_START}{file_name(self.arm)}-{file_name(told(change)) if change else 'usual'}"
        return Cell(name, {**self.facts, **settings}, partial(self._tried, change))

    def _tried(self, change: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        known = {**self.facts, **self.usual}
        varied = {name: value for name, value in known.items() if any(name in one for one in self.changes)}
        words = told(change) if change else f"{told(varied)} (usual)"
        value = self.compute({**self.usual, **change}, folder)
        return {"arm": self.arm, "set": words, "figure": self.figure, "value": value}


def told(settings: Mapping[str, Any]) -> str:
    """Write settings as cells and tables name them."""
    return ", ".join(_elastic.assignments(settings))


def tried(result: Mapping[str, Any]) -> str:
    """Make a table of all settings that a stored result tried."""
    rows = [
        [one["arm"], one["set"], _SHOWN.get(one["figure"], "{:.4f}".format)(one["value"])]
        for name, one in result["cells"].items()
        if name.startswith(_START)
    ]
    return table(["arm", "set", "on examples to choose by"], rows)
