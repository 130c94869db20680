"""Replaces the linear layers of any torch model by packed ones, which read fewer bytes.

Where the zeros come from does not matter: Wanda, SparseGPT, Shears, or a checkpoint that was trained with them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError, UnsupportedModelError
from lissome.core.files import read_json
from lissome.models.anatomy import family_anatomy
from lissome.models.model import Model
from lissome.models.parts import is_conv1d
from lissome.ops.kernels.linear import SparseLinear
from lissome.ops.kernels.packed import BREAK_EVEN, Form

KERNELS = "kernels.json"
"""Name of the file of an artifact that says how its linear layers shall be packed when it runs."""

FORMS = ("bf16", "int8", "keep")
"""What weights can be held as; ``"keep"`` leaves layers as they are."""


@dataclass(frozen=True)
class Packing:
    """What was done to one linear layer.

    Attributes:
        name: Its dotted name.
        form: ``"bf16"`` or ``"int8"``, or None when it was left as it was.
        sparse: Whether only non-zeros are stored.
        zeros: Share of zeros in its weight.
        before: Bytes of its weight.
        after: Bytes of the packed one.
        why: Why it was left.
    """

    name: str
    form: Form | None
    sparse: bool
    zeros: float
    before: int
    after: int
    why: str = ""


def pack_linears(
    module: nn.Module,
    *,
    weights: str = "bf16",
    head: str = "int8",
    dense: bool = False,
    skip: Collection[str] = (),
) -> list[Packing]:
    """Replace linear layers in place, one after the other: nothing is held twice but the layer being packed.

    A layer is stored sparse when it has enough zeros for that to be smaller. Which layers are found: ``nn.Linear`` and
    GPT-2's Conv1D, wherever they are. Layers whose weight a model reads without calling them stay, and those with
    hooks, an adapter or another forward of their own; ``nn.TransformerEncoderLayer`` calls its layers from now on,
    where it has a fast path that does not.

    Args:
        module: Any torch module, on the CPU; it is for inference afterwards.
        weights: ``"bf16"``, ``"int8"`` or ``"keep"``.
        head: The same for the language model's head, if there is one (what ``get_output_embeddings`` returns). It is
            packed also without zeros: int8 halves the bytes of what is often the largest matrix, at a cost in quality
            that is far below that of pruning. A head tied to the embeddings gets a copy; the embeddings stay.
        dense: Pack the other layers without zeros too, all weights in the kernels' order.
        skip: Names, or last parts of names, of layers to leave.

    Returns:
        What was done, by layer.

    Raises:
        ConfigError: When a setting is not known, the module is not on the CPU, or a layer cannot be packed.
    """
    for name, value in (("weights", weights), ("head", head)):
        if value not in FORMS:
            raise ConfigError(f"{name} must be one of {', '.join(FORMS)}, got {value!r}.")
    names = [name for name, part in module.named_modules() if _is_plain(part)]
    if "" in names:
        raise ConfigError("this is a single linear layer; pack it with SparseLinear.of(layer).")
    for name in names:
        weight: Any = module.get_submodule(name).weight
        if weight.device.type != "cpu":
            raise ConfigError(
                f"{name} is on {weight.device}, packed layers run on the CPU; move the model there first."
            )
    top, direct, done = _head(module), _read_directly(module), []
    for name in names:  # no list of the layers themselves: it would hold all old weights to the end
        layer: Any = module.get_submodule(name)
        form = head if layer is top else weights
        if form == "keep" or _skipped(name, skip):
            done.append(_left(name, layer, "as asked"))
        elif name in direct:
            done.append(_left(name, layer, "the model reads its weight without calling it"))
        elif layer._forward_hooks or layer._forward_pre_hooks:
            done.append(_left(name, layer, "it has hooks, which a packed layer would not call"))
        elif "forward" in vars(layer):
            done.append(_left(name, layer, "it has a forward of its own, an adapter's for example"))
        elif not layer.weight.numel():
            done.append(_left(name, layer, "it is empty"))
        else:
            done.append(_packed(module, name, layer, form, anyway=dense or layer is top))  # type: ignore[arg-type]
    return done


def _is_plain(part: nn.Module) -> bool:
    """Whether calling it is all that is done with it: subclasses of ``nn.Linear`` exist because that is not so."""
    return type(part) is nn.Linear or is_conv1d(part)


def _packed(module: nn.Module, name: str, layer: Any, form: Form, *, anyway: bool) -> Packing:
    zeros, before = zero_share(layer.weight), layer.weight.nbytes
    sparse = zeros > BREAK_EVEN[form]
    if not sparse and not anyway:
        return _left(name, layer, f"{zeros:.1%} zeros are not enough")
    made = SparseLinear.of(layer, form, sparse=sparse)
    _replace(module, layer, made)
    return Packing(name, form, sparse, zeros, before, made.packed.nbytes)


def zero_share(weight: Tensor) -> float:
    """Share of zeros."""
    return 1 - int(weight.detach().count_nonzero()) / max(1, weight.numel())


def _left(name: str, layer: Any, why: str) -> Packing:
    return Packing(name, None, False, zero_share(layer.weight), layer.weight.nbytes, layer.weight.nbytes, why)


def _skipped(name: str, skip: Collection[str]) -> bool:
    return any(f".{name}".endswith(f".{one}") for one in skip)


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever that one is held."""
    for parent in list(module.modules()):
        if isinstance(parent, nn.TransformerEncoderLayer) and old in (parent.linear1, parent.linear2):
            parent.activation_relu_or_gelu = 0  # no fast path, which would unpack weights for every call
        for name, child in list(parent._modules.items()):  # with those that are held twice
            if child is old:
                setattr(parent, name, new)


def _head(module: nn.Module) -> nn.Module | None:
    get = getattr(module, "get_output_embeddings", None)
    return get() if callable(get) else None


def _read_directly(module: nn.Module) -> set[str]:
    """Names of layers whose weight is read without a call, as far as the model's family says it."""
    try:
        return {name for branch in family_anatomy(module).branches for name in branch.direct}
    except UnsupportedModelError:
        return set()


def kernels_of(model: Model) -> dict[str, Any] | None:
    """Return how the folder that a model was read from wants its layers packed; None where it says nothing.

    Returns:
        ``weights`` and ``head`` for `pack_linears`.

    Raises:
        ArtifactError: When what the folder says is damaged.
    """
    folder = model.source.path
    path = None if folder is None else folder / KERNELS
    if path is None or not path.is_file():
        return None
    fields: Any = read_json(path)
    known = isinstance(fields, dict) and fields.keys() == {"weights", "head"}
    if not known or not all(value in FORMS for value in fields.values()):
        raise ArtifactError(f"{path} does not say how weights are held; restore or remake it.")
    return dict(fields)
