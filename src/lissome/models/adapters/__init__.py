"""Adapters: small trainable parts on frozen linear layers, elastic in rank and width, merged or saved for stock peft.

One implementation serves recovery, neural low-rank adapter search, mergeable sparse adapters and what is built on them.
`layers` has the arithmetic, `elastic` the ranks as axes of a Space, `folder` what stock peft opens, `prompts` the
virtual tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lissome.core.errors import ConfigError, NumericsError
from lissome.models.adapters.elastic import (
    Groups,
    adaptable,
    check_ranks,
    check_sides,
    grouped,
    labels,
    rank_space,
)
from lissome.models.adapters.folder import load_adapters, save_adapters
from lissome.models.adapters.layers import Core, LowRank, Masked, Quantised, adapters, attach, detach, oriented
from lissome.models.crops import all_crops, drop_crops
from lissome.models.integers import set_grid
from lissome.models.model import Model
from lissome.models.parts import inputs, is_conv1d, outputs
from lissome.models.sparse import set_mask

__all__ = [
    "Core",
    "Design",
    "LowRank",
    "Masked",
    "Quantised",
    "adaptable",
    "adapters",
    "add_adapters",
    "add_lora",
    "bare_copy",
    "load_adapters",
    "merge_lora",
    "merged_copy",
    "rank_space",
    "remove_lora",
    "save_adapters",
]


@dataclass(frozen=True, kw_only=True)
class Design:
    """What adapters look like.

    Attributes:
        ranks: Ranks that they can take, descending; the first is built.
        alpha: The product is scaled by alpha over the first rank, whatever rank is active.
        dropout: On their inputs, while training.
        groups: Layers that share a rank; see `lissome.models.adapters.elastic.grouped`.
        make: What is put on a layer: `LowRank`, `Masked`, `Quantised` (perhaps with its bits bound), `Core`.

    Raises:
        ConfigError: When the ranks are not distinct and descending.
    """

    ranks: tuple[int, ...] = (16,)
    alpha: float = 32.0
    dropout: float = 0.0
    groups: Groups | None = None
    make: Callable[..., LowRank] = LowRank

    def __post_init__(self) -> None:
        check_ranks(self.ranks)


def add_adapters(model: Model, design: Design | None = None, *, seed: int = 0) -> None:
    """Put adapters on a model's linear layers, in place, and freeze everything else.

    The model's function stays the same, up to the rounding of quantised ones.

    Args:
        model: The model, without adapters.
        design: What they look like.
        seed: Decides A; see `LowRank.start`.

    Raises:
        ConfigError: When the model has adapters already, a kind is unknown, a layer does not suit the design, or no
            layer has the rank.
    """
    design = design or Design()
    if adapters(model.module):
        raise ConfigError(f"{model.name} has adapters already; merge them first.")
    generator, made = torch.Generator().manual_seed(seed), {}
    labelled = grouped(model, design.groups)
    layers = {name: model.module.get_submodule(name) for name in labelled}
    check_sides(design.ranks[0], ((outputs(one), inputs(one)) for one in layers.values()), model.name)
    for name, layer in layers.items():
        made[name] = design.make(layer, design.ranks, alpha=design.alpha, dropout=design.dropout)
        made[name].group = labelled[name]
        made[name].start(layer, generator)
    model.module.requires_grad_(False)
    for name, adapter in made.items():
        attach(model.module.get_submodule(name), adapter)
        adapter.requires_grad_(False)
        for parameter in adapter.trained():
            parameter.requires_grad_(True)
    model.reread()


def add_lora(
    model: Model, *, rank: int = 16, alpha: float = 32, kinds: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Put plain adapters of one rank on a model's linear layers, each a group of its own; see `add_adapters`.

    Args:
        model: The model, without adapters.
        rank: Columns of B, rows of A; 16 is the choice of the papers that recover pruned models.
        alpha: The product is scaled by alpha / rank.
        kinds: As in `adaptable`.
        seed: Decides A (Kaiming uniform); B starts at zero.

    Raises:
        ConfigError: When the model has adapters already, a kind is unknown, or no layer has the rank.
    """
    known = labels(model)
    groups = {name: known[name] for name in adaptable(model, kinds)}
    add_adapters(model, Design(ranks=(rank,), alpha=alpha, groups=groups), seed=seed)


@torch.no_grad()
def merge_lora(model: Model) -> None:
    """Add the adapters' products to the weights and take the adapters out, in place; all parameters train again.

    A sparse weight stays sparse under masked and quantised adapters alone: any other product fills its zeros, and then
    its mask is forgotten.

    Raises:
        NumericsError: When a merged weight would be NaN or infinite; the model keeps its adapters.
    """
    on = adapters(model.module)
    for path, adapter in on.items():
        if not torch.isfinite(adapter.delta()).all():
            raise NumericsError(f"the adapter of {path} holds NaN or infinity; train again with a lower lr.")
    for path, adapter in on.items():
        layer = model.module.get_submodule(path)
        merged = adapter.merged(oriented(layer))
        weight = layer.get_parameter("weight")
        weight.copy_(merged.T if is_conv1d(layer) else merged)
        set_grid(layer, adapter.grid if isinstance(adapter, Quantised) else None)
        if not adapter.keeps_zeros:
            set_mask(layer, None)
    remove_lora(model)


def merged_copy(model: Model) -> Model:
    """Return a model with its adapters merged and without learnt maps of kernels; the given one is left alone.

    The model itself when it has none of either.
    """
    return bare_copy(model) if adapters(model.module) or all_crops(model.module) else model


def bare_copy(model: Model) -> Model:
    """Return a copy of a model for a method to work on; adapters are merged there, the given one is left alone."""
    result = model.derived(copy.deepcopy(model.module))
    drop_crops(result.module)
    if adapters(result.module):
        merge_lora(result)
    return result


def remove_lora(model: Model) -> None:
    """Take the adapters out without merging, in place; all parameters train again."""
    for path in adapters(model.module):
        detach(model.module.get_submodule(path))
    model.module.requires_grad_(True)
    model.reread()
