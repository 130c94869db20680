"""Peak memory, predicted: which stage of a run needs most, and what that is made of.

Everything is in bytes of resident memory above the imported libraries. Each stage is a sum of named terms, so that a
person can see what to give up. The constants were fitted to SmolLM2-135M on Linux with glibc; tests hold the
predictions of `fit`, for removal and for sparse weights, within 20 % of what is measured.
"""

# T tokens, D residual width, V vocabulary, L blocks

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lissome.core.errors import MemoryLimitError
from lissome.core.method import ModelCard
from lissome.cost.measured import Request
from lissome.models.precision import fast_dtype

BATCH_TOKENS = 1024  # tokens of a forward in calibration and evaluation
TRAIN_TOKENS = 256  # tokens of a forward in recovery
CHUNK = 128  # tokens whose logits are held at a time
ROWS = 32  # of them, tokens that are normalised in float32 at a time

_TOKENIZER = 600.0  # bytes per token of the vocabulary: text, merges, and hash tables of both
_CODE = 48 << 20  # modules and pages of libraries that are first used by a model
_LINEARS = 7  # linear layers of a block
_SAVED = 2.0  # numbers kept for the backward pass per output of a linear layer: its input's share, and its output

_STATISTICS = 4.0  # of a block's activations: in float64 while they are summed up
_SCORES = 0.25  # of the weights: scores and orders of a layer, and what the heap keeps of them
_MERGED = 2.0  # bytes per weight: one of the mask, and what the heap keeps of float32 products until it is trimmed

SLACK = 0.03
"""Share that the allocator holds beyond what is asked of it."""

CACHE_COPIES = 2
"""A growing cache is copied into a longer one, and both are there for a moment."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Predicted bytes.

    Attributes:
        stages: Terms of every stage of the run, in bytes.
    """

    stages: Mapping[str, Mapping[str, float]]

    @property
    def worst(self) -> str:
        """Name of the stage that needs most."""
        return max(self.stages, key=lambda name: sum(self.stages[name].values()))

    @property
    def parts(self) -> Mapping[str, float]:
        """Terms of that stage."""
        return self.stages[self.worst]

    @property
    def total(self) -> float:
        """Peak of the whole run."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the formulas need to know of a model.

    Attributes:
        weights: Bytes of its weights.
        params: Parameters.
        block_params: Parameters inside the blocks.
        hidden: Residual width D.
        layers: Blocks L.
        vocabulary: Tokens V.
    """

    weights: float
    params: float
    block_params: float
    hidden: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, card: ModelCard) -> Sizes:
        """Read them from a card."""
        figures = card.figures
        return cls(
            weights=figures["disk"],
            params=figures["params"],
            block_params=figures["block_params"],
            hidden=card.hidden,
            layers=card.layers,
            vocabulary=card.vocabulary,
        )

    @property
    def features(self) -> float:
        """Inputs and outputs, other than the residual stream, of all linear layers of a block together."""
        return self.block_params / max(1, self.layers) / self.hidden

    @property
    def item(self) -> int:
        """Bytes per weight; the file's header is not counted."""
        return round(self.weights / self.params)

    def resident(self) -> dict[str, float]:
        """What is there in every stage."""
        return {"weights": self.weights, "tokenizer and code": self.vocabulary * _TOKENIZER + _CODE}

    def activations(self, tokens: int, item: float) -> float:
        """One block's intermediate results for so many tokens, without a gradient."""
        return tokens * (self.features + 4 * self.hidden) * item

    def logits(self, item: float, *, models: int = 1, kept: float = 0.0) -> float:
        """Logits of one chunk under so many models, two float32 copies of some rows, and more of the whole chunk."""
        return (models * (CHUNK * item + 2 * ROWS * 4) + kept * CHUNK * 4) * self.vocabulary

    @property
    def outside(self) -> float:
        """Bytes of the weights outside of the blocks, embeddings above all."""
        return self.weights - self.block_params * self.item


def predict_inference(sizes: Sizes, cache: float, request: Request | None = None) -> MemoryPlan:
    """Predict the peak of answering requests.

    Args:
        sizes: The model.
        cache: Bytes of keys and values at the end of a request.
        request: The request (default: 128 prompt tokens, 64 new ones, batch 1).
    """
    request = request or Request()
    tokens = request.batch * request.prompt
    terms = {
        **sizes.resident(),
        "cache": CACHE_COPIES * cache,
        "activations": sizes.activations(tokens, sizes.item),
        "logits": request.batch * sizes.vocabulary * 4.0,
    }
    return MemoryPlan(stages={"requests": _with_slack(terms)})


def predict_fit(
    card: ModelCard,
    *,
    windows: tuple[int, ...] = (4, 512),
    recover: bool = False,
    kept: float = 0.85,
    rank: int = 16,
    work_item: int | None = None,
) -> MemoryPlan:
    """Predict the peak of `lissome fit`.

    Args:
        card: The original.
        windows: Shape of the calibration windows [n, T].
        recover: Whether adapters are trained after the cut.
        kept: Share of the weights that the result will have.
        rank: Of the adapters.
        work_item: Bytes per weight of the copy that the search runs on (default: of what this device is fast in).
    """
    sizes, tokens = Sizes.of(card), windows[0] * windows[1]
    item = min(fast_dtype().itemsize if work_item is None else work_item, sizes.item)
    resident = sizes.resident()
    states = tokens * sizes.hidden * item
    stages = {
        "latency table": {**resident, "probe": sizes.weights - 0.4 * sizes.block_params * sizes.item},
        "search": {
            **resident,
            "working copy": sizes.params * item if item < sizes.item else 0.0,
            "hidden states": states * (sizes.layers + 1),
            "activations": sizes.activations(max(BATCH_TOKENS, windows[1]), item),
            "logits": sizes.logits(item),
        },
        **_measuring(card, sizes, kept, states),
    }
    if recover:  # the original and the cut weights lie in files meanwhile
        stages["recovery"] = {**resident, **_training(sizes, item, kept, rank, TRAIN_TOKENS)}
    return MemoryPlan(stages={name: _with_slack(terms) for name, terms in stages.items()})


def predict_sparse(
    card: ModelCard,
    *,
    windows: tuple[int, ...] = (32, 256),
    rank: int = 0,
    step_tokens: int = TRAIN_TOKENS,
    merged: bool = False,
    exact: bool = False,
) -> MemoryPlan:
    """Predict the peak of `lissome fit` with a method that makes weights zero and trains adapters on what is left.

    Args:
        card: The original.
        windows: Shape of the calibration windows [n, T].
        rank: Of the adapters; 0 trains none.
        step_tokens: Tokens of a forward in training.
        merged: Whether adapters are products of the weights' size while they are trained (masked, quantised).
        exact: Whether their layers need the weights as they are, not fast copies (quantised).
    """
    sizes, tokens = Sizes.of(card), windows[0] * windows[1]
    item = min(fast_dtype().itemsize, sizes.item)
    states = tokens * sizes.hidden * sizes.item
    inside = float(sum(one.outputs * one.inputs for one in card.linears.values()))
    stages = {
        "sparsify": {  # of a copy; the original lies in its file meanwhile
            **sizes.resident(),
            "hidden states": states,
            "statistics": _STATISTICS * sizes.activations(min(tokens, BATCH_TOKENS), sizes.item),
            "scores": _SCORES * inside * sizes.item,
        },
        **_measuring(card, sizes, 1.0, states),
    }
    if rank:
        stages["training"] = {**sizes.resident(), **_training(sizes, item, 1.0, rank, step_tokens, exact=exact)}
        if merged:
            stages["training"]["products"] = inside * (item + _MERGED)
        if "causal-lm" not in card.tags:
            stages["training"].pop("logits")
    return MemoryPlan(stages={name: _with_slack(terms) for name, terms in stages.items()})


def _measuring(card: ModelCard, sizes: Sizes, kept: float, states: float) -> dict[str, dict[str, float]]:
    """Stages that end every job: cutting, timing and evaluation."""
    resident, result = sizes.resident(), {"result": sizes.weights * kept}
    writes = "causal-lm" in card.tags
    timed = 3.0 * Request().prompt * sizes.vocabulary * sizes.item if writes else 0.0
    return {
        "cut": {**resident, **result},
        "timing": {**resident, **result, "logits": timed},
        "evaluation": {  # one model at a time, and the other's head
            **resident,
            "head": sizes.outside,
            "states": states,
            "activations": sizes.activations(BATCH_TOKENS, sizes.item),
            "logits": sizes.logits(sizes.item, models=2) if writes else 0.0,
        },
    }


def _training(
    sizes: Sizes, item: float, kept: float, rank: int, tokens: int, *, exact: bool = False
) -> dict[str, float]:
    trained = rank * sizes.layers * (sizes.features + _LINEARS * sizes.hidden)
    saved = tokens * sizes.layers * (sizes.features + 8 * sizes.hidden) * _SAVED * item
    inside = sizes.block_params * kept
    fast = item < sizes.item and not exact
    return {
        "weights": sizes.outside + (0.0 if fast else inside * sizes.item),
        "fast copies of frozen weights": (inside + sizes.hidden * sizes.vocabulary) * item if fast else 0.0,
        "adapters, gradients, optimizer": trained * 4 * 4.0,
        "activations for the backward pass": saved * kept,
        "logits": sizes.logits(item, kept=3.0),
    }


def predict_training(sizes: Sizes, *, tokens: int, trained: float) -> float:
    """Predict the peak bytes of training weights themselves in float32 with two moments each.

    Args:
        sizes: The model that is trained, cut to its size.
        tokens: Tokens of a forward pass.
        trained: Parameters that are trained.
    """
    terms = {
        **sizes.resident(),
        "gradients and moments": trained * 3 * 4.0,
        "activations for the backward pass": tokens
        * sizes.layers
        * (sizes.features + 8 * sizes.hidden)
        * _SAVED
        * sizes.item,
    }
    return sum(_with_slack(terms).values())


def kept_weights(card: ModelCard, figures: Mapping[str, float]) -> float:
    """Share of the weights that a result of such figures will have: removal takes from the blocks alone.

    Args:
        card: The original.
        figures: Expected figures of the result by budget term.
    """
    shares = [1.0]
    for name, value in figures.items():
        now = card.figures[name]
        left = now / value if name in ("prefill", "decode") else value / now
        inside = 1.0 if name in ("params", "disk") else card.figures["block_params"] / card.figures["params"]
        shares.append(1 - max(0.0, 1 - left) * inside)
    return min(shares)


def require_memory(limit: float | None, predicted: float) -> None:
    """Refuse a run that will not fit.

    Args:
        limit: Bytes that it may take above the imported libraries; None allows anything.
        predicted: Bytes that it will take.

    Raises:
        MemoryLimitError: Says both.
    """
    if limit is not None and predicted > limit:
        raise MemoryLimitError(
            f"this run needs about {predicted / 1e6:.0f} MB, but may take {limit / 1e6:.0f} MB; raise --max-memory, "
            "or use fewer or shorter windows, or a smaller model."
        )


def _with_slack(terms: Mapping[str, float]) -> dict[str, float]:
    present = {name: value for name, value in terms.items() if value}
    return {**present, "allocator": SLACK * sum(present.values())}
