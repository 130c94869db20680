"""Cuts that are proposed are tried on random weights; what does not hold is rigid, with the reason.

Code may write a size down instead of asking for it, go another way below some size, or divide channels in a way that
no rule foresees. So every dim is made smaller, all at once and, where that fails, one by one: the cut network must run,
and must give what the whole one gives with zeros in place of what is gone. What holds by half but not at its smallest
keeps as many units as it needs; sizes drawn at random show what fails only beside others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from random import Random

import torch
from torch import Tensor

from lissome.core.errors import SubnetError, first_line
from lissome.models.anatomy import Anatomy
from lissome.models.binding import Binding, Masking
from lissome.models.traced.stand_in import results

_CLOSE = 1e-3  # relative; a wrong slice changes the outputs by about their size

_DRAWS = 2  # random Subnets that are tried

Build = Callable[[Collection[str], Mapping[str, int], Collection[str]], Anatomy]
"""Makes an anatomy of the network with random weights: without the axes of the given names, with the fewest units of
others, and with views that fit in the forwards around the layers of still others."""

Fault = Callable[[Iterable[str]], str | None]
"""Says what goes wrong when some axes are cut in a certain way; None when nothing does."""


def verified(build: Build, inputs: Mapping[str, Tensor], *, trained: bool = False) -> tuple[Anatomy, dict[str, str]]:
    """Return an anatomy whose cuts hold, and why others do not, by axis name.

    Args:
        build: Makes the anatomy.
        inputs: What the network reads.
        trained: Whether cuts must hold in training too, because some layers run only then.
    """
    anatomy = build((), {}, ())
    trial = _Trial(anatomy, inputs, trained=trained)
    refused, fitted = trial.refused(), list[str]()
    stiff = [axis for axis in trial.sizes if axis in refused and axis.endswith(".groups")]  # heads, and their like
    if stiff:
        still = _Trial(build((), {}, stiff), inputs, trained=trained).refused()
        fitted = [axis for axis in stiff if axis not in still]
    if fitted:
        anatomy = build((), {}, fitted)
        trial = _Trial(anatomy, inputs, trained=trained)
        refused = trial.refused()
    sizes = [axis for axis in trial.sizes if axis not in refused]
    limited: dict[str, str] = {}
    if trial.least(sizes) is not None:
        limited = trial.limits(sizes)
        refused |= _faulty(trial.least, sizes)
    refused |= _faulty(trial.drawn, [axis for axis in (*sizes, *trial.parts) if axis not in refused])
    reasons = limited | refused
    return (build(refused, trial.fewest, fitted) if reasons else anatomy), reasons


def _faulty(fault: Fault, axes: Sequence[str]) -> dict[str, str]:
    """Why some axes cannot be cut, alone or together with those before them."""
    refused: dict[str, str] = {}
    if not axes or fault(axes) is None:
        return refused
    for axis in axes:
        found = fault([axis])
        if found is not None:
            refused[axis] = found
    left: list[str] = []
    for axis in axes:  # what holds alone may fail together
        found = None if axis in refused else fault([*left, axis]) if refused or left else None
        if found is not None:
            refused[axis] = found
        elif axis not in refused:
            left.append(axis)
    return refused


class _Trial:
    """Cuts of one anatomy, tried.

    Attributes:
        sizes: Names of the axes of sizes.
        parts: Names of what may go as a whole.
        fewest: Units that must stay, by name of the axis; those of others may go down to their smallest choice.
    """

    def __init__(self, anatomy: Anatomy, inputs: Mapping[str, Tensor], *, trained: bool) -> None:
        self._binding, self._space, self._inputs = Binding(anatomy), anatomy.space(finest=True), inputs
        self._module = anatomy.module
        self._trained = trained and self._fails_in_training() is None  # else it could not be trained whole either
        self.parts = [axis.name for axis in self._space.axes if axis.choices == (0, 1)]
        several = [axis.name for axis in self._space.axes if len(axis.choices) > 1]
        self.sizes = [name for name in several if name not in self.parts]
        self.fewest: dict[str, int] = {}

    def refused(self) -> dict[str, str]:
        """Return why some axes cannot be cut, by name."""
        return _faulty(self.fault, self.sizes) | _faulty(self.fault, self.parts)

    def fault(self, axes: Iterable[str]) -> str | None:
        """Return what goes wrong when some axes are cut, by half and by one choice; None when nothing does."""
        names = list(axes)
        for place in (0.5, 0.99) if names and names[0] in self.sizes else (0.0,):
            fault = self._of({name: self._smaller(name, place) for name in names})
            if fault is not None:
                return fault
        return None

    def least(self, axes: Iterable[str]) -> str | None:
        """Return what goes wrong when some axes are cut to their smallest choice; None when nothing does."""
        return self._of({name: self._choices(name)[0] for name in axes})

    def drawn(self, axes: Iterable[str]) -> str | None:
        """Return what goes wrong when some axes are cut at random, alike in any company; None when nothing does."""
        names = list(axes)
        for draw in range(_DRAWS):
            fault = self._of({name: Random(f"{draw} {name}").choice(self._choices(name)) for name in names})
            if fault is not None:
                return fault
        return None

    def limits(self, axes: Iterable[str]) -> dict[str, str]:
        """Let axes of sizes that hold by half keep as many units as they need; return why, by name."""
        limited = {}
        for name in axes:
            fault = self.least([name])
            if fault is not None:
                choices = self._choices(name)
                low, high = 0, choices.index(self._smaller(name, 0.5))
                while high - low > 1:
                    middle = (low + high) // 2
                    found = self._of({name: choices[middle]})
                    low, high, fault = (low, middle, fault) if found is None else (middle, high, found)
                self.fewest[name] = choices[high]
                limited[name] = f"below {choices[high]}, {fault}"
        return limited

    def _choices(self, name: str) -> tuple[int, ...]:
        return tuple(size for size in self._space.by_name[name].choices if size >= self.fewest.get(name, 0))

    def _smaller(self, name: str, place: float) -> int:
        """The choice at some place below the full one, from the smallest (0) to the largest (1)."""
        choices = self._space.by_name[name].choices[:-1]
        return choices[int(place * len(choices))]

    def _of(self, cut: Mapping[str, int]) -> str | None:
        masking = Masking(self._binding, self._space)
        try:
            masking.switch({**self._space.full, **cut})
            got = results(self._module, self._inputs)
        except SubnetError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a network's own code raises
            line = first_line(error)
            return f"{'leaving it out' if cut.keys() <= set(self.parts) else 'cutting it'} fails: {line}"
        else:
            fault = self._fails_in_training() if self._trained else None
            if fault is not None:
                return f"cutting it fails in training: {fault}"
        finally:
            masking.restore()
        wanted = results(self._module, self._inputs, self._zeroed(cut))
        if not (torch.isfinite(got).all() and torch.isfinite(wanted).all()):
            return "the outputs are NaN or infinite when it is cut"
        if got.shape != wanted.shape:
            return "cutting it changes the shape of the outputs"
        off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        return None if off <= _CLOSE else f"cutting it changes the outputs (by {off:.1g} of their size)"

    def _fails_in_training(self) -> str | None:
        """Return what goes wrong in a forward as in training; None when nothing does."""
        try:
            results(copy.deepcopy(self._module).train(), self._inputs)  # a copy: training moves running statistics
        except Exception as error:  # noqa: BLE001 - whatever a network's own code raises
            return first_line(error)
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
