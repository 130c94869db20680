"""SparAMX — kernels that read the weights beside the zeros alone (AbouElhamayed et al. 2025, arXiv 2502.12444).

Problem: pruning single weights leaves matrices full of zeros, and nothing gets faster, since every library multiplies
zeros like other numbers. AbouElhamayed et al., "SparAMX: Accelerating Compressed LLMs Token Generation on AMX-powered
CPUs": a token reads all weights once and computes little with them, so a bitmap says which are not zero, only those are
stored, and rows are expanded in registers right before they are multiplied. At a share s of zeros a weight has
16(1 − s) + 1 bits instead of 16, with int8 weights 8(1 − s) + 1 instead of 8.

Differs from the paper, and why:

- Zeros may come from anywhere: those that the model has (Shears, SparseGPT, a checkpoint), else Wanda's, as there.
- One format for AMX, AVX-512, AVX2 and portable code, and any number of threads, with equal results.
- Scales of int8 weights are not clamped: the published code rounds rows of small weights to zero.
- The head is int8 even without zeros; the paper leaves it as it is, which bounds the gain of small models.
- Where the decoder engine runs the model, the whole step is compiled, not the layers alone.
- The cache of keys and values is sparse where a person asks for it (``lissome generate --cache``): the largest numbers
  of every row are kept, in blocks that are frozen as a text grows (`lissome.engine.decode.decoder`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

from lissome.core.budget import Budget
from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError
from lissome.core.files import json_text
from lissome.core.method import Context, Method, ModelCard, Outcome, Plan
from lissome.core.metrics import Metric
from lissome.cost.device import last_cache
from lissome.cost.duration import forward_seconds, speeds_here
from lissome.cost.measured import compare
from lissome.cost.memory import predict_sparse
from lissome.cost.peak import give_back
from lissome.cost.sparsity import losing_shapes, sparse_bytes
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.decode.packed import accelerated
from lissome.engine.objective import objective_of
from lissome.engine.sparsify import Pruning, sparsify
from lissome.models.model import Model
from lissome.models.packed import KERNELS
from lissome.models.paging import park
from lissome.models.sparse import masks, sparsity

_MOST = 0.95
_ROUNDS = 3


class Sparamx(Method):
    """Kernels for weights with zeros in the place of linear layers, with zeros by Wanda where there are none."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    leaves: ClassVar[frozenset[str]] = frozenset({"sparse"})
    removes: ClassVar[frozenset[str]] = frozenset({"dense"})

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """Settings of SparAMX."""

        sparsity: float = option(
            0.5, "share of zeros that Wanda makes in every row, where a model has none yet", low=0.0, high=_MOST
        )
        windows: int = option(32, "windows of text, or labelled texts, whose inputs are looked at", low=1)
        weights: Literal["bf16", "int8"] = option("bf16", "how the other weights are held")
        head: Literal["bf16", "int8", "keep"] = option("int8", "how the head is held, with or without zeros")

    config: Config

    @property
    def follows_budget(self) -> bool:
        """Never: the share of zeros is set."""
        return False

    def plan(self, card: ModelCard, budget: Budget) -> Plan:
        """Predict the size of the file, and name the layers that will not be faster."""
        config = self.config
        item = round(card.figures["disk"] / card.figures["params"])
        sizes = [one.outputs * one.inputs for one in card.linears.values()]
        saved = sum(size * item - sparse_bytes(size, size - round(size * config.sparsity), item) for size in sizes)
        known = "sparse" in card.tags  # how many zeros there are, no plan may look up
        memory = predict_sparse(card, windows=(config.windows, card.windows[1]))
        shapes = {name: one.stored for name, one in card.linears.items()}
        return Plan(
            figures={} if known else {"disk": card.figures["disk"] - saved},
            peak_memory=memory.total,
            memory_parts=memory.parts,
            seconds=2 * forward_seconds(card, config.windows * card.windows[1], speeds_here().exact, head=False),
            notes=losing_shapes(shapes, None if known else config.sparsity, config.weights, last_cache()),
        )

    def run(self, model: Model, context: Context) -> Outcome:
        """Prune a copy where that is needed, and say how kernels shall hold it; the speed of that is measured.

        Raises:
            ConfigError: When the model has no zeros and none are asked for.
            NumericsError: When the inputs of a layer are NaN or infinite.
        """
        config, work = self.config, model.derived(copy.deepcopy(model.module))
        park(model)  # the original is needed again only to be compared with
        give_back()
        if not masks(work.module):
            given = "sparse" in context.tags or not config.sparsity
            pruning = Pruning(by="given") if given else Pruning(amount=config.sparsity)
            key = {"sparsity": config.sparsity, "given": given, "windows": config.windows}
            checkpoint = Checkpoint(context.folder / "sparsify", {**key, "data": context.data.fingerprint})
            batches = () if given else objective_of(context.data).batches(config.windows)
            sparsify(work, batches, pruning, checkpoint=checkpoint, events=context.events)
        if not masks(work.module):
            raise ConfigError("this model has no zeros, and sparsity=0 makes none; set sparsity, or prune it first.")
        give_back()
        kernels = {"weights": config.weights, "head": config.head}
        faster, what = accelerated(work, kernels)
        timed = compare(work, faster, rounds=_ROUNDS, events=context.events)
        ratio = timed.ratios.get("decode", timed.ratios["latency"])
        return Outcome(
            kind="model",
            value=work,
            metrics=(Metric(name="kernels", value=ratio.value, better=ratio.better, low=ratio.low, high=ratio.high),),
            details={"sparsity": sparsity(work.module), "kernels": kernels, "ended": _ended(what, ratio)},
            files={KERNELS: json_text(kernels, KERNELS).encode()},
        )


def _ended(what: str, ratio: Metric) -> str:
    """What a person must know of the kernels; ordinary code is what the table above times."""
    return (
        f"{what}: {ratio.name} is {ratio.value:.2f} times that of the same model in torch (95 % {ratio.low:.2f}–"
        f"{ratio.high:.2f}); lissome generate and bench run this folder so"
    )
