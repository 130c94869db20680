"""Cuts that are proposed are tried on random weights; what does not hold is rigid, with the reason.

Code may write a size down instead of asking for it, or divide channels in a way that no rule foresees. So every dim is
made smaller, all at once and, where that fails, one by one: the cut network must run, and must give what the whole one
gives with zeros in place of what is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from lissome.core.errors import SubnetError
from lissome.models.anatomy import Anatomy
from lissome.models.binding import Binding, Masking
from lissome.models.traced.stand_in import results

_CLOSE = 1e-3  # relative; a wrong slice changes the outputs by about their size

Build = Callable[[Collection[str]], Anatomy]
"""Makes an anatomy of the network with random weights, without the axes of the given names."""


def verified(build: Build, inputs: Mapping[str, Tensor]) -> tuple[Anatomy, dict[str, str]]:
    """Return an anatomy whose cuts hold, and why others do not, by axis name.

    Args:
        build: Makes the anatomy.
        inputs: What the network reads.
    """
    anatomy, refused = build(()), dict[str, str]()
    trial = _Trial(anatomy, inputs)
    if trial.fault(trial.axes) is None:
        return anatomy, refused
    for axis in trial.axes:
        fault = trial.fault([axis])
        if fault is not None:
            refused[axis] = fault
    left: list[str] = []
    for axis in trial.axes:  # what holds alone may fail together
        fault = None if axis in refused else trial.fault([*left, axis]) if refused or left else None
        if fault is not None:
            refused[axis] = fault
        elif axis not in refused:
            left.append(axis)
    return build(refused), refused


class _Trial:
    """Cuts of one anatomy, tried."""

    def __init__(self, anatomy: Anatomy, inputs: Mapping[str, Tensor]) -> None:
        self._binding, self._space, self._inputs = Binding(anatomy), anatomy.space(finest=True), inputs
        self._module = anatomy.module
        self.axes = [axis.name for axis in self._space.axes if axis.choices != (0, 1) and len(axis.choices) > 1]

    def fault(self, axes: Iterable[str]) -> str | None:
        """Return what goes wrong when some axes are cut, by half and by one choice; None when nothing does."""
        names = list(axes)
        for place in (0.5, 0.99):
            cut = {}
            for name in names:
                choices = self._space.by_name[name].choices[:-1]
                cut[name] = choices[int(place * len(choices))]
            fault = self._of(cut)
            if fault is not None:
                return fault
        return None

    def _of(self, cut: Mapping[str, int]) -> str | None:
        masking = Masking(self._binding, self._space)
        try:
            masking.switch({**self._space.full, **cut})
            got = results(self._module, self._inputs)
        except SubnetError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a network's own code raises
            line = next((each.strip() for each in str(error).splitlines() if each.strip()), type(error).__name__)
            return f"cutting it fails: {line[:120]}"
        finally:
            masking.restore()
        wanted = results(self._module, self._inputs, self._zeroed(cut))
        if got.shape != wanted.shape or not torch.isfinite(got).all():
            return "cutting it changes the shape of the outputs"
        off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        return None if off <= _CLOSE else f"cutting it changes the outputs (by {off:.1g} of their size)"

    def _zeroed(self, cut: Mapping[str, int]) -> dict[str, Tensor]:
        """Weights with zeros where they would read what is gone."""
        tensors: dict[str, Tensor] = {}
        for branch in self._binding.anatomy.branches:
            for dim in branch.dims:
                kept = cut.get(branch.axis(dim.name), dim.size)
                for part in dim.cuts:
                    if part.reads and kept < dim.size:
                        whole = tensors.get(part.parameter)
                        whole = self._module.get_parameter(part.parameter).clone() if whole is None else whole
                        tensors[part.parameter] = whole.index_fill_(part.dim, part.dropped(kept), 0)
        return tensors
