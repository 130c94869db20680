"""What super-networks are compared with: torch-pruning's cuts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks import _elastic
from benchmarks._elastic import Subject
from lissome.cost.counted import Counter
from lissome.models.example import example
from lissome.models.model import Model

_MOST = 0.9  # share of all channels that may go
_HALVINGS = 8


def pruned(subject: Subject, macs: float, *, multiple: int = 8) -> Model:
    """Return a subject cut by torch-pruning to within multiply-accumulates.

    The same share of every layer goes, those channels and heads first whose weights, over all layers that change with
    them, have the smallest L1 norm.

    Args:
        subject: What is pruned; left as it is.
        macs: Multiply-accumulates that may stay.
        multiple: What channels are rounded to.
    """
    model = _elastic.original(subject)

    def fits(share: float, heads: float) -> bool:
        return Counter(_cut(model, share, heads, multiple)).count().macs <= macs

    heads = _least(lambda share: fits(share, share), _MOST)
    # Heads are coarse, and all layers lose one at the same share: what the last of them freed is given to the widths.
    share = _least(lambda share: fits(share, heads), heads)
    if not fits(share, heads):
        raise ValueError(f"no share of all channels stays within {macs:.3g} multiply-accumulates")
    return _elastic.adapted(_cut(model, share, heads, multiple), _elastic.objective(subject))


def _least(fits: Callable[[float], bool], high: float) -> float:
    """Bisect for the smallest share that fits; the highest where none of those below does."""
    low = 0.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        low, high = (low, share) if fits(share) else (share, high)
    return high


def _cut(model: Model, share: float, heads_share: float, multiple: int) -> Model:
    """Cut a share of the channels and one of the heads of every layer out of a copy; its own width stays."""
    import torch_pruning as tp

    module: Any = copy.deepcopy(model.module).requires_grad_(True)
    attentions = [part for part in module.modules() if hasattr(part, "query") and hasattr(part, "num_attention_heads")]
    heads = {getattr(one, name): one.num_attention_heads for one in attentions for name in ("query", "key", "value")}
    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    kept = [part for name, part in linears if part not in heads and not name.endswith("intermediate.dense")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # norms are "unwrapped parameters": they are not to be cut
        pruner = tp.pruner.BasePruner(
            module,
            example_inputs=example(model, tokens=8),
            output_transform=lambda output: output.logits,
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=share,
            round_to=multiple,
            ignored_layers=kept,
            num_heads=dict(heads),
            prune_num_heads=bool(heads),
            prune_head_dims=not heads,
            head_pruning_ratio=heads_share,
        )
        pruner.step()
    for one in attentions:
        one.num_attention_heads, one.all_head_size = pruner.num_heads[one.query], one.query.out_features
    module.zero_grad(set_to_none=True)
    return model.derived(module.requires_grad_(False))
