"""What the families of transformers share: modules that add nothing, cuts of layers, dims of attentions and MLPs."""

# G heads or KV groups, E head size, F MLP channels

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch, Cut, Dim, OtherArchitectureError, span

CACHES = ("past_key_values", "cache_params")
"""Names under which models take and return what they hold for the next token."""


class NoAttention(nn.Module):
    """Stands where an attention was: adds nothing, holds no cache."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return a zero without dimensions: it broadcasts, and dropout takes it."""
        return hidden_states.new_zeros(()), None


class NoMLP(nn.Module):
    """Stands where an MLP, or the last layer of one, was: adds nothing."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return a zero without dimensions: it broadcasts, and dropout takes it."""
        return hidden_states.new_zeros(())


def require_architecture(module: Any, known: Sequence[str]) -> str:
    """Return the model type of a module of transformers.

    Raises:
        OtherArchitectureError: When it is none of the known ones.
    """
    architecture = str(getattr(getattr(module, "config", None), "model_type", type(module).__name__))
    if architecture not in known:
        raise OtherArchitectureError(f"model type {architecture!r} is not among {', '.join(known)}", known)
    return architecture


def require_apart(anatomy: Anatomy) -> None:
    """Refuse a module in which two layers of branches hold one tensor: neither could be cut or counted alone.

    Raises:
        UnsupportedModelError: Names it.
    """
    every = (name for name, _ in anatomy.module.named_parameters(remove_duplicate=False))
    again = {*every} - {name for name, _ in anatomy.module.named_parameters()}
    for branch in anatomy.branches:
        for name in (*branch.parameters, *(cut.parameter for dim in branch.dims for cut in dim.cuts)):
            if name in again:
                raise UnsupportedModelError(f"{name} is the tensor of another layer too; give each layer its own")


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is GPT-2's Conv1D: a linear layer whose weight is [in, out]."""
    return type(layer).__name__ == "Conv1D"


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer multiplies by a weight: ``nn.Linear`` or GPT-2's Conv1D."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def makes(layer: nn.Module, path: str, units: Tensor) -> list[Cut]:
    """Cuts of the output side of a linear layer: of its weight, and of its bias when there is one."""
    cuts = [Cut(f"{path}.weight", 1 if is_conv1d(layer) else 0, units)]
    return cuts if getattr(layer, "bias", None) is None else [*cuts, Cut(f"{path}.bias", 0, units)]


def reads(layer: nn.Module, path: str, units: Tensor) -> Cut:
    """Cut of the input side of a linear layer."""
    return Cut(f"{path}.weight", 0 if is_conv1d(layer) else 1, units, reads=True)


def heads_dim(root: nn.Module, path: str, producers: Iterable[str], consumer: str, head_dim: int) -> Dim:
    """Dim of plain heads: each has E outputs of every producer and E inputs of the consumer.

    Args:
        root: The module that the paths start at.
        path: Dotted name of what the layers are in.
        producers: Names of the layers that make queries, keys and values; a name as often as it holds one of them.
        consumer: Name of the layer that reads all heads.
        head_dim: Size E of a head.
    """
    out = root.get_submodule(f"{path}.{consumer}")
    heads = inputs(out) // head_dim
    cuts: list[Cut] = []
    starts: dict[str, int] = {}
    for name in producers:
        start = starts.get(name, 0)
        starts[name] = start + heads * head_dim
        cuts += makes(root.get_submodule(f"{path}.{name}"), f"{path}.{name}", span(start, heads, head_dim))
    cuts.append(reads(out, f"{path}.{consumer}", span(0, heads, head_dim)))
    return Dim("groups", heads, tuple(cuts))


def width_dim(root: nn.Module, path: str, producers: Iterable[str], consumer: str) -> Dim:
    """Dim of MLP channels; arguments as in `heads_dim`, a channel being a head of size 1."""
    dim = heads_dim(root, path, producers, consumer, 1)
    return Dim("width", dim.size, dim.cuts, step=width_step(dim.size))


def width_step(width: int) -> int:
    """About an eighth of the width, in multiples of 32 (what matrix kernels like) where that is possible."""
    coarse = max(1, width // 8)
    return coarse // 32 * 32 or coarse


def inputs(layer: Any) -> int:
    """Number of inputs of a linear layer."""
    return int(layer.weight.shape[0 if is_conv1d(layer) else 1])


def outputs(layer: Any) -> int:
    """Number of outputs of a linear layer."""
    return int(layer.weight.shape[1 if is_conv1d(layer) else 0])


def make_branch(
    root: nn.Module,
    name: str,
    within: str,
    path: str,
    owners: tuple[str, ...],
    *,
    positions: int | Mapping[str, int] = 0,
    **facts: Any,
) -> Branch:
    """Build a branch from the submodules of its block that belong to it alone.

    Args:
        root: The module that was read.
        name: Its axis name, such as ``"layers.3.mlp"``.
        within: Dotted name of its block.
        path: Name, inside the block, of the module that is replaced when the branch goes.
        owners: Names, inside the block, of the others, which become identities then.
        positions: Over how many positions all its linear layers run, when that is fixed; or of each by its name.
        facts: Further fields of `Branch`.
    """
    layers: list[str] = []
    parameters: list[str] = []
    for part in (path, *owners):
        module = root.get_submodule(f"{within}.{part}")
        layers += [_joined(within, part, inner) for inner, child in module.named_modules() if is_linear(child)]
        parameters += [_joined(within, part, inner) for inner, _ in module.named_parameters()]
    counts = positions if isinstance(positions, Mapping) else dict.fromkeys(layers, positions) if positions else {}
    return Branch(
        name=name, positions=counts, path=f"{within}.{path}", companions=tuple(f"{within}.{owner}" for owner in owners),
        parameters=tuple(parameters), linears=tuple(layers), **facts,
    )  # fmt: skip


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def drop_blocks(layers: Any, kept: Iterable[int]) -> nn.ModuleList:
    """Return the kept blocks as a list of their own; modules that know their number get the new one."""
    left = nn.ModuleList([layers[index] for index in kept])
    for index, layer in enumerate(left):
        numbered: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for module in numbered:
            module.layer_idx = index
    return left


def common_size(branches: Iterable[Branch], kind: str, dim: str, blocks: int) -> int | None:
    """Return the size that a dim has in all blocks; None when sizes differ or a block lacks it."""
    sizes = [branch.by_name[dim].size for branch in branches if branch.kind == kind]
    return sizes[0] if len(sizes) == blocks and len(set(sizes)) == 1 else None


def cache_modes(anatomy: Anatomy, removed: frozenset[str]) -> list[str | None] | None:
    """Mark the blocks without attention and mixer for transformers' cache, which then holds a dummy; None for none.

    The field is ``kv_sharing_modes`` of the configuration: a block marked "reuse" stores nothing of its own.
    """
    kept = {branch.block for branch in anatomy.branches if branch.kind != "mlp" and branch.name not in removed}
    modes = [None if index in kept else "reuse" for index in range(len(anatomy.blocks))]
    return modes if any(modes) else None


def write_fields(target: Any, fields: Mapping[str, Any]) -> None:
    """Set attributes; None deletes one."""
    for name, value in fields.items():
        if value is not None:
            setattr(target, name, value)
        elif hasattr(target, name):
            delattr(target, name)


def write_accepted(config: Any, fields: Mapping[str, Any]) -> None:
    """Write sizes into a configuration, unless its class refuses them (odd head counts)."""
    try:
        type(config).from_dict({**config.to_dict(), **fields})
    except (ValueError, StrictDataclassError):
        return
    write_fields(config, fields)
