"""State-space language models without attention: Mamba-1 and Mamba-2, dense or already cut.

Each block is ``x += mixer(norm(x))``. A mixer can go as a whole, and its block and states with it. It can lose its
scan (dim ``"ssm"``, one unit): the layers, rows, channels and states that only the scan used are gone then. Or it can
get smaller: by channels of Mamba-1, and by heads of Mamba-2, one of every group of B and C at a time, so that the
groups stay equal; the norm then runs over the channels that are left.
"""

# D residual width, C channels, N states, H heads of P channels, G groups of B and C

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import UnsupportedModelError
from lissome.models.anatomy import Anatomy, Branch, Cut, Dim, span
from lissome.models.mixing import StateSpace
from lissome.models.parts import (
    cache_modes,
    drop_blocks,
    make_branch,
    makes,
    reads,
    require_architecture,
    width_step,
    write_fields,
)

ARCHITECTURES = ("mamba", "mamba2")


class NoMixer(nn.Module):
    """Stands where a mixer was: adds nothing, holds no state."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return a zero without dimensions: it broadcasts."""
        return hidden_states.new_zeros(())


def read(module: Any) -> Anatomy:
    """Read the anatomy of a Mamba language model.

    Raises:
        UnsupportedModelError: Says which part was not understood.
    """
    config: Any = getattr(module, "config", None)
    architecture = require_architecture(module, ARCHITECTURES)
    if not hasattr(module, "backbone") or not hasattr(module, "lm_head"):
        raise UnsupportedModelError(f"{type(module).__name__} has no backbone with lm_head; give the language model")
    blocks = tuple(f"backbone.layers.{index}" for index in range(len(module.backbone.layers)))
    branches = tuple(
        # the norm stays in place under a mask, because the block asks for its weight; a cut drops the whole block
        replace(mixer_branch(module, index, block, "mixer", "norm"), companions=())
        for index, block in enumerate(blocks)
    )
    return Anatomy(
        family=StateSpaceModel(),
        architecture=architecture,
        module=module,
        blocks=blocks,
        branches=branches,
        hidden=int(config.hidden_size),
        vocabulary=int(module.lm_head.weight.shape[0]),
        quorums=(tuple(branch.name for branch in branches),),
    )


def mixer_branch(module: nn.Module, index: int, block: str, path: str, norm: str) -> Branch:
    """Describe the mixer of a block.

    Args:
        module: The module that was read.
        index: Index of the block.
        block: Dotted name of the block.
        path: Name of the mixer in the block.
        norm: Name of the norm before it.
    """
    mixer: Any = module.get_submodule(f"{block}.{path}")
    describe = _mamba2 if hasattr(mixer, "num_heads") else _mamba1
    dims, mixing = describe(mixer, f"{block}.{path}")
    # dt_proj is split from its bias; compiled kernels take out_proj apart, and peft refuses adapters there
    direct = frozenset(f"{block}.{path}.{name}" for name in ("dt_proj", "out_proj"))
    return make_branch(
        module, f"layers.{index}.mixer", block, path, (norm,),
        kind="mixer", block=index, dims=dims, mixing=mixing, direct=direct,
    )  # fmt: skip


def _mamba1(mixer: Any, path: str) -> tuple[tuple[Dim, ...], StateSpace]:
    size, states = int(mixer.out_proj.weight.shape[1]), mixer.ssm_state_size
    each = span(0, size, 1)
    cuts = [
        *makes(mixer.in_proj, f"{path}.in_proj", each),
        *makes(mixer.in_proj, f"{path}.in_proj", span(size, size, 1)),
        *makes(mixer.conv1d, f"{path}.conv1d", each),
        reads(mixer.out_proj, f"{path}.out_proj", each),
    ]
    scan: list[Cut] = []
    if _scans(mixer):
        cuts += [
            *makes(mixer.dt_proj, f"{path}.dt_proj", each),
            *(Cut(f"{path}.{name}", 0, each) for name in ("A_log", "D")),
            reads(mixer.x_proj, f"{path}.x_proj", each),
        ]
        scan += makes(mixer.x_proj, f"{path}.x_proj", _all(mixer.x_proj.weight.shape[0]))
        scan += makes(mixer.dt_proj, f"{path}.dt_proj", _all(size))
        scan += [Cut(f"{path}.{name}", 0, _all(size)) for name in ("A_log", "D")]
    mixing = StateSpace("channels", 1, states, mixer.conv_kernel_size, own_decay=True, wide=_wide(mixer))
    return (Dim("channels", size, tuple(cuts), step=width_step(size)), _ssm(scan)), mixing


def _mamba2(mixer: Any, path: str) -> tuple[tuple[Dim, ...], StateSpace]:
    size, width, groups = int(mixer.out_proj.weight.shape[1]), mixer.head_dim, mixer.n_groups
    heads, shared = size // width // groups, 2 * groups * mixer.ssm_state_size

    def channels(start: int) -> Tensor:
        return span(start, heads, width, lanes=groups, lane_stride=heads * width, stride=width)

    def each(start: int) -> Tensor:
        return span(start, heads, 1, lanes=groups, lane_stride=heads)

    cuts = [
        *makes(mixer.in_proj, f"{path}.in_proj", channels(0)),
        *makes(mixer.in_proj, f"{path}.in_proj", channels(size)),
        *makes(mixer.conv1d, f"{path}.conv1d", channels(0)),
        Cut(f"{path}.norm.weight", 0, channels(0)),
        reads(mixer.out_proj, f"{path}.out_proj", channels(0)),
    ]
    scan: list[Cut] = []
    if _scans(mixer):
        cuts += makes(mixer.in_proj, f"{path}.in_proj", each(2 * size + shared))
        cuts += [Cut(f"{path}.{name}", 0, each(0)) for name in ("A_log", "D", "dt_bias")]
        scan += makes(mixer.in_proj, f"{path}.in_proj", _all(shared + groups * heads, 2 * size))
        scan += makes(mixer.conv1d, f"{path}.conv1d", _all(shared, size))
        scan += [Cut(f"{path}.{name}", 0, _all(groups * heads)) for name in ("A_log", "D", "dt_bias")]
    mixing = StateSpace(
        "heads", groups * width, mixer.ssm_state_size, mixer.conv_kernel_size, shared=shared, wide=_wide(mixer)
    )
    return (Dim("heads", heads, tuple(cuts)), _ssm(scan)), mixing


def _scans(mixer: nn.Module) -> bool:
    from lissome.models.mixers import has_scan

    return has_scan(mixer)


def _ssm(cuts: list[Cut]) -> Dim:
    """The scan as a dim of one unit; of none when it is gone already."""
    return Dim("ssm", 1 if cuts else 0, tuple(cuts), least=0)


def _all(count: int, start: int = 0) -> Tensor:
    """One unit of `count` neighbours."""
    return span(start, 1, count)


def _wide(mixer: Any) -> int:
    """Numbers of the model's own type that one number of the SSM state takes, which is float32."""
    return max(1, torch.float32.itemsize // int(mixer.out_proj.weight.dtype.itemsize))


def resized(module: nn.Module, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return attributes, by module path, of a mixer whose dims get `sizes`; without its scan it is of another class."""
    from lissome.models.mixers import scanless

    mixer: Any = module.get_submodule(branch.path)
    kind: dict[str, Any] = {} if sizes["ssm"] else {"__class__": scanless(mixer)}
    if "channels" in sizes:
        return {branch.path: {"intermediate_size": sizes["channels"], **kind}}
    heads, shared = sizes["heads"] * mixer.n_groups, 2 * mixer.n_groups * mixer.ssm_state_size * sizes["ssm"]
    size = heads * mixer.head_dim
    return {
        branch.path: {"num_heads": heads, "intermediate_size": size, "conv_dim": size + shared, **kind},
        f"{branch.path}.norm": {"group_size": size // mixer.n_groups},
    }


def drop_scans(module: nn.Module) -> None:
    """Take out what is left, empty, of the scans that are gone."""
    for mixer in module.modules():
        if hasattr(mixer, "A_log") and mixer.A_log is None:
            for name in ("x_proj", "dt_proj", "A_log", "D", "dt_bias"):
                if hasattr(mixer, name):
                    delattr(mixer, name)


def uniform_sizes(branches: tuple[Branch, ...]) -> dict[str, int] | None:
    """Sizes that all mixers have; None when they differ, or a scan is gone."""
    sizes = [{dim.name: dim.size for dim in branch.dims} for branch in branches if branch.kind == "mixer"]
    alike = bool(sizes) and all(size == sizes[0] for size in sizes) and sizes[0]["ssm"] > 0
    return sizes[0] if alike else None


class StateSpaceModel:
    """Operations on Mamba language models; see `lissome.models.anatomy.Family`."""

    name = "ssm"

    def absent(self, branch: Branch) -> nn.Module:
        """Return the module that stands for a removed mixer."""
        return NoMixer()

    def resize(self, module: nn.Module, branch: Branch, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Return attributes that the mixer's forward reads and that follow its sizes."""
        return resized(module, branch, sizes)

    def settle(self, module: nn.Module, removed: frozenset[str], anatomy: Anatomy) -> dict[str, Any]:
        """Mark removed mixers for transformers' cache, which then holds a dummy in their place."""
        return {"kv_sharing_modes": cache_modes(anatomy, removed)}

    def finish(self, module: Any) -> None:
        """Drop the blocks of removed mixers, renumber the rest, and write uniform sizes into the configuration."""
        config, layers = module.config, module.backbone.layers
        drop_scans(module)
        module.backbone.layers = drop_blocks(
            layers, [index for index, layer in enumerate(layers) if not isinstance(layer.mixer, NoMixer)]
        )
        config.num_hidden_layers = len(module.backbone.layers)
        anatomy = read(module)
        write_fields(config, self.settle(module, frozenset(), anatomy))
        sizes = uniform_sizes(anatomy.branches)
        if sizes is not None:
            _write_uniform(config, sizes, module.backbone.layers[0].mixer)

    def head(self, module: Any, hidden: Tensor) -> Tensor:
        """Final norm and vocabulary projection: [..., D] → [..., V]."""
        states: Tensor = module.backbone.norm_f(hidden)
        logits: Tensor = module.lm_head(states.to(module.lm_head.weight.dtype)).float()
        return logits


def _write_uniform(config: Any, sizes: Mapping[str, int], mixer: Any) -> None:
    """Write equal sizes into a configuration, which can only say how many times the residual width the channels are."""
    expand, rest = divmod(mixer.intermediate_size, config.hidden_size)
    if rest:
        return
    config.expand = expand
    if "heads" in sizes:
        config.num_heads = mixer.num_heads
    else:
        config.intermediate_size = mixer.intermediate_size
