"""Sets weights of a model's blocks to zero, streaming block by block: only one block's statistics exist at a time.

For each block: gather the statistics of its linear layers' inputs with the block as it is, prune it, and run it again
to make the inputs of the next one. Embeddings and heads are never touched: they are no part of a block.
"""

# B examples of a batch, T tokens, C inputs of a linear layer

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lissome.core.errors import ConfigError, DataError, unknown_name
from lissome.core.events import EventStream
from lissome.cost.peak import give_back
from lissome.engine.calibrate import hear_inputs
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.stream import Inputs, Stream
from lissome.models.adapters.elastic import adaptable
from lissome.models.model import Model
from lissome.models.parts import is_conv1d
from lissome.models.sparse import Mask, compress, expand, mask_of, set_mask
from lissome.models.sparse import masks as known_masks
from lissome.ops.masks import Amount, magnitude, sparsegpt, wanda

By = Literal["wanda", "magnitude", "sparsegpt", "given"]
"""What decides which weights go: their products with their inputs, they alone, SparseGPT, or masks from elsewhere."""

Per = Literal["row", "layer"]


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Which weights go.

    Attributes:
        amount: Share of zeros in [0, 1), or a pattern; nothing for ``by="given"``.
        by: What decides.
        per: Within what ``magnitude`` compares weights.
        masks: For ``by="given"``: Bool of the weight's shape, True where it is kept, by name of the layer or weight;
            layers that are not named stay dense. None takes the zeros that the model has.
    """

    amount: Amount = 0.5
    by: By = "wanda"
    per: Per = "row"
    masks: Mapping[str, Tensor] | None = None


def prunable(model: Model) -> tuple[str, ...]:
    """Return the names of the linear layers that are made sparse: those that adapters go on."""
    return adaptable(model)


def sparsify(
    model: Model,
    batches: Iterable[Inputs] = (),
    pruning: Pruning | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    events: EventStream | None = None,
) -> None:
    """Prune the linear layers of a model's blocks in place, and note which weights are kept (`models.sparse`).

    Args:
        model: The model, without adapters.
        batches: Calibration inputs, for ``wanda`` and ``sparsegpt``; padding (``attention_mask``) is left out.
        pruning: Which weights go (default: Wanda, half of every row).
        checkpoint: Where the result is kept; when it is there already, it is taken from there.
        events: Where progress goes: a stage ``sparsify`` counted in blocks.

    Raises:
        ConfigError: When a mask is of an unknown layer or has another shape, or a pattern does not divide the inputs.
        DataError: When there is nothing to calibrate on.
        NumericsError: When the inputs of a layer are NaN or infinite.
        UnsupportedModelError: When the model's blocks are not one chain.
        ArtifactError: When the checkpoint is of another job or cannot be written.
    """
    if checkpoint is not None and (saved := checkpoint.load(events)) is not None:
        _restore(model, saved.tensors)
        return
    pruning = pruning or Pruning()
    given = _checked(model, pruning.masks) if pruning.by == "given" else {}
    stream = Stream(model, batches) if pruning.by in {"wanda", "sparsegpt"} else None
    with (events or EventStream()).stage("sparsify", len(model.anatomy.blocks)) as stage:
        for index in range(len(model.anatomy.blocks)):
            inside = [name for branch in model.anatomy.of_block(index) for name in branch.linears]
            names = [name for name in prunable(model) if name in inside]
            seen: dict[str, Tensor] = {}
            if stream is not None:
                watch = _Watch(squares=pruning.by == "wanda")
                with hear_inputs(model.module, names, watch.note):
                    stream.feed(index, watch.expect)
                seen = watch.sums
            for name in names:
                layer = model.module.get_submodule(name)
                if pruning.by == "given":
                    _apply(layer, given.get(name))
                elif name in seen or stream is None:  # a layer that is never called says nothing of its weights
                    _prune(layer, seen.get(name), pruning)
            if stream is not None:
                stream.advance(index)
            stage.advance()
    if checkpoint is not None:
        give_back()  # what the blocks left behind, before there are copies of the weights
        pruned = known_masks(model.module)
        weights = {name: model.module.get_parameter(name).detach() for name in pruned}
        checkpoint.save(len(model.anatomy.blocks), compress(weights, pruned) | _bitmaps(pruned))


def read_masks(path: Path) -> dict[str, Tensor]:
    """Read masks from a safetensors file: Bool or uint8 by name of the layer or its weight.

    Raises:
        DataError: When the file cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unread(path, error) from error


def _unread(path: Path, error: Exception) -> DataError:
    reason = "it is a folder" if path.is_dir() else str(error).splitlines()[0]
    return DataError(
        f"the masks in {path} cannot be read ({reason}); give a safetensors file of a Bool for each weight."
    )


def check_masks(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Compare a file of masks with the weights that they are for, before any of them is read.

    Args:
        path: As in `read_masks`.
        shapes: Shape of the weight of every layer that can be pruned, by the layer's name.

    Returns:
        The layers that have a mask.

    Raises:
        ConfigError: When there is no mask, one is of an unknown layer, or has another shape.
        DataError: When the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        raise _unread(path, error) from error
    if not found:
        raise ConfigError(
            f"{path} holds no mask; it needs one by the name of each layer to prune, such as {next(iter(shapes))}."
        )
    return tuple(_layer_of(key, shape, shapes) for key, shape in found.items())


def _layer_of(key: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The layer that a mask is for, which its shape must fit."""
    name = key.removesuffix(".weight")
    if name not in shapes:
        raise ConfigError(unknown_name("layer to prune", name, shapes))
    if shape != shapes[name]:
        raise ConfigError(
            f"the mask of {name} has shape {list(shape)}, but its weight has {list(shapes[name])}; "
            "give one Bool per weight, True where it is kept."
        )
    return name


def _bitmaps(pruned: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Masks under names that `compress` does not use: a mask is kept also where the compressed form does not pay."""
    return {f"mask/{name}": mask.bits for name, mask in pruned.items()}


@torch.no_grad()
def _restore(model: Model, stored: Mapping[str, Tensor]) -> None:
    bits = {name.removeprefix("mask/"): value for name, value in stored.items() if name.startswith("mask/")}
    shapes = {name: value.shape for name, value in model.module.named_parameters()}
    weights, _ = expand({name: value for name, value in stored.items() if not name.startswith("mask/")}, shapes)
    for name, packed in bits.items():
        model.module.get_parameter(name).copy_(weights[name])
        kept = Mask(packed, tuple(shapes[name]), 0).unpacked()
        set_mask(model.module.get_submodule(name.removesuffix(".weight")), kept)


def _checked(model: Model, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Masks by layer, each of its weight's shape; without any, the zeros that the model has."""
    names = prunable(model)
    if masks is None:
        own = {name: _own_mask(model.module.get_submodule(name)) for name in names}
        return {name: kept for name, kept in own.items() if not kept.all()}
    shapes = {name: tuple(_weight(model.module.get_submodule(name)).shape) for name in names}
    return {_layer_of(key, tuple(mask.shape), shapes): mask.bool() for key, mask in masks.items()}


def _own_mask(layer: nn.Module) -> Tensor:
    """The mask that a layer has; without one, which of its weights are not zero."""
    known = mask_of(layer)
    return _weight(layer).detach() != 0 if known is None else known.unpacked()


class _Watch:
    """Sums over tokens of what linear layers read: squares Tensor[C], or products Tensor[C, C], in float64."""

    def __init__(self, *, squares: bool) -> None:
        self.sums: dict[str, Tensor] = {}
        self._squares = squares
        self._tokens: Tensor | None = None

    def expect(self, tokens: Tensor | None) -> None:
        """Say which tokens Bool[B, T] of the next batch are real."""
        self._tokens = tokens

    def note(self, name: str, given: Tensor) -> None:
        """Add what a layer reads, [B, T, C] or rows [·, C]."""
        real = self._tokens is not None and given.shape[:-1] == self._tokens.shape
        rows = given[self._tokens] if real else given.flatten(0, -2)
        found = rows.double().square().sum(0) if self._squares else rows.double().T @ rows.double()
        self.sums[name] = self.sums[name] + found if name in self.sums else found


def _weight(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    return weight  # type: ignore[no-any-return]


@torch.no_grad()
def _prune(layer: nn.Module, seen: Tensor | None, pruning: Pruning) -> None:
    stored = _weight(layer)
    weight = stored.T if is_conv1d(layer) else stored
    if pruning.by == "sparsegpt" and seen is not None:
        changed, mask = sparsegpt(weight, seen, pruning.amount)
        weight.copy_(changed)
    elif pruning.by == "wanda" and seen is not None:
        mask = wanda(weight, seen.sqrt(), pruning.amount)
    else:
        mask = magnitude(weight, pruning.amount, pruning.per)
    _apply(layer, mask.T if is_conv1d(layer) else mask)


@torch.no_grad()
def _apply(layer: nn.Module, kept: Tensor | None) -> None:
    """Zero what is not kept, as +0, and note the mask; a full one is none."""
    if kept is not None and not kept.all():
        stored = _weight(layer)
        stored.masked_fill_(~kept.to(stored.device), 0)
        set_mask(layer, kept)
