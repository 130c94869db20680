"""Cuts that are proposed are tried on random weights; what does not hold is rigid, with the reason.

Code may write a size down instead of asking for it, or divide channels in a way that no rule foresees. So every dim is
made smaller, all at once and, where that fails, one by one: the cut network must run, and must give what the whole one
gives with zeros in place of what is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lissome.core.errors import SubnetError
from lissome.models.anatomy import Anatomy
from lissome.models.binding import Binding, Masking
from lissome.models.traced.stand_in import results

_CLOSE = 1e-3  # relative; a wrong slice changes the outputs by about their size

Build = Callable[[Collection[str]], Anatomy]
"""Makes an anatomy of the network with random weights, without the axes of the given names."""


def verified(build: Build, inputs: Mapping[str, Tensor], *, trained: bool = False) -> tuple[Anatomy, dict[str, str]]:
    """Return an anatomy whose cuts hold, and why others do not, by axis name.

    Args:
        build: Makes the anatomy.
        inputs: What the network reads.
        trained: Whether cuts must hold in training too, because some layers run only then.
    """
    anatomy, refused = build(()), dict[str, str]()
    trial = _Trial(anatomy, inputs, trained=trained)
    for axes in (trial.sizes, trial.parts):
        if trial.fault(axes) is not None:
            refused |= _faulty(trial, axes)
    return (build(refused) if refused else anatomy), refused


def _faulty(trial: _Trial, axes: Sequence[str]) -> dict[str, str]:
    """Why some axes cannot be cut, alone or together with those before them."""
    refused: dict[str, str] = {}
    for axis in axes:
        fault = trial.fault([axis])
        if fault is not None:
            refused[axis] = fault
    left: list[str] = []
    for axis in axes:  # what holds alone may fail together
        fault = None if axis in refused else trial.fault([*left, axis]) if refused or left else None
        if fault is not None:
            refused[axis] = fault
        elif axis not in refused:
            left.append(axis)
    return refused


class _Trial:
    """Cuts of one anatomy, tried.

    Attributes:
        sizes: Names of the axes of sizes.
        parts: Names of what may go as a whole.
    """

    def __init__(self, anatomy: Anatomy, inputs: Mapping[str, Tensor], *, trained: bool) -> None:
        self._binding, self._space, self._inputs = Binding(anatomy), anatomy.space(finest=True), inputs
        self._module = anatomy.module
        self._trained = trained and self._fails_in_training() is None  # else it could not be trained whole either
        self.parts = [axis.name for axis in self._space.axes if axis.choices == (0, 1)]
        several = [axis.name for axis in self._space.axes if len(axis.choices) > 1]
        self.sizes = [name for name in several if name not in self.parts]

    def fault(self, axes: Iterable[str]) -> str | None:
        """Return what goes wrong when some axes are cut, by half and by one choice; None when nothing does."""
        names = list(axes)
        for place in (0.5, 0.99) if names and names[0] in self.sizes else (0.0,):
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
            line = _line(error)
            return f"{'leaving it out' if cut.keys() <= set(self.parts) else 'cutting it'} fails: {line}"
        else:
            fault = self._fails_in_training() if self._trained else None
            if fault is not None:
                return f"cutting it fails in training: {fault}"
        finally:
            masking.restore()
        wanted = results(self._module, self._inputs, self._zeroed(cut))
        if got.shape != wanted.shape or not torch.isfinite(got).all():
            return "cutting it changes the shape of the outputs"
        off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        return None if off <= _CLOSE else f"cutting it changes the outputs (by {off:.1g} of their size)"

    def _fails_in_training(self) -> str | None:
        """Return what goes wrong in a forward as in training; None when nothing does."""
        try:
            results(copy.deepcopy(self._module).train(), self._inputs)  # a copy: training moves running statistics
        except Exception as error:  # noqa: BLE001 - whatever a network's own code raises
            return _line(error)
        return None

    def _zeroed(self, cut: Mapping[str, int]) -> dict[str, Tensor]:
        """Weights with zeros where they would read what is gone."""
        tensors: dict[str, Tensor] = {}
        for branch in self._binding.anatomy.branches:
            if not cut.get(branch.name, 1):
                tensors |= {name: torch.zeros_like(self._module.get_parameter(name)) for name in branch.parameters}
                continue
            for dim in branch.dims:
                kept = cut.get(branch.axis(dim.name), dim.size)
                for part in dim.cuts:
                    if part.reads and kept < dim.size:
                        whole = tensors.get(part.parameter)
                        whole = self._module.get_parameter(part.parameter).clone() if whole is None else whole
                        tensors[part.parameter] = whole.index_fill_(part.dim, part.dropped(kept), 0)
        return tensors


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return next((each.strip() for each in str(error).splitlines() if each.strip()), type(error).__name__)[:120]
