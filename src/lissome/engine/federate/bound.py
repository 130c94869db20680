"""A model, whole or cut, with what is trained around it, and the names that its parameters have in a federation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lissome.core.errors import FederationError
from lissome.engine.federate.layout import local_names
from lissome.models.binding import extract
from lissome.models.model import Model

TASK = "task/"
"""Beginning of the global names of tensors that a task adds to a model."""


@dataclass(frozen=True, eq=False)
class Bound:
    """A module that is trained, with the global names of its parameters.

    Attributes:
        model: The model, whole or cut.
        module: What is trained around it.
        parameters: All parameters by global name.
    """

    model: Model
    module: nn.Module
    parameters: Mapping[str, nn.Parameter]

    @classmethod
    def of(cls, whole: Model, small: Model, module: nn.Module, subnet: Mapping[str, int] | None) -> Bound:
        """Name the parameters of a module around a cut model."""
        names = local_names(whole, small, subnet)
        inside = {id(value): names[name] for name, value in small.module.named_parameters()}
        found = {inside.get(id(value), TASK + name): value for name, value in module.named_parameters()}
        return cls(small, module, found)

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by global name."""
        return {name: value for name, value in self.parameters.items() if value.requires_grad}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the parameters.

        Raises:
            FederationError: When one is not there, or has another shape.
        """
        for name, value in tensors.items():
            parameter = self.parameters.get(name)
            if parameter is None or parameter.shape != value.shape:
                raise FederationError(f"the model has no {name!r} of shape {list(value.shape)}")
            parameter.copy_(value)

    def values(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return copies of parameters."""
        return {name: self.parameters[name].detach().cpu().clone() for name in names}


def cut_model(base: Model, subnet: Mapping[str, int] | None) -> Model:
    """Return a Subnet of a model as a model of its own, trainable where the base is."""
    if subnet is None:
        return base.derived(copy.deepcopy(base.module))
    small = extract(base, subnet)
    wanted = {name for name, value in base.module.named_parameters() if value.requires_grad}
    for local, origin in local_names(base, small, subnet).items():
        small.module.get_parameter(local).requires_grad_(origin in wanted)
    return small


def is_cut(base: Model, small: Model) -> bool:
    """Whether a model lacks weights of another that it was cut from, not ranks of adapters alone."""
    kept, whole = (
        sum(value.numel() for name, value in one.module.named_parameters() if ".adapter." not in name)
        for one in (small, base)
    )
    return kept < whole
