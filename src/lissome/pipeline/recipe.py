"""Recipes: an ordered list of methods with their settings, checked before any work."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, read_toml, to_toml
from lissome.core.errors import BudgetError, ConfigError, LissomeError, OrderError, unknown_name
from lissome.core.method import Method, OutcomeKind
from lissome.core.registry import MethodInfo, methods
from lissome.core.registry import method as find_method

DEFAULT_METHOD = "multipruner"
_STEP = re.compile(r"\s*\[\[\s*step\s*\]\]")
_TOGETHER = "federate"
"""The family of methods whose job is of many clients, not of one model."""
_BESIDE = frozenset({"nested"})
"""States of files beside the weights: an artifact has those that its last step made, and no older ones."""
_MEANINGS = {
    "decoder": "a language model with attention",
    "mixer": "a language model with Mamba mixers",
    "text": "a language model, or an encoder of text",
}


@dataclass(frozen=True)
class RecipeStep:
    """One method with its settings."""

    name: str
    method: type[Method]
    config: MethodConfig

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> RecipeStep:
        """Look a method up and read its settings.

        Raises:
            UnknownNameError: When there is no such method.
            ConfigError: When a setting is unknown, mistyped or out of range.
        """
        method = find_method(name).load()
        return cls(name, method, method.Config.from_mapping(settings))

    def to_json(self) -> dict[str, Any]:
        """Return the step as JSON-able fields."""
        return {"method": self.name, **self.config.to_mapping()}


@dataclass(frozen=True)
class Recipe:
    """Methods in the order in which they run.

    Attributes:
        steps: The methods.
        budget: Bounds that the recipe's file states; the command line's come instead of them.
    """

    steps: tuple[RecipeStep, ...]
    budget: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str | None, settings: Iterable[str] = ()) -> Recipe:
        """A recipe of one method, from the command line's ``--method`` and ``--set``."""
        chosen = DEFAULT_METHOD if name is None else name
        method = find_method(chosen).load()
        return cls((RecipeStep(chosen, method, method.Config.from_assignments(settings)),))

    @classmethod
    def from_toml(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe.

        Args:
            text: TOML.
            where: How to call it in an error, e.g. the file; the line is added where it is known.

        It looks like this::

            budget = ["latency=85%"]       # optional
            [[step]]
            method = "multipruner"
            split = "auto"

        Raises:
            ConfigError: When the text is not TOML or has an unknown key.
            BudgetError: When its budget cannot be read.
            UnknownNameError: When a method does not exist.
        """
        with _naming(where, _Place(text)):
            fields = read_toml(text)
        for key in fields:
            with _naming(where, _Place(text, key=key)):
                if key not in ("step", "budget"):
                    raise ConfigError(unknown_name("recipe key", key, ("step", "budget")))
        tables = fields.get("step")
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            raise ConfigError(f"{where}: a recipe needs at least one [[step]] table with a method.")
        budget = fields.get("budget", [])
        bounds = [budget] if isinstance(budget, str) else budget
        if not isinstance(bounds, list) or not all(isinstance(bound, str) for bound in bounds):
            raise ConfigError(f'{where}: the budget of a recipe must be a list of texts such as ["latency=85%"].')
        if bounds:
            with _naming(where, _Place(text, key="budget")):
                Budget.parse(bounds)
        steps = []
        for index, table in enumerate(tables):
            with _naming(where, _Place(text, step=index, table=table)):
                steps.append(_step(table))
        return cls(tuple(steps), tuple(bounds))

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe file.

        Raises:
            ConfigError: When it cannot be read, or as `from_toml`.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(f"the recipe {path} cannot be read ({error.strerror}); name a TOML file.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the recipe {path} cannot be read ({error}); save the file as UTF-8.") from error
        return cls.from_toml(text, str(path))

    def to_toml(self) -> str:
        """Write the recipe so that `from_toml` reads an equal one."""
        return to_toml({"budget": list(self.budget), "step": [step.to_json() for step in self.steps]})

    def to_json(self) -> list[dict[str, Any]]:
        """Return the steps as JSON-able fields."""
        return [step.to_json() for step in self.steps]

    @property
    def follows_budget(self) -> bool:
        """Whether a step lets the budget decide how far it goes; otherwise none is needed."""
        return any(step.method(step.config).follows_budget for step in self.steps)

    @property
    def makes(self) -> OutcomeKind:
        """What its last step makes."""
        return self.steps[-1].method.makes

    def require(self, kind: OutcomeKind) -> None:
        """Refuse steps that make something else.

        Args:
            kind: ``"model"`` or ``"space"``, a super-network.

        Raises:
            ConfigError: Names the method, and the command that runs it.
        """
        verbs = {"model": "lissome fit", "space": "lissome supernet"}
        for step in self.steps:
            made = step.method.makes
            if made != kind and made in verbs:
                fitting = sorted(info.name for info in _alone() if info.load().makes == kind)
                what = {"model": "one model", "space": "a super-network"}[made]
                raise ConfigError(
                    f"{step.name} makes {what}; run it with: {verbs[made]} MODEL --method {step.name}. Here fit: "
                    f"{', '.join(fitting)}."
                )

    def check(self, tags: frozenset[str], budget: Budget) -> frozenset[str]:
        """Refuse an order that cannot work, and bounds that no step can follow.

        Args:
            tags: State of the model before the first step.
            budget: The bounds of the job.

        Returns:
            State of the model after the last step.

        Raises:
            OrderError: Names the method, what it lacks, and which methods could leave it (or which one removed it); or
                whose files beside the weights a later one would not keep.
            BudgetError: Names the term and the terms that the steps can follow.
            ConfigError: When a step trains many clients, not this one model.
        """
        for step in self.steps:
            if find_method(step.name).family == _TOGETHER:
                raise ConfigError(
                    f"{step.name} trains one model on the data of many clients; write a recipe and run it with: "
                    f"lissome federate RECIPE. Here fit: {', '.join(sorted(info.name for info in _alone()))}."
                )
        removed_by: dict[str, str] = {}
        for step, after in zip(self.steps, [*self.steps[1:], None], strict=True):
            lacking = step.method.needs - tags
            if lacking:
                raise OrderError(_order_message(step.name, sorted(lacking), removed_by, tags))
            if after is not None and (beside := step.method.leaves & _BESIDE):
                raise OrderError(
                    f"{step.name} leaves {', '.join(sorted(beside))} weights beside the model, which {after.name} "
                    f"after it does not keep; put {step.name} last."
                )
            removed_by |= dict.fromkeys(step.method.removes & tags, step.name)
            tags = (tags - step.method.removes - _BESIDE) | step.method.leaves
        followed = frozenset[str]().union(*(step.method.budget_terms for step in self.steps))
        for name in sorted(budget.names - followed):
            names = ", ".join(step.name for step in self.steps)
            can = f"can follow {', '.join(sorted(followed))}" if followed else "can follow no bound; leave it out"
            raise BudgetError(f"{name} cannot be bounded here: {names} {can}.")
        return tags


@dataclass(frozen=True)
class _Place:
    """A part of a recipe's text.

    Attributes:
        text: The whole text.
        key: A key above the steps, when it is known to be wrong.
        step: Which step; None: what stands above them.
        table: Settings of that step.
    """

    text: str
    key: str | None = None
    step: int | None = None
    table: Mapping[str, Any] = field(default_factory=dict)

    def line(self, message: str) -> int | None:
        """Return the line of what a message speaks of, else of the step; None where neither stands on its own line."""
        lines = self.text.splitlines()
        heads = [number for number, line in enumerate(lines) if _STEP.match(line)]
        if self.step is not None and len(heads) <= self.step:
            return None  # the steps are not written as [[step]] tables
        first, *others = [0, *heads, len(lines)] if self.step is None else [*heads, len(lines)][self.step :]
        guilty = (key for key, value in self.table.items() if repr(key) in message or repr(value) in message)
        key = self.key or next(guilty, None)
        wanted = re.compile(rf"""\s*["']?{re.escape(key or "")}["']?\s*=""")
        found = (number for number in range(first, others[0]) if key and wanted.match(lines[number]))
        line = next(found, None if self.step is None else first)
        return None if line is None else line + 1


@contextlib.contextmanager
def _naming(where: str, place: _Place) -> Iterator[None]:
    """Put the recipe's name and the line, where it is known, before what went wrong."""
    try:
        yield
    except LissomeError as error:
        line = place.line(str(error))
        raise type(error)(f"{where}{'' if line is None else f':{line}'}: {error}") from error


def _alone() -> list[MethodInfo]:
    """The methods whose job is of one model."""
    return [info for info in methods().values() if info.family != _TOGETHER]


def _step(table: dict[str, Any]) -> RecipeStep:
    settings = dict(table)
    name = settings.pop("method", None)
    if not isinstance(name, str):
        raise ConfigError('each [[step]] needs method = "NAME"; see: lissome methods')
    return RecipeStep.of(name, settings)


def _order_message(name: str, lacking: list[str], removed_by: Mapping[str, str], tags: frozenset[str]) -> str:
    tag = lacking[0]
    if tag in removed_by:
        return f"{name} needs a model that is {tag}, but {removed_by[tag]} before it leaves none; put {name} first."
    makers = [info.name for info in methods().values() if tag in info.load().leaves]
    together = find_method(name).family == _TOGETHER
    alike = (info for info in methods().values() if (info.family == _TOGETHER) is together)
    made = find_method(name).load().makes
    fitting = sorted(info.name for info in alike if info.load().needs <= tags and info.load().makes == made)
    if makers:
        advice = f"put {' or '.join(makers)} before it"
    else:
        instead = f"use {' or '.join(fitting)}" if fitting else "choose another model"
        advice = f"no method leaves that; {instead}"
    wanted = f"{tag} ({_MEANINGS[tag]})" if tag in _MEANINGS else tag
    return f"{name} needs a model that is {wanted}, but this one is {', '.join(sorted(tags))}; {advice}."
