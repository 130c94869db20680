"""Shears: make a model sparse, train elastic low-rank adapters on it, and choose how large each of them has to be.

Step 1 only: Wanda sparsity. arXiv 2404.10934.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lissome.core.budget import Budget, figure
from lissome.core.config import MethodConfig, option
from lissome.core.errors import BudgetUnmetError, ConfigError
from lissome.core.method import Context, Method, ModelCard, Outcome, Plan
from lissome.cost.memory import predict_fit
from lissome.cost.sparsity import SLOW, sparse_bytes
from lissome.data.text import spread
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.sparsify import Pruning, prunable, read_masks, sparsify
from lissome.engine.stream import windows_of
from lissome.models.model import Model
from lissome.models.paging import park
from lissome.models.parts import inputs, outputs
from lissome.models.sparse import sparsity
from lissome.ops.masks import Amount, Pattern, zeros_of

_MOST = 0.95  # share of zeros beyond which no adapter brings a language model back
_DEFAULT = 0.5
_ENTRY = 110  # bytes of a second tensor's name, shape and place in the file's header
_MARGIN = 0.005  # of the bytes to be saved, for names that are longer


class Shears(Method):
    """Unstructured sparsity with neural low-rank adapter search."""

    needs: ClassVar[frozenset[str]] = frozenset({"causal-lm", "dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"sparse"})
    removes: ClassVar[frozenset[str]] = frozenset({"dense"})
    budget_terms: ClassVar[frozenset[str]] = frozenset({"disk"})

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Settings of Shears."""

        sparsity: float | None = option(
            _DEFAULT, "share of zeros in every pruned layer; none: what the budget on disk needs", low=0.0, high=_MOST
        )
        pattern: str | None = option(None, "instead of a share: kept:of such as 2:4, two of every four inputs kept")
        by: Literal["wanda", "magnitude", "sparsegpt", "given"] = option(
            "wanda", "what decides which weights go; given: `masks`, or the zeros that the model has"
        )
        per: Literal["row", "layer"] = option("row", "within what magnitude compares weights")
        masks: str | None = option(None, "a safetensors file of masks, Bool by name of the layer; for by=given")
        windows: int = option(32, "windows of text whose inputs are looked at", low=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.pattern is not None:
                Pattern.parse(self.pattern)
            if self.masks is not None and self.by != "given":
                raise ConfigError(f"masks are for by=given, but by is {self.by}; leave one of them out.")

    config: Config

    @property
    def follows_budget(self) -> bool:
        """Whether a budget decides the share of zeros; otherwise it is only held against the result."""
        return self.config.sparsity is None and self.config.pattern is None and self.config.by != "given"

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict the size of the compressed result.

        Raises:
            BudgetUnmetError: When the bound on disk asks for more zeros than are set, or than any model bears.
        """
        memory = predict_fit(card, windows=(self.config.windows, card.windows[1]))
        dense, linears = card.figures["disk"], list(card.linears.values())
        item = round(dense / card.figures["params"])
        amount = self._amount(budget, card.figures, linears, item)
        figures = {} if amount is None else {"disk": dense - _saved(linears, amount, self._per, item)}
        return Plan(figures=figures, peak_memory=memory.total, memory_parts=memory.parts, notes=(SLOW,))

    def run(self, model: Model, context: Context) -> Outcome:
        """Prune a copy of the model.

        Raises:
            ConfigError: When a given mask does not fit a layer, or a pattern its inputs.
        """
        work = model.derived(copy.deepcopy(model.module))
        park(model)
        self._sparsify(work, context)
        return Outcome(kind="model", value=work, details={"sparsity": sparsity(work.module)})

    def _sparsify(self, work: Model, context: Context) -> None:
        """Step 1: zeros in all linear layers of the blocks, block by block."""
        config, layers = self.config, [work.module.get_submodule(name) for name in prunable(work)]
        shapes = [(outputs(layer), inputs(layer)) for layer in layers]
        item = next(work.module.parameters()).dtype.itemsize
        amount = self._amount(context.budget, context.original, shapes, item)
        key = {"amount": str(amount), "by": config.by, "per": config.per, "windows": config.windows}
        windows = spread(context.data.recovery, config.windows)
        pruning = Pruning(
            amount=_DEFAULT if amount is None else amount, by=config.by, per=config.per,
            masks=read_masks(Path(config.masks)) if config.masks else None,
        )  # fmt: skip
        checkpoint = Checkpoint(context.folder / "sparsify", {**key, "data": context.data.fingerprint})
        sparsify(work, windows_of(windows), pruning, checkpoint=checkpoint, events=context.events)

    @property
    def _per(self) -> str:
        """Within what the share of zeros is met exactly."""
        return {"sparsegpt": "block", "magnitude": self.config.per}.get(self.config.by, "row")

    def _amount(
        self, budget: Budget, original: Mapping[str, float], shapes: Sequence[tuple[int, int]], item: int
    ) -> Amount | None:
        """How much becomes zero: as set, or the least that the bound on disk allows; None when masks decide.

        Raises:
            BudgetUnmetError: When a bound on disk cannot be met so.
        """
        if self.config.by == "given":
            return None
        chosen: Amount | None = Pattern.parse(self.config.pattern) if self.config.pattern else self.config.sparsity
        limits = [term.limit(original) for term in budget.terms if term.name == "disk" and term.op == "<="]
        if not limits:
            return _DEFAULT if chosen is None else chosen
        need = (original["disk"] - min(limits)) * (1 + _MARGIN)
        if chosen is None and _saved(shapes, _MOST, self._per, item) >= need:
            return _least(lambda share: _saved(shapes, share, self._per, item) >= need)
        got = _saved(shapes, _MOST if chosen is None else chosen, self._per, item)
        if got < need:
            advice = "allow more" if chosen is None else "set more zeros, or sparsity=none, which follows the budget"
            size = original["disk"] - got
            raise BudgetUnmetError(
                f"disk cannot be met: the bound is {figure('disk', min(limits))}, but with "
                f"{_MOST if chosen is None else chosen} zeros {figure('disk', size)} are left; {advice}."
            )
        return chosen


def _saved(shapes: Iterable[tuple[int, int]], amount: Amount, per: str, item: int) -> int:
    """Bytes that matrices take less in a file when so much of them is zero."""
    sizes = ((rows * columns, zeros_of((rows, columns), amount, per)) for rows, columns in shapes)
    return sum(max(0, size * item - sparse_bytes(size, size - gone, item) - _ENTRY) for size, gone in sizes)


def _least(enough: Callable[[float], bool]) -> float:
    """The smallest share of zeros, to a thousandth, that is enough."""
    return next(share / 1000 for share in range(1001) if enough(share / 1000))
