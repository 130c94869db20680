"""What super-networks are compared with: torch-pruning's cuts."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import nn

from benchmarks import _elastic
from benchmarks._elastic import Subject
from lissome.cost.counted import Counter
from lissome.models.example import example
from lissome.models.model import Model


def pruned(subject: Subject, macs: float, *, multiple: int = 8) -> Model:
    """Return a subject cut by torch-pruning to within multiply-accumulates.

    The same share of every layer goes, those channels and heads first whose weights, over all layers that change with
    them, have the smallest L1 norm.

    Args:
        subject: What is pruned; left as it is.
        macs: Multiply-accumulates that may stay.
        multiple: What channels are rounded to.
    """
    model, low, high = _elastic.original(subject), 0.0, 0.9
    small = _cut(model, high, multiple)
    for _ in range(7):
        share = (low + high) / 2
        tried = _cut(model, share, multiple)
        if Counter(tried).count().macs <= macs:
            small, high = tried, share
        else:
            low = share
    if Counter(small).count().macs > macs:
        raise ValueError(f"no share of all channels stays within {macs:.3g} multiply-accumulates")
    return _elastic.adapted(small, _elastic.objective(subject))


def _cut(model: Model, share: float, multiple: int) -> Model:
    """Cut a share of the channels and heads of every layer out of a copy; a transformer's own width stays."""
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
            head_pruning_ratio=share,
        )
        pruner.step()
    for one in attentions:
        one.num_attention_heads, one.all_head_size = pruner.num_heads[one.query], one.query.out_features
    module.zero_grad(set_to_none=True)
    return model.derived(module.requires_grad_(False))
