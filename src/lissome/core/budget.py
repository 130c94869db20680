"""The budget language: what a model may cost, absolute or relative to the original.

Grammar: terms joined by commas, semicolons or blanks; a term is ``NAME OP VALUE``::

    latency=85%          at most 85 % of the original's latency
    params<=100M         at most 100 million parameters
    decode>=120%         at least 1.2 times the original's tokens per second
    disk<=400MB, memory<=1.5GiB
    risk<=5%             a certified bound of at most 0.05 (a risk is a share itself, never relative)

``=`` means ``<=`` for a cost and ``>=`` for a speed, so that the budget is always the bound one would want.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from lissome.core.errors import BudgetError, BudgetUnmetError, ConfigError, unknown_name
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
        TermKind("latency", "s", "lower", "one request: 128 prompt tokens, 64 new ones, batch 1; else one forward"),
        TermKind("prefill", "tokens/s", "higher", "prompt tokens per second"),
        TermKind("decode", "tokens/s", "higher", "new tokens per second"),
        TermKind("energy", "J", "lower", "joules of one request, measured or simulated"),
        TermKind("uplink", "bytes", "lower", "bytes sent by one client in one round"),
        TermKind("risk", "", "lower", "certified bound on the error, 0 to 1"),
    )
}

# Decimal, so that what is printed reads back to the very same number.
_UNITS: dict[str, dict[str, Decimal]] = {
    unit: {name: Decimal(size) for name, size in sizes.items()}
    for unit, sizes in {
        "count": {"": "1", "K": "1e3", "M": "1e6", "G": "1e9", "B": "1e9", "T": "1e12"},
        "bytes": {
            "": "1", "B": "1", "KB": "1e3", "MB": "1e6", "GB": "1e9", "TB": "1e12",
            "KiB": str(2**10), "MiB": str(2**20), "GiB": str(2**30), "TiB": str(2**40),
        },
        "s": {"": "1", "s": "1", "ms": "1e-3", "us": "1e-6", "min": "60"},
        "tokens/s": {"": "1", "tokens/s": "1", "t/s": "1"},
        "J": {"": "1", "J": "1", "mJ": "1e-3", "kJ": "1e3"},
        "": {"": "1", "%": "0.01"},
    }.items()
}  # fmt: skip
_CASE_MATTERS = {"J"}  # MJ is a thousand million mJ; bytes and seconds have no such twins
_PRINTED = {"count": ("", "K", "M", "B"), "bytes": ("B", "KB", "MB", "GB", "KiB", "MiB", "GiB"), "s": ("s", "ms")}
_SHOWN = {"count": ("B", "M", "K", ""), "bytes": ("GB", "MB", "KB", "B"), "s": ("s", "ms", "us")}
_TERM = re.compile(
    r"(?P<name>[^\s<>=!]+)\s*(?P<op>[<>=!]+)\s*(?P<number>[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>[%A-Za-z/]*)"
)
_BETWEEN_TERMS = re.compile(r"[,;\s]+(?=[^\s<>=!,;]+\s*[<>=!]+)|[,;]+")


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
        match = _TERM.fullmatch(text.strip())
        if match is None:
            raise BudgetError(f"{text!r} is not a budget term; write NAME=VALUE such as latency=85% or disk<=400MB.")
        if match["name"] not in TERMS:
            raise BudgetError(unknown_name("budget term", match["name"], TERMS))
        kind = TERMS[match["name"]]
        relative = match["unit"] == "%" and bool(kind.unit)
        unit = Decimal("0.01") if relative else _unit(kind, match["unit"])
        value = _positive(match["number"], unit, text)
        if not kind.unit and value > 1:
            raise BudgetError(f"{text!r}: {kind.name} is a share, so the bound must be above 0 and at most 1 (100%).")
        return cls(kind.name, _operator(match["op"], kind, text), value, relative)

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
            raise BudgetError(f"{self} is relative, but the original's {self.name} is not known here; give a number.")
        return self.value * original[self.name]

    def holds(self, got: float, limit: float) -> bool:
        """Whether `got` respects `limit`."""
        return got <= limit if self.op == "<=" else got >= limit

    def __str__(self) -> str:
        exact = Decimal(repr(self.value))
        if self.relative:
            return f"{self.name}{self.op}{_digits(exact * 100)}%"
        sizes = _UNITS[self.kind.unit]
        forms = [_digits(exact / sizes[unit]) + unit for unit in _PRINTED.get(self.kind.unit, (self.kind.unit,))]
        exact_forms = [form for form in forms if Term.parse(f"{self.name}<={form}").value == self.value]
        return f"{self.name}{self.op}{min(exact_forms, key=len)}"


def parse_bytes(text: str, what: str) -> int:
    """Read an amount of bytes such as ``2GiB``.

    Args:
        text: The amount.
        what: What it is of, for the error.

    Raises:
        ConfigError: When it is not an amount of bytes.
    """
    try:
        term = Term.parse(f"memory<={text}")
    except BudgetError:
        term = None
    if term is None or term.relative:
        raise ConfigError(f"{what} {text!r} is not an amount of memory; write for example 2GiB, 1500MB or bytes.")
    return int(term.value)


def _unit(kind: TermKind, text: str) -> Decimal:
    """Return the size of a unit of the term, its case ignored where that is safe."""
    units = _UNITS[kind.unit]
    if text in units:
        return units[text]
    if kind.unit not in _CASE_MATTERS:
        for name, size in units.items():
            if name.lower() == text.lower():
                return size
    allowed = ", ".join(dict.fromkeys([*filter(None, units), "%"]))
    raise BudgetError(f"{text!r} is not a unit of {kind.name} ({kind.unit or 'a share'}); allowed: {allowed}.")


def _positive(number: str, unit: Decimal, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        raise BudgetError(f"{number!r} in {text!r} is not a number.") from None
    if math.isfinite(value) and value > 0:
        value = float(Decimal(number) * unit)
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"{text!r}: the bound must be a positive number.")
    return value


def _operator(text: str, kind: TermKind, term: str) -> Operator:
    if text == "=":
        return "<=" if kind.better == "lower" else ">="
    if text == "<=":
        return "<="
    if text == ">=":
        return ">="
    raise BudgetError(f"{text!r} in {term!r} is not a comparison of budgets; allowed: =, <=, >=.")


def _digits(number: Decimal) -> str:
    """Write a number in the shortest exact way."""
    number = number.normalize()
    plain = -6 <= number.adjusted() < 15  # beyond that zeros are hard to count
    return format(number, "f") if plain else str(number)


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
        if self.limit == 0:  # relative to an original that costs nothing
            return 0.0 if self.ok else -math.inf
        share = self.got / self.limit - 1
        return -share if self.term.op == "<=" else share

    def __str__(self) -> str:
        word = "met" if self.ok else "NOT met"
        return f"{self.term} {word}: {figure(self.term.name, self.got)} against {figure(self.term.name, self.limit)}"


@dataclass(frozen=True)
class Budget:
    """Bounds that must all hold."""

    terms: tuple[Term, ...] = ()

    @classmethod
    def parse(cls, given: Bounds) -> Budget:
        """Read one expression or several (``--budget`` given more than once).

        Args:
            given: A text, a `Budget`, which is taken as it is, or several of either.

        Raises:
            BudgetError: When a term is malformed, the same bound stands twice, two bounds exclude each other, or
                `given` is neither text nor a budget.
        """
        if isinstance(given, str | Budget):
            parts = [given]
        elif isinstance(given, Iterable):
            parts = list(given)
        else:
            raise BudgetError(f"a budget is text such as 'latency=85%' or a Budget, got {given!r}.")
        terms = tuple(term for part in parts for term in _terms(part))
        if not terms:
            raise BudgetError("the budget is empty; write for example latency=85% or params<=100M.")
        for index, term in enumerate(terms):
            for other in terms[:index]:
                _check_pair(other, term)
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

    def require_reachable(
        self, smallest: Mapping[str, float], largest: Mapping[str, float], original: Mapping[str, float]
    ) -> None:
        """Refuse, before any work, a bound that no choice can meet.

        Args:
            smallest: Least figure that can be reached, by term name; terms that are not there are not checked.
            largest: Greatest figure that can be reached, by term name.
            original: Figures of the original, for relative bounds.

        Raises:
            BudgetUnmetError: Names each such bound and the reachable range.
        """
        broken = []
        for term in self.terms:
            if term.name in smallest and term.name in largest:
                ends, limit = (smallest[term.name], largest[term.name]), term.limit(original)
                if not any(term.holds(end, limit) for end in ends):
                    reach = _range(term, ends, original)
                    broken.append(
                        f"{term} cannot be met: the bound is {figure(term.name, limit)}, reachable is {reach}"
                    )
        if broken:
            raise BudgetUnmetError("; ".join(broken) + "; give a bound in this range.")


Bounds = str | Budget | Iterable[str | Budget]
"""What is read as a budget."""


def _terms(part: object) -> tuple[Term, ...]:
    """Terms of one expression, or of a budget."""
    if isinstance(part, Budget):
        return part.terms
    if not isinstance(part, str):
        raise BudgetError(f"a budget is text such as 'latency=85%' or a Budget, got {part!r}.")
    tokens = (token.strip() for token in _BETWEEN_TERMS.split(part))
    return tuple(Term.parse(token) for token in tokens if token)


def _check_pair(first: Term, second: Term) -> None:
    """Refuse two bounds of one figure that are the same, or that exclude each other."""
    if first.name != second.name:
        return
    if first.op == second.op:
        raise BudgetError(f"{first.name} is bounded twice ({first} and {second}); keep one of them.")
    least, most = (first, second) if first.op == ">=" else (second, first)
    if first.relative == second.relative and least.value > most.value:
        raise BudgetError(f"{least} and {most} exclude each other; keep one of them or widen the range.")


def _range(term: Term, ends: tuple[float, float], original: Mapping[str, float]) -> str:
    text = f"{figure(term.name, min(ends))} to {figure(term.name, max(ends))}"
    whole = original.get(term.name)
    return f"{text} ({min(ends) / whole:.1%} to {max(ends) / whole:.1%} of the original)" if whole else text


def figure(name: str, value: float) -> str:
    """Write a figure of a term for a person: four digits and the unit, e.g. ``"134.5M"``, ``"98.2MB"``, ``"81.3ms"``.

    Args:
        name: A key of `TERMS`.
        value: The figure, in the term's unit.
    """
    unit = TERMS[name].unit
    if unit not in _SHOWN:
        return f"{value:.4g} {unit}".rstrip()
    sizes = [(form, float(_UNITS[unit][form])) for form in _SHOWN[unit]]
    form, size = next((pair for pair in sizes if abs(value) >= pair[1]), sizes[-1])
    return f"{value / size:.4g}{form}"
