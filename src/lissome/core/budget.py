"""The budget language: what a model may cost, absolute or relative to the original.

Grammar: terms joined by commas or blanks; a term is ``NAME OP VALUE``::

    latency=85%          at most 85 % of the original's latency
    params<=100M         at most 100 million parameters
    decode>=120%         at least 1.2 times the original's tokens per second
    disk<=90MB, memory<=1.5GiB

``=`` means ``<=`` for a cost and ``>=`` for a speed, so that the budget is always the bound one would want.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lissome.core.errors import BudgetError, BudgetUnmetError, unknown_name
from lissome.core.metrics import Better

Operator = Literal["<=", ">="]


@dataclass(frozen=True)
class TermKind:
    """A quantity that can be bounded: its unit, which way is better, and what it means."""

    name: str
    unit: str
    better: Better
    meaning: str


TERMS: dict[str, TermKind] = {
    kind.name: kind
    for kind in (
        TermKind("params", "count", "lower", "all stored parameters, tied ones once"),
        TermKind("block_params", "count", "lower", "parameters inside the blocks, without embeddings and head"),
        TermKind("disk", "bytes", "lower", "size of the saved weights"),
        TermKind("memory", "bytes", "lower", "peak resident memory of a run"),
        TermKind("macs", "count", "lower", "multiply-accumulates of one forward at the stated shape"),
        TermKind("latency", "s", "lower", "one request: 128 prompt tokens, 64 new ones, batch 1"),
        TermKind("prefill", "tokens/s", "higher", "prompt tokens per second"),
        TermKind("decode", "tokens/s", "higher", "new tokens per second"),
        TermKind("energy", "J", "lower", "joules of one request, measured or simulated"),
        TermKind("uplink", "bytes", "lower", "bytes sent by one client in one round"),
        TermKind("risk", "", "lower", "certified bound on the error, 0 to 1"),
    )
}

_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_UNITS: dict[str, dict[str, float]] = {
    "count": _COUNTS,
    "bytes": {
        "": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
        "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40,
    },
    "s": {"": 1.0, "S": 1.0, "MS": 1e-3, "US": 1e-6, "MIN": 60.0},
    "tokens/s": {"": 1.0, "TOKENS/S": 1.0, "T/S": 1.0},
    "J": {"": 1.0, "J": 1.0, "MJ": 1e-3, "KJ": 1e3},
    "": {"": 1.0},
}  # fmt: skip
_TERM = re.compile(r"(?P<name>[A-Za-z_]+)\s*(?P<op><=|>=|=)\s*(?P<number>[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>[%A-Za-z/]*)$")


@dataclass(frozen=True)
class Term:
    """One bound.

    Attributes:
        name: A key of `TERMS`.
        op: ``"<="`` or ``">="``.
        value: The bound: in the term's unit, or as a share of the original when `relative` (0.85 for 85 %).
        relative: Whether `value` is a share of the original's figure.
    """

    name: str
    op: Operator
    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Term:
        """Read one term such as ``"latency=85%"``.

        Raises:
            BudgetError: When the text is not a term; names what is allowed and the nearest match.
        """
        match = _TERM.match(text.strip())
        if match is None:
            raise BudgetError(f"{text!r} is not a budget term; write NAME=VALUE such as latency=85% or disk<=90MB.")
        name, op, unit = match["name"], match["op"], match["unit"].upper()
        if name not in TERMS:
            raise BudgetError(unknown_name("budget term", name, TERMS))
        kind = TERMS[name]
        try:
            number = float(match["number"])
        except ValueError:
            raise BudgetError(f"{match['number']!r} in {text!r} is not a number.") from None
        if op == "=":
            op = "<=" if kind.better == "lower" else ">="
        relative = unit == "%"
        if not relative and unit not in _UNITS[kind.unit]:
            allowed = ", ".join(key for key in _UNITS[kind.unit] if key) or "none"
            raise BudgetError(f"{match['unit']!r} is not a unit of {name} ({kind.unit or 'a ratio'}); allowed: {allowed}, %.")
        value = number / 100 if relative else number * _UNITS[kind.unit][unit]
        if not math.isfinite(value) or value <= 0:
            raise BudgetError(f"{text!r}: the bound must be a positive number.")
        return cls(name, "<=" if op == "<=" else ">=", value, relative)

    @property
    def kind(self) -> TermKind:
        """What the term bounds."""
        return TERMS[self.name]

    def limit(self, original: Mapping[str, float]) -> float:
        """Return the bound in the term's unit, given the original model's figures.

        Raises:
            BudgetError: When the term is relative and the original's figure is not known.
        """
        if not self.relative:
            return self.value
        if self.name not in original:
            raise BudgetError(f"{self} is relative, but the original's {self.name} is not known here.")
        return self.value * original[self.name]

    def holds(self, got: float, limit: float) -> bool:
        """Whether `got` respects `limit`."""
        return got <= limit if self.op == "<=" else got >= limit

    def __str__(self) -> str:
        number = f"{self.value * 100:.10g}%" if self.relative else f"{self.value:.10g}{_suffix(self.kind.unit)}"
        return f"{self.name}{self.op}{number}"


def _suffix(unit: str) -> str:
    return unit if unit in {"s", "J"} else "B" if unit == "bytes" else ""


@dataclass(frozen=True)
class Verdict:
    """How one term ended: the bound and the figure, both in the term's unit."""

    term: Term
    limit: float
    got: float

    @property
    def ok(self) -> bool:
        """Whether the bound is respected."""
        return self.term.holds(self.got, self.limit)

    @property
    def slack(self) -> float:
        """Share of the bound that is left (negative when it is broken)."""
        share = self.got / self.limit - 1
        return -share if self.term.op == "<=" else share

    def __str__(self) -> str:
        word = "met" if self.ok else "NOT met"
        return f"{self.term} {word}: {self.got:.6g} against {self.limit:.6g} {self.term.kind.unit}".rstrip()


@dataclass(frozen=True)
class Budget:
    """Bounds that must all hold."""

    terms: tuple[Term, ...] = ()

    @classmethod
    def parse(cls, text: str | Iterable[str]) -> Budget:
        """Read one expression or several (``--budget`` given more than once).

        Raises:
            BudgetError: When a term is malformed or the same bound stands twice.
        """
        parts = [text] if isinstance(text, str) else list(text)
        tokens = [token for part in parts for token in re.split(r"[,;\s]+(?=[A-Za-z_]+\s*[<>]?=)|[,;]\s*", part) if token.strip()]
        terms = tuple(Term.parse(token) for token in tokens)
        if not terms:
            raise BudgetError("the budget is empty; write for example latency=85% or params<=100M.")
        seen = [(term.name, term.op) for term in terms]
        for name, op in seen:
            if seen.count((name, op)) > 1:
                raise BudgetError(f"the bound {name}{op} is given twice; keep one of them.")
        return cls(terms)

    def __str__(self) -> str:
        return ", ".join(map(str, self.terms))

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def names(self) -> frozenset[str]:
        """Names of the bounded terms."""
        return frozenset(term.name for term in self.terms)

    def check(self, got: Mapping[str, float], original: Mapping[str, float]) -> tuple[Verdict, ...]:
        """Hold figures against every bound.

        Args:
            got: Figures of the new model, by term name, in the terms' units.
            original: Figures of the original, for relative bounds.

        Raises:
            BudgetError: When a bounded figure is missing from `got`.
        """
        verdicts = []
        for term in self.terms:
            if term.name not in got:
                raise BudgetError(f"{term} cannot be checked: {term.name} was not counted or measured in this run.")
            verdicts.append(Verdict(term, term.limit(original), got[term.name]))
        return tuple(verdicts)

    def require(self, got: Mapping[str, float], original: Mapping[str, float]) -> tuple[Verdict, ...]:
        """Like `check`, but a broken bound is an error that names it.

        Raises:
            BudgetUnmetError: When a bound is broken.
        """
        verdicts = self.check(got, original)
        failed = [str(verdict) for verdict in verdicts if not verdict.ok]
        if failed:
            raise BudgetUnmetError("; ".join(failed))
        return verdicts
