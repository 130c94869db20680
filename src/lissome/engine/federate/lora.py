"""Merging low-rank adapters by what they compute: the mean of products B·A, which that of factors is not.

The product of mean factors, (Σ wᵢBᵢ)(Σ wᵢAᵢ), has cross terms that no client asked for. Here products are averaged;
then either factored again to the rank at hand (FlexLoRA; Bai et al. 2024, arXiv 2402.11505), or folded into the frozen
weights, which loses nothing (FLoRA, which stacks factors to the same end; Wang et al. 2024, arXiv 2409.05976).
"""

# O outputs, I inputs, R rank

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lissome.core.errors import FederationError
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.client import Answer, Work
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.merge import Overlap, Piece, Tensors
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.federate.training import TrainingClient, is_private
from lissome.models.adapters import adapters
from lissome.models.adapters.layers import is_adapter_tensor
from lissome.models.model import Model
from lissome.models.parts import is_conv1d
from lissome.models.space import Subnet

_A, _B = ".adapter.A", ".adapter.B"


@dataclass(frozen=True)
class Fold:
    """Where the product of one adapter goes.

    Attributes:
        weight: Name of the frozen weight.
        scale: What the product is multiplied with.
        transposed: Whether the weight is stored as [I, O].
    """

    weight: str
    scale: float
    transposed: bool


def folds(model: Model) -> dict[str, Fold]:
    """Return where the adapters of a model belong, by the name of their layer."""
    return {
        name: Fold(f"{name}.weight", one.scale, is_conv1d(model.module.get_submodule(name)))
        for name, one in adapters(model.module).items()
    }


class Products:
    """Mean of products B·A [O, I] over clients, whatever their ranks; other tensors are averaged as by `Overlap`.

    Memory is a dense matrix per adapter, however many clients there are.

    Args:
        base: The old values.
        into: Where products are folded into weights; None factors them again, to the rank of the old values.
    """

    keeps: bool = False
    limits: bool = False

    def __init__(self, base: Tensors, into: Mapping[str, Fold] | None = None) -> None:
        self.base, self._into = base, into
        self._rest = Overlap(base)
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, piece: Piece) -> None:
        """Take a piece in.

        Raises:
            FederationError: When an adapter lacks a factor, or is a slice of more than its rank.
        """
        layers = sorted(name.removesuffix(_A) for name in piece.layout.places if name.endswith(_A))
        for layer in layers:
            first, second = piece.layout.places[layer + _A], piece.layout.places.get(layer + _B)
            if second is None or set(first) - {0} or set(second) - {1}:
                raise FederationError(
                    "products of adapters need both factors of whole layers; let devices vary in rank"
                )
        for layer in layers:
            product = piece.tensors[layer + _B].double() @ piece.tensors[layer + _A].double()
            self._sums[layer] = self._sums.get(layer, torch.zeros(())) + piece.weight * product
            self._weights[layer] = self._weights.get(layer, 0.0) + piece.weight
        rest = [name for name in piece.layout.places if not name.endswith((_A, _B))]
        self._rest.add(replace(piece, layout=piece.layout.only(rest)))

    def result(self) -> dict[str, Tensor]:
        """Return the means of the other tensors, with the factors, or the weights that products were folded into."""
        found = self._rest.result()
        for layer, total in self._sums.items():
            mean = total / self._weights[layer]
            found |= self._factored(layer, mean) if self._into is None else self._folded(self._into[layer], mean)
        return found

    def _factored(self, layer: str, mean: Tensor) -> dict[str, Tensor]:
        """B = U·S and A = Vᵀ: components that are zero stay trainable, because A is not zero there.

        A rank beyond the sides of the matrix has components without a singular value: A stays as it was, B is zero.
        """
        old = self.base[layer + _A]
        left, values, right = torch.linalg.svd(mean, full_matrices=False)
        signs = torch.sign(right.gather(1, right.abs().argmax(1, keepdim=True)))  # an SVD is free to flip them
        rank = old.shape[0]
        first, second = (right * signs)[:rank], (left * values * signs.T)[:, :rank]
        lacking = rank - len(first)
        if lacking > 0:
            first, second = torch.cat([first, old[-lacking:].to(first)]), pad(second, (0, lacking))
        found = {layer + _A: first, layer + _B: second}
        return {name: value.to(old.dtype).contiguous() for name, value in found.items()}

    def _folded(self, fold: Fold, mean: Tensor) -> dict[str, Tensor]:
        old = self.base[fold.weight]
        change = fold.scale * (mean.T if fold.transposed else mean)
        return {fold.weight: (old.double() + change).to(old.dtype)}


class FoldingProgram(SubnetProgram):
    """Sends the weights that adapters are on; takes fresh adapters back, whose products go into these weights.

    The published FLoRA sends stacked factors down; here the adapted weights go down whole, so that a client that missed
    rounds needs nothing but the last one. What comes back has the size of the adapters.
    """

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return everything but adapters."""
        return Layout.whole(name for name in self.tensors if not is_adapter_tensor(name))

    def returns(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return what is trained: adapters, of the rank at hand, and what is trained beside them."""
        weights = {fold.weight for fold in folds(self.model).values()}
        return self.layout_of(subnet).only(name for name in self.tensors if name not in weights)


class FoldingClient(TrainingClient):
    """Trains fresh adapters on the weights that come."""

    def templates(self, head: OrderHead) -> dict[str, Tensor]:
        """Shapes of what comes: adapted weights, and what is trained beside adapters."""
        bound = self._bound(head)
        names = [*(fold.weight for fold in folds(bound.model).values()), *self._beside(bound)]
        return {name: bound.parameters[name].detach() for name in names}

    def learn(self, work: Work, bound: Bound) -> Answer:
        """Draw adapters anew, then train as usual."""
        generator = torch.Generator().manual_seed(work.head.seed)
        for name, adapter in adapters(bound.model.module).items():
            adapter.start(bound.model.module.get_submodule(name), generator)
            adapter.B.data.zero_()
        return super().learn(work, bound)

    def answered(self, work: Work, bound: Bound) -> Sequence[str]:
        """Return the names of what is trained."""
        return [name for name in bound.trained() if not is_private(name, self.private)]

    def _beside(self, bound: Bound) -> Iterable[str]:
        return (name for name in bound.trained() if not is_adapter_tensor(name) and not is_private(name, self.private))


def folded_tensors(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the weights that adapters are on to what a federation exchanges."""
    own: dict[str, Any] = dict(model.module.named_parameters())
    return {**tensors, **{one.weight: own[one.weight].detach().cpu().clone() for one in folds(model).values()}}
