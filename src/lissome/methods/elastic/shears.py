"""Shears: make a model sparse, train elastic low-rank adapters on it once, and choose how large each of them is.

Problem: a language model shall be small on disk and fit for one's text, and which size of adapter that takes is not
known beforehand. Munoz, Yuan, Jain, "Shears: Unstructured Sparsity with Neural Low-rank Adapter Search" (NAACL
2024, arXiv 2404.10934): zero the weights of lowest |W| · ‖X‖ in every row (Wanda), freeze the rest, put adapters
``y = W x + (alpha / r_max) · B[:, :r] A[:r] x`` on it and train them with a rank drawn anew for each group and
micro-batch (NLS); afterwards take the middle rank everywhere, or search. "SQFT" (arXiv 2410.03750) multiplies B A by
the mask of the zeros, so that it can be merged without losing one, and rounds the sum to the base's integers for a
model that is sparse and quantised.

Differs from the papers, and why:

- Ranks are drawn before the forward pass, from (seed, step) alone. The published layers draw inside of it, where a pass
  that is recomputed for its gradient can draw another rank.
- The share of zeros can follow a bound on the size of the file instead of being set.
- Masks are kept explicitly: a weight that happens to be 0 is not a pruned one.
- The grid of the quantised variant is the range of each group of weights, rounded to nearest, not GPTQ's, for any
  number of bits (the published layer has 15 as its largest code); weights are rounded from the sparse base itself.
- No dropout by default: a few hundred steps on text do not repeat it. ``dropout=0.1`` is the papers'.
- Hill climbing and the candidates that the log of training speaks for are written from their descriptions; the
  published code has the middle rank alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from lissome.core.budget import Budget, figure
from lissome.core.config import MethodConfig, option
from lissome.core.errors import BudgetUnmetError, ConfigError
from lissome.core.files import sha256_file
from lissome.core.method import Context, CurvePoint, LinearShape, Method, ModelCard, Outcome, Plan
from lissome.core.seeds import derive
from lissome.cost.counted import Counter
from lissome.cost.duration import forward_seconds, speeds_here, training_seconds
from lissome.cost.memory import TRAIN_TOKENS, predict_sparse
from lissome.cost.peak import give_back
from lissome.cost.sparsity import SLOW, sparse_bytes
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.objective import Objective, objective_of, step_tokens
from lissome.engine.recover import fingerprint
from lissome.engine.sparsify import Pruning, check_masks, prunable, read_masks, sparsify
from lissome.engine.supernet import Found, Paths, Remembered, best_of, candidates, climb, heuristic
from lissome.engine.train import train
from lissome.models.adapters import (
    Design,
    LowRank,
    Masked,
    Quantised,
    adapters,
    add_adapters,
    bare_copy,
    merge_lora,
    rank_space,
)
from lissome.models.adapters.elastic import check_ranks, check_sides, chosen_shapes, grouped, linear_shapes
from lissome.models.adapters.folder import adapter_files
from lissome.models.adapters.layers import quantise
from lissome.models.binding import extract, masked
from lissome.models.integers import stored_sizes
from lissome.models.model import Model
from lissome.models.paging import park, spill
from lissome.models.space import Space, Subnet
from lissome.models.sparse import sparsity
from lissome.ops.masks import Amount, Pattern, zeros_of

_MOST = 0.95  # share of zeros beyond which no adapter brings a language model back
_DEFAULT = 0.5  # the papers' most common share
_MERGED = frozenset({"masked", "quantised"})
"""Adapters that are multiplied by the mask of their layer."""

_ENTRY = 110  # bytes of a tensor's name, shape and place in a file's header
_MARGIN = 0.005  # of the bytes to be saved, for names that are longer


class Shears(Method):
    """Unstructured sparsity with neural low-rank adapter search."""

    needs: ClassVar[frozenset[str]] = frozenset({"text", "dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"sparse"})
    removes: ClassVar[frozenset[str]] = frozenset({"dense", "untrained"})
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
        windows: int = option(32, "windows of text, or labelled texts, whose inputs are looked at", low=1)
        adapter: Literal["plain", "masked", "quantised", "none"] = option(
            "plain", "plain: beside the weights; masked: merged, zeros kept; quantised: merged into few bits; none"
        )
        ranks: tuple[int, ...] = option((32, 24, 16), "ranks to choose from, descending")
        alpha: float = option(64.0, "the product is scaled by alpha over the largest rank", low=0.0)
        dropout: float = option(0.0, "of the adapters' inputs; the papers': 0.1", low=0.0, high=0.9)
        groups: tuple[str, ...] | None = option(
            None, "layers that share a rank, such as q_proj+k_proj,up_proj; default the papers'"
        )
        bits: int = option(4, "of quantised weights", low=2, high=8)
        columns: int = option(32, "inputs that share a scale and a zero point, for quantised ones", low=1)
        steps: int = option(200, "training steps of all ranks together; 0 trains nothing", low=0)
        lr: float = option(2e-3, "peak learning rate; cosine to 0 after a warm-up of 5 %", low=0.0, high=1.0)
        batch: int | None = option(
            None, "examples per step; default 4 windows of up to 256 tokens (longer ones are cut), or 16 texts", low=1
        )
        max_seconds: float | None = option(None, "shorten `steps` to what fits, measured before step 1", low=0.0)
        choose: Literal["heuristic", "climb", "log"] = option(
            "heuristic", "the middle rank everywhere; hill climbing; or the best of 7 candidates of the training's log"
        )
        evaluations: int = option(20, "choices that hill climbing may evaluate", low=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_ranks(self.ranks)
            if self.pattern is not None:
                Pattern.parse(self.pattern)
            if self.masks is not None and self.by != "given":
                raise ConfigError(f"masks are for by=given, but by is {self.by}; leave one of them out.")
            if self.adapter in _MERGED and self.sparsity == 0 and self.pattern is None and self.by != "given":
                raise ConfigError(f"adapter={self.adapter} keeps zeros, but sparsity=0 makes none; use adapter=plain.")
            if self.adapter == "quantised" and self.dropout:
                raise ConfigError("dropout must be 0 for quantised adapters: what is rounded is one sum.")

    config: Config

    @property
    def follows_budget(self) -> bool:
        """Whether a budget decides the share of zeros; otherwise it is only held against the result."""
        return self.config.sparsity is None and self.config.pattern is None and self.config.by != "given"

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict the size of the compressed result.

        Raises:
            BudgetUnmetError: When the bound on disk asks for more zeros than are set, or than any model bears.
            ConfigError: When classes are to be learnt, but the settings train nothing; when a group names no layer, no
                layer has the rank, or a given mask or the pattern does not fit one.
            DataError: When the masks cannot be read.
        """
        self._check(card)
        config, length = self.config, card.windows[1]
        dense, item = card.figures["disk"], round(card.figures["disk"] / card.figures["params"])
        amount, extra = self._amount(budget, card.figures, card.linears, item), self._beside(card.linears)
        figures = {} if amount is None else {"disk": dense - self._saved(card.linears, amount, item) + extra}
        memory = predict_sparse(
            card, windows=(config.windows, length), rank=config.ranks[0] if self._trains else 0,
            step_tokens=step_tokens(card, config.batch) if "encoder" in card.tags else TRAIN_TOKENS,
            merged=config.adapter in _MERGED, exact=config.adapter == "quantised",
        )  # fmt: skip
        speeds = speeds_here()
        seconds = 2 * forward_seconds(card, config.windows * length, speeds.exact, head=False)
        if self._trains:
            seconds += training_seconds(card, speeds, tokens=config.steps * step_tokens(card, config.batch), kept=1.0)
        return Plan(
            figures=figures, peak_memory=memory.total, memory_parts=memory.parts, seconds=seconds, notes=(SLOW,)
        )

    def _check(self, card: ModelCard) -> None:
        """Refuse settings that do not suit the model, before any work."""
        config = self.config
        if "untrained" in card.tags and not self._trains:
            raise ConfigError("the classes are to be learnt, but adapter=none and steps=0 train nothing; change that.")
        if config.pattern is not None and config.by != "given":
            pattern = Pattern.parse(config.pattern)
            for one in card.linears.values():
                pattern.check(one.inputs)
        adapted = chosen_shapes(card.linears, self._groups()) if config.adapter != "none" else {}
        if adapted:
            check_sides(config.ranks[0], (one.stored for one in adapted.values()), card.name)
        if config.masks is not None:
            pruned = check_masks(Path(config.masks), {name: one.stored for name, one in card.linears.items()})
            dense = [name for name in adapted if name not in pruned]
            if dense and config.adapter in _MERGED:
                raise ConfigError(f"adapter={config.adapter} needs a mask of {dense[0]}; give one, or set the groups.")

    def run(self, model: Model, context: Context) -> Outcome:
        """Prune a copy of the model, train adapters on it, and choose their ranks; continues after a kill.

        Raises:
            ConfigError: When a given mask does not fit a layer, a pattern its inputs, or a group names no layer.
            DataError: When there is no text to train on or to choose by.
            NumericsError: When training fails; names the step.
        """
        work = self._sparse(model, context)
        if self.config.adapter == "none":
            return Outcome(kind="model", value=work, details={"sparsity": sparsity(work.module)})
        origin = fingerprint(work.module)
        design = self._design()
        if self.config.adapter == "quantised":  # the base is quantised everywhere, with and without adapters
            adapted = grouped(work, design.groups)
            for name in (name for name in prunable(work) if name not in adapted):
                quantise(work.module.get_submodule(name), self.config.bits, self.config.columns)
        add_adapters(work, design, seed=derive(context.seed, "adapters"))
        paths = self._train(work, context, origin)
        found, chosen = self._choose(work, paths, context)
        return self._outcome(work, found, chosen, context)

    def _design(self) -> Design:
        """What the adapters look like."""
        config = self.config
        makes: dict[str, Callable[..., LowRank]] = {
            "plain": LowRank,
            "masked": Masked,
            "quantised": partial(Quantised, bits=config.bits, columns=config.columns),
        }
        return Design(
            ranks=config.ranks, alpha=config.alpha, dropout=config.dropout, groups=self._groups(),
            make=makes[config.adapter],
        )  # fmt: skip

    def _groups(self) -> list[list[str]] | None:
        return None if self.config.groups is None else [group.split("+") for group in self.config.groups]

    def _sparse(self, model: Model, context: Context) -> Model:
        """Step 1: zeros in all linear layers of the blocks, block by block."""
        config, work = self.config, bare_copy(model)
        park(model)  # the original is needed again only to be compared with
        give_back()
        item = next(work.module.parameters()).dtype.itemsize
        amount = self._amount(context.budget, context.original, linear_shapes(work), item)
        pruning = Pruning(
            amount=_DEFAULT if amount is None else amount, by=config.by, per=config.per,
            masks=read_masks(Path(config.masks)) if config.masks else None,
        )  # fmt: skip
        key = {"amount": str(amount), "by": config.by, "per": config.per, "windows": config.windows}
        key |= {"masks": sha256_file(Path(config.masks))} if config.masks else {}
        checkpoint = Checkpoint(context.folder / "sparsify", {**key, "data": context.data.fingerprint})
        batches = objective_of(context.data).batches(config.windows)
        sparsify(work, batches, pruning, checkpoint=checkpoint, events=context.events)
        if config.by == "given" and not sparsity(work.module):
            raise ConfigError("this model has no zeros, and by=given makes none; give masks, or set another by.")
        spilled = spill(work, context.folder / "sparse.safetensors")
        give_back()  # the checkpoint's copies, and the weights that now lie in the file
        return spilled

    @property
    def _trains(self) -> bool:
        return self.config.adapter != "none" and self.config.steps > 0

    def _train(self, work: Model, context: Context, origin: str) -> Paths:
        """Steps 2 and 3: one path of ranks per micro-batch; only the adapters learn."""
        config, objective = self.config, objective_of(context.data)
        settings = objective.training(
            steps=max(1, config.steps), lr=config.lr, batch=config.batch, max_seconds=config.max_seconds
        )
        paths = Paths(work, rank_space(work), accumulation=settings.accumulation)
        if config.steps:
            facts = {name: value for name, value in config.to_mapping().items() if name not in _AFTERWARDS}
            key = {"config": facts, "seed": context.seed, "data": context.data.fingerprint, "model": origin}
            task = objective.task(work)
            train(
                replace(task, loss=paths.noted(task.loss)), settings, seed=context.seed, hooks=paths,
                checkpoint=Checkpoint(context.folder / "train", key), events=context.events,
            )  # fmt: skip
            give_back()
        return paths

    def _choose(self, work: Model, paths: Paths, context: Context) -> tuple[list[Found], Found]:
        """Step 4: the sub-adapter, and everything that was evaluated on the way."""
        config, space, objective = self.config, rank_space(work), objective_of(context.data)
        if not objective.selects and config.choose != "heuristic":
            raise ConfigError(f"choose={config.choose} needs text to choose by, but there is none; give more text.")
        middle = heuristic(space)
        if not objective.selects:
            return [], Found("heuristic", middle, math.nan)
        evaluate = Remembered(
            self._loss(work, space, objective), context.folder / "chosen.json", fingerprint(work.module)
        )
        if config.choose == "climb":
            rng = random.Random(derive(context.seed, "climb"))
            counter = Counter(work)
            found = climb(
                evaluate, space, middle, size=lambda path: counter.count(path).params, budget=config.evaluations,
                rng=rng,
            )  # fmt: skip
            return found, found[-1]
        if config.choose == "log":
            found = [Found(name, path, evaluate(path)) for name, path in candidates(paths.log, space).items()]
            return found, best_of(found)
        named = {"largest": space.full, "heuristic": middle, "smallest": space.smallest}
        found = [Found(name, path, evaluate(path)) for name, path in named.items()]
        return found, found[1]

    @staticmethod
    def _loss(work: Model, space: Space, objective: Objective) -> Callable[[Subnet], float]:
        """Mean loss of a path on what there is to choose by."""

        def loss(path: Subnet) -> float:
            with masked(work, path, space=space):
                return objective.loss(work)

        return loss

    def _outcome(self, work: Model, found: Sequence[Found], chosen: Found, context: Context) -> Outcome:
        """Step 5: cut the chosen ranks out, and merge what can be merged without losing a zero."""
        space, counter = rank_space(work), Counter(work)
        files = adapter_files(work, context.folder / "super") if self.config.adapter == "plain" else {}
        small = extract(work, chosen.path, space=space)
        ranks = [adapter.rank for adapter in adapters(small.module).values()]
        if self.config.adapter != "plain":
            merge_lora(small)
        merged = Counter(small).count().figures() if self.config.adapter != "plain" else None
        curve = tuple(
            CurvePoint(
                step=index, change=one.name, subnet=one.path.to_json(), figures=merged or counter.figures(one.path),
                quality=objective_of(context.data).quality(one.value),
            )
            for index, one in enumerate(found)
        )  # fmt: skip
        details = {
            "subnet": chosen.path.to_json(),
            "chosen": chosen.name,
            "sparsity": sparsity(small.module),
            "mean_rank": sum(ranks) / len(ranks),
        }
        return Outcome(kind="model", value=small, curve=curve, space=space.to_json(), details=details, files=files)

    @property
    def _per(self) -> str:
        """Within what the share of zeros is met exactly."""
        return {"sparsegpt": "block", "magnitude": self.config.per}.get(self.config.by, "row")

    def _amount(
        self, budget: Budget, original: Mapping[str, float], linears: Mapping[str, LinearShape], item: int
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
        extra = self._beside(linears)
        need = (original["disk"] - min(limits)) * (1 + _MARGIN) + extra
        if chosen is None and self._saved(linears, _MOST, item) >= need:
            return next(s / 1000 for s in range(1001) if self._saved(linears, s / 1000, item) >= need)
        got = self._saved(linears, _MOST if chosen is None else chosen, item)
        if got < need:
            advice = "allow more" if chosen is None else "set more zeros, or sparsity=none, which follows the budget"
            size = figure("disk", original["disk"] - got + extra)
            raise BudgetUnmetError(
                f"disk cannot be met: the bound is {figure('disk', min(limits))}, but with "
                f"{_MOST if chosen is None else chosen} zeros and adapters {size} are left; {advice}."
            )
        return chosen

    def _saved(self, linears: Mapping[str, LinearShape], amount: Amount, item: int) -> int:
        """Bytes that the layers take less in a file when so much of them is zero."""
        return sum(self._saved_in(one, amount, item) for one in linears.values())

    def _saved_in(self, one: LinearShape, amount: Amount, item: int) -> int:
        size = one.outputs * one.inputs
        kept = size - zeros_of((one.outputs, one.inputs), amount, self._per)
        if self.config.adapter != "quantised":
            return max(0, size * item - sparse_bytes(size, kept, item) - _ENTRY)
        columns = self.config.columns if one.inputs % self.config.columns == 0 else one.inputs
        parts = stored_sizes(size, kept, size // columns, self.config.bits)
        return size * item - sum(parts.values()) - (len(parts) - 1) * _ENTRY

    def _beside(self, linears: Mapping[str, LinearShape]) -> int:
        """Bytes of the adapters beside the weights: of the middle rank, or of the largest where one is searched."""
        if self.config.adapter != "plain":
            return 0
        ranks = self.config.ranks
        rank = ranks[(len(ranks) - 1) // 2] if self.config.choose == "heuristic" else ranks[0]
        return sum(
            4 * rank * (one.inputs + one.outputs) + 2 * _ENTRY
            for one in chosen_shapes(linears, self._groups()).values()
        )


_AFTERWARDS = frozenset({"choose", "evaluations"})
"""Settings that training does not depend on."""
