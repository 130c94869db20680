"""From atoms to dims: channels that one layer makes are units of a dim, with every tensor slice that goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lissome.models.anatomy import Cut
from lissome.models.stated import CROPPED
from lissome.models.stored import shared
from lissome.models.traced.atoms import Side
from lissome.models.traced.recorder import Recording

_ALL_HEADS = {"all_head_size", "attn_dim", "attention_dim", "inner_dim"}
"""Names under which modules keep the channels of all their heads."""

FITTED = "__class__"
"""What is stated of a module whose forward writes a size down: its class is another one."""


@dataclass(frozen=True, eq=False)
class Found:
    """A dim that was found.

    Attributes:
        maker: Dotted name of the first layer that makes its units.
        kind: ``"width"`` (channels), ``"groups"`` (several channels each) or ``"kernel"``.
        size: Number of units.
        cuts: Every tensor slice that goes with a unit.
        allowed: Sizes to choose from; empty where steps say it.
        stated: Attributes that say the number of units, or of channels: path of the module, name, channels of a unit.
    """

    maker: str
    kind: str
    size: int
    cuts: tuple[Cut, ...]
    allowed: tuple[int, ...] = ()
    stated: tuple[tuple[str, str, int], ...] = ()

    @property
    def axis(self) -> str:
        """Name of its axis."""
        return f"{self.maker}.{self.kind}"

    @property
    def fitted(self) -> tuple[tuple[str, str, int], ...]:
        """As `stated`: the modules around the layers that are cut, whose forwards may write down how many there are."""
        return tuple((path, FITTED, _width(self.cuts)) for path in _around(self.cuts))


def widths(module: nn.Module, recording: Recording) -> tuple[list[Found], dict[str, str]]:
    """Return the dims of channels, and why layers that make channels have none, by axis name."""
    roots = recording.atoms.roots()
    reasons = recording.atoms.rigid(roots)
    sides = recording.atoms.sides
    makers = [side for side in sides if (side.tensor, side.dim) in recording.makers]
    found, rigid, known, twice = list[Found](), dict[str, str](), set[str](), _twice(module)
    for members in _together(makers, roots):
        known.update(side.tensor for side in members)
        first = members[0]
        axis = f"{owner(first.tensor)}.width"
        units = list(dict.fromkeys(_roots(first, roots).tolist()))
        why = next((reasons[unit] for unit in units if unit in reasons), None)
        if why is None and any(set(_roots(side, roots).tolist()) != set(units) for side in members):
            why = "its channels are only part of those of another layer that they are added to"
        cuts = None if why else _cuts(sides, units, roots, recording)
        if cuts is not None:  # a cut reaches a tensor in one layer alone
            why = next(
                (f"{cut.parameter} is also {twice[cut.parameter]}" for cut in cuts if cut.parameter in twice), None
            )
        if why or cuts is None:
            rigid[axis] = why or "its units do not have equally many channels everywhere"
        elif len(units) > 1:
            kind = "width" if first.size == len(units) else "groups"
            stated = () if kind == "width" else _stated(module, cuts, len(units))
            found.append(Found(owner(first.tensor), kind, len(units), cuts, stated=stated))
        else:
            rigid[axis] = "all its channels go together"
    known.update(cut.parameter for each in found for cut in each.cuts)
    for name, value in module.named_parameters():
        if value.ndim > 1 and name not in known:
            side = next((side for side in sides if side.tensor == name), None)
            idle = "it makes no channels alone" if name in recording.used else "it does not run in evaluation"
            why = None if side is None else next((reasons[one] for one in _roots(side, roots) if one in reasons), None)
            rigid.setdefault(f"{owner(name)}.width", why or idle)
    return found, rigid


def _twice(module: nn.Module) -> dict[str, str]:
    """The second name of every tensor that two layers share."""
    layers = {names[0]: [module.get_submodule(name.rpartition(".")[0]) for name in names] for names in shared(module)}
    return {
        names[0]: other
        for names in shared(module)
        for other, layer in zip(names, layers[names[0]], strict=True)
        if layer is not layers[names[0]][0]
    }


def owner(tensor: str) -> str:
    """Name of the layer that a weight belongs to; a parameter of another name stands for itself."""
    return tensor.removesuffix(".weight")


def _stated(module: nn.Module, cuts: Sequence[Cut], units: int) -> tuple[tuple[str, str, int], ...]:
    """Attributes of the modules around the cut layers that count heads, or the channels of all heads."""
    width = _width(cuts)
    return tuple(
        (path, name, value // units)
        for path in _around(cuts)
        for name, value in vars(module.get_submodule(path)).items()
        if isinstance(value, int)
        and ((value == units and _counts_heads(name)) or (value == units * width and name in _ALL_HEADS))
    )


def _around(cuts: Sequence[Cut]) -> list[str]:
    """Paths of the modules that hold layers which are cut."""
    return sorted({cut.parameter.rpartition(".")[0].rpartition(".")[0] for cut in cuts})


def _width(cuts: Sequence[Cut]) -> int:
    """Channels of a unit, where they are read."""
    return int(next((cut for cut in cuts if cut.reads), cuts[-1]).units.shape[2])


def _counts_heads(name: str) -> bool:
    """Whether an attribute says how many heads there are, not how large one of them is."""
    return name in {"h", "nh"} or ("head" in name and not name.endswith(("dim", "size")))


def _roots(side: Side, roots: NDArray[np.int64]) -> NDArray[np.int64]:
    return roots[side.start : side.start + side.size]


def _together(makers: Sequence[Side], roots: NDArray[np.int64]) -> list[list[Side]]:
    """Makers by what they make: those that share a unit, in order of the first."""
    lists: list[list[Side]] = []
    home: dict[int, list[Side]] = {}
    for side in makers:
        units = set(_roots(side, roots).tolist())
        met = {id(home[unit]): home[unit] for unit in units if unit in home}
        members = [*(each for group in met.values() for each in group), side]
        lists = [group for group in lists if id(group) not in met]
        lists.append(members)
        for each in members:
            home.update(dict.fromkeys(_roots(each, roots).tolist(), members))
    order = {id(side): index for index, side in enumerate(makers)}
    for group in lists:
        group.sort(key=lambda side: order[id(side)])
    return sorted(lists, key=lambda group: order[id(group[0])])


def _cuts(
    sides: Iterable[Side], units: Sequence[int], roots: NDArray[np.int64], recording: Recording
) -> tuple[Cut, ...] | None:
    """Where the units lie in every tensor; None when they do not lie there equally often."""
    place = {unit: index for index, unit in enumerate(units)}
    cuts = []
    for side in sides:
        at: list[list[int]] = [[] for _ in units]
        for position, root in enumerate(_roots(side, roots).tolist()):
            if root in place:
                at[place[root]].append(position)
        widths_found = {len(positions) for positions in at}
        if widths_found == {0}:
            continue
        if len(widths_found) > 1:
            return None
        reads = (side.tensor, side.dim) in recording.readers and (side.tensor, side.dim) not in recording.makers
        cuts.append(Cut(side.tensor, side.dim, torch.tensor(at).unsqueeze(1), reads=reads))
    return tuple(cuts)


def kernels(module: nn.Module, used: Mapping[str, int]) -> tuple[list[Found], dict[str, str]]:
    """Return a dim for every large square kernel: the centre stays, and the padding shrinks with it.

    Args:
        module: The network.
        used: Multiply-accumulates by name of the weight: what is not in it never ran.
    """
    found, rigid = list[Found](), dict[str, str]()
    for path, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d) or f"{path}.weight" not in used:
            continue
        if max(layer.kernel_size) <= 3 and not hasattr(layer, CROPPED):
            continue
        why = _rigid_kernel(layer)
        if why:
            rigid[f"{path}.kernel"] = why
            continue
        size = layer.kernel_size[0]
        units = centre_out(size).view(-1, 1, 1)
        cuts = tuple(Cut(f"{path}.weight", dim, units, reads=True) for dim in (2, 3))
        found.append(Found(path, "kernel", size, cuts, tuple(range(3, size + 1, 2))))
    return found, rigid


def centre_out(size: int) -> Tensor:
    """Indices of a kernel of odd size from the centre outwards: any odd number of leading ones is a centred crop."""
    centre = size // 2
    return torch.tensor([centre] + [centre + sign * step for step in range(1, centre + 1) for sign in (-1, 1)])


def _rigid_kernel(layer: nn.Conv2d) -> str | None:
    height, width = layer.kernel_size
    if height != width or height % 2 == 0:
        return f"its kernel is {height}×{width}, not square and odd"
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return "its padding is not a number of zeros"
    if max(layer.dilation) > 1:
        return "its kernel is dilated"
    if 0 < min(layer.padding) < (height - 3) // 2:
        return "its padding is too small"
    return None  # without padding of its own, the network may adapt it, or a trial will say that it does not
