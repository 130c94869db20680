"""Search without gradients: an evolution strategy whose covariance is diagonal, for some tens to thousands of numbers.

Separable CMA-ES (Ros & Hansen 2008, doi 10.1007/978-3-540-87700-4_30): CMA-ES with its diagonal alone, which learns
(d+2)/3 times as fast. Whoever asks evaluates; nothing here knows what the numbers mean.
"""

# P candidates, D numbers of each

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Evolution:
    """Minimises a function of D numbers, of which only values are known.

    Args:
        size: D.
        candidates: P of each generation (default: 4 + 3·ln D); the better half counts.
        step: First standard deviation.
    """

    def __init__(self, size: int, candidates: int | None = None, *, step: float = 1.0) -> None:
        self.candidates = candidates or 4 + int(3 * math.log(size))
        best = self.candidates // 2
        weights = math.log(best + 0.5) - torch.arange(1, best + 1, dtype=torch.float64).log()
        self._weights = weights / weights.sum()
        effective = 1 / float(self._weights.square().sum())
        self._effective, self._size = effective, size
        self._decay_step = (effective + 2) / (size + effective + 5)
        self._damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (size + 1)) - 1) + self._decay_step
        self._decay = (4 + effective / size) / (size + 4 + 2 * effective / size)
        faster = (size + 2) / 3
        self._one = min(1.0, faster * 2 / ((size + 1.3) ** 2 + effective))
        rest = faster * 2 * (effective - 2 + 1 / effective) / ((size + 2) ** 2 + effective)
        self._many = min(1 - self._one, rest)
        self._length = math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))  # of a standard normal vector
        zeros = torch.zeros(size, dtype=torch.float64)
        self._state = {
            "mean": zeros, "variance": zeros + 1, "path": zeros.clone(), "step_path": zeros.clone(),
            "step": torch.tensor(step, dtype=torch.float64), "generation": torch.tensor(0),
        }  # fmt: skip

    @property
    def mean(self) -> Tensor:
        """The best guess, float64[D]."""
        return self._state["mean"]

    def ask(self, generator: torch.Generator) -> Tensor:
        """Draw the candidates of a generation, float64[P, D]; the same again with the same generator."""
        drawn = torch.randn(self.candidates, self._size, generator=generator, dtype=torch.float64)
        return self.mean + self._state["step"] * self._state["variance"].sqrt() * drawn

    def tell(self, candidates: Tensor, losses: Tensor) -> None:
        """Learn how good candidates were.

        Args:
            candidates: What `ask` gave, [P, D].
            losses: Of each, lower is better, [P].
        """
        old, best = self._state, losses.argsort(stable=True)[: len(self._weights)]
        moves = (candidates[best].double() - old["mean"]) / old["step"]
        move, generation = self._weights @ moves, int(old["generation"]) + 1
        keep = 1 - self._decay_step
        gain = math.sqrt(self._decay_step * (2 - self._decay_step) * self._effective)
        step_path = keep * old["step_path"] + gain * move / old["variance"].sqrt()
        length = float(step_path.norm()) / math.sqrt(1 - keep ** (2 * generation))
        steady = float(length < (1.4 + 2 / (self._size + 1)) * self._length)  # no jump, which would stretch the path
        gain = steady * math.sqrt(self._decay * (2 - self._decay) * self._effective)
        path = (1 - self._decay) * old["path"] + gain * move
        lost = (1 - steady) * self._decay * (2 - self._decay)
        variance = (1 - self._one - self._many + self._one * lost) * old["variance"]
        variance = variance + self._one * path.square() + self._many * (self._weights @ moves.square())
        longer = float(step_path.norm()) / self._length - 1
        self._state = {
            "mean": old["mean"] + old["step"] * move, "variance": variance, "path": path, "step_path": step_path,
            "step": old["step"] * math.exp(self._decay_step / self._damping * longer),
            "generation": torch.tensor(generation),
        }  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """What must survive a kill."""
        return dict(self._state)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._state = {name: state[name] for name in self._state}
