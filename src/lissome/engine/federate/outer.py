"""How far the global tensors move towards what the clients found: optimizers on the server, (θ, θ̄) → θ.

The step is that of the optimizer for the pseudo-gradient θ − θ̄ (Reddi et al. 2021, arXiv 2003.00295). Coordinates that
nobody held have θ̄ = θ, hence a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Outer(Protocol):
    """An optimizer on the server."""

    def step(self, old: Tensors, merged: Tensors) -> dict[str, Tensor]:
        """Return new values of the merged tensors, given the old ones."""

    def state(self) -> dict[str, Tensor]:
        """What it must remember across rounds, by name."""

    def restore(self, state: Tensors) -> None:
        """Take back what `state` gave."""


class Replace:
    """θ ← θ̄: plain averaging."""

    def step(self, old: Tensors, merged: Tensors) -> dict[str, Tensor]:
        """Return what was merged."""
        return dict(merged)

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Tensors) -> None:
        """Nothing."""


class Momentum:
    """θ ← θ − lr·v with v ← m·v + (θ − θ̄), with Nesterov's look-ahead by default.

    Args:
        lr: Step; 0.7 with momentum 0.9 is the choice of DiLoCo (Douillard et al. 2023, arXiv 2311.08105).
        momentum: What is left of the velocity in each round.
        nesterov: Step by (θ − θ̄) + m·v instead of v.
    """

    def __init__(self, lr: float = 0.7, momentum: float = 0.9, *, nesterov: bool = True) -> None:
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self._velocity: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, old: Tensors, merged: Tensors) -> dict[str, Tensor]:
        """Return the stepped values; whole numbers are replaced."""
        return {name: self._one(name, old[name], value) for name, value in merged.items()}

    def _one(self, name: str, old: Tensor, merged: Tensor) -> Tensor:
        if not old.is_floating_point():
            return merged
        gradient = old.float() - merged.float()
        velocity = self.momentum * self._velocity.get(name, torch.zeros(())) + gradient
        self._velocity[name] = velocity
        ahead = gradient + self.momentum * velocity if self.nesterov else velocity
        return (old.float() - self.lr * ahead).to(old.dtype)

    def state(self) -> dict[str, Tensor]:
        """The velocities."""
        return dict(self._velocity)

    def restore(self, state: Tensors) -> None:
        """Take the velocities back."""
        self._velocity = dict(state)


class Adam:
    """Adam on the pseudo-gradient, without correction of its start, as in FedAdam.

    Args:
        lr: Step (paper: 10⁻² … 10⁻¹ times what suits the clients).
        beta1: Decay of the mean.
        beta2: Decay of the mean square.
        tau: Added to the root of the mean square; also the square root of where that starts.
    """

    def __init__(self, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> None:
        self.lr, self.beta1, self.beta2, self.tau = lr, beta1, beta2, tau
        self._mean: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, old: Tensors, merged: Tensors) -> dict[str, Tensor]:
        """Return the stepped values; whole numbers are replaced."""
        return {name: self._one(name, old[name], value) for name, value in merged.items()}

    def _one(self, name: str, old: Tensor, merged: Tensor) -> Tensor:
        if not old.is_floating_point():
            return merged
        change = merged.float() - old.float()
        mean = self._mean.get(name, torch.zeros(()))
        square = self._square.get(name, torch.tensor(self.tau**2))
        self._mean[name] = mean = self.beta1 * mean + (1 - self.beta1) * change
        self._square[name] = square = self.beta2 * square + (1 - self.beta2) * change.square()
        return (old.float() + self.lr * mean / (square.sqrt() + self.tau)).to(old.dtype)

    def state(self) -> dict[str, Tensor]:
        """Means and mean squares."""
        return {f"mean/{name}": value for name, value in self._mean.items()} | {
            f"square/{name}": value for name, value in self._square.items()
        }

    def restore(self, state: Tensors) -> None:
        """Take them back."""
        self._mean = {name.removeprefix("mean/"): value for name, value in state.items() if name.startswith("mean/")}
        self._square = {
            name.removeprefix("square/"): value for name, value in state.items() if name.startswith("square/")
        }
