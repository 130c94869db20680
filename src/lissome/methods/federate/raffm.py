"""RaFFM — fine-tune one model on devices of unlike size, then cut it to any size (Yu et al. 2023, arXiv 2310.00247).

1. Salient parameter prioritization: units (channels, heads) of every layer are put in order of their weights' norms,
   most salient first, which leaves the model's function as it is.
2. In each round one sampled client trains the whole model, one the smallest Subnet, the others random ones, all of them
   leading slices, within the budget of their devices (the sandwich rule, spread over clients).
3. Each coordinate is averaged over those who hold it: θ_c ← Σ n_i·θ_i,c / Σ n_i over the clients i that hold c.

Differs: whole units are ordered and cut, never rows inside a head, so that rotary embeddings and the scale of scores
stay right (the published code permutes rows of Q and K, and cuts across heads). Order is made once, before the first
round, because what clients keep would not follow a new one. The published code samples sizes without a look at the
device, and divides by all clients; here devices have budgets, and coordinates are divided by those who hold them.

Settings give the methods it is compared with: HeteroFL (arXiv 2010.01264), FjORD (2102.13451), FedRolex (2212.01548).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from lissome.core.config import option
from lissome.core.errors import ConfigError
from lissome.core.seeds import derive
from lissome.engine.elastic import Elastic
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.client import ClientProgram, Work
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.method import ClientSite, FederatedConfig, FederatedMethod, ServerSite
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Program
from lissome.engine.federate.subnets import SubnetProgram, share_space
from lissome.engine.federate.training import TrainingClient
from lissome.engine.hooks import Hooks
from lissome.engine.paths import Together
from lissome.models.binding import reorder
from lissome.models.model import Model
from lissome.models.space import Space, Subnet
from lissome.ops.importance import salience


class RaFFM(FederatedMethod):
    """Salient sub-networks per device, merged where they overlap."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"elastic", "federated"})

    @dataclass(frozen=True, kw_only=True)
    class Config(FederatedConfig):
        """Settings: those that all federated methods share, and which slices clients get."""

        order: Literal["salience", "random", "none"] = option(
            "salience", "which units come first: those of large weights, any, or those that do already (HeteroFL)"
        )
        norm: Literal["l1", "l2"] = option("l1", "of the weights, for salience")
        assign: Literal["sandwich", "largest", "random"] = option(
            "sandwich", "sandwich: one client the largest Subnet, one the smallest, others random ones; largest: what "
            "fits the device, always the same"
        )  # fmt: skip
        window: Literal["leading", "rolling"] = option(
            "leading", "which units a slice has: the first ones, or those from a place that moves by one every round "
            "(FedRolex)"
        )  # fmt: skip
        nested: bool = option(False, "clients train random shares of their Subnet, step by step (FjORD)")
        elastic: tuple[str, ...] = option(("width", "groups"), "kinds of dims that devices may have less of")
        shares: tuple[float, ...] = option((1.0, 0.75, 0.5, 0.25), "sizes to choose from, as shares of the whole")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.shares or not all(0 < share <= 1 for share in self.shares) or max(self.shares) < 1:
                raise ConfigError(f"shares must be above 0 and at most 1, the whole (1.0) among them: {self.shares}.")
            if self.merge == "mean" and self.assign != "largest":
                raise ConfigError(
                    f"merge=mean takes whole tensors from everybody, and assign={self.assign} gives slices; set "
                    "assign=largest, or leave merge out."
                )
            if self.window == "rolling" and self.trains != "all":
                raise ConfigError("a rolling window moves what clients hold; that needs trains=all.")
            if self.window == "rolling" and (self.moments or "feedback" in self.up):
                raise ConfigError("what a client keeps for one window fits no other; leave moments and feedback out.")
            if self.common < 1 and (self.assign != "largest" or self.window == "rolling"):
                raise ConfigError(
                    "common mixes a client's own slice with the same global one; set assign=largest, window=leading."
                )

        def alone(self) -> Self:
            """As of all; a window that moves would leave what a client has learnt, so that it stays."""
            return replace(self, window="leading").alone() if self.window == "rolling" else super().alone()

    config: Config

    def prepare(self, model: Model, seed: int) -> None:
        """Put units in order, the same on every machine; then as all federated methods."""
        if self.config.order != "none":
            drawn = torch.Generator().manual_seed(derive(seed, "order")) if self.config.order == "random" else None
            reorder(model, unit_orders(model, norm=int(self.config.norm[1]), drawn=drawn))
        super().prepare(model, seed)

    def server(self, site: ServerSite) -> Program:
        """Return the server's side.

        Raises:
            ConfigError: When the model has no dims of the wanted kinds, or a rolling window would move what is frozen.
        """
        space = share_space(site.model, self.config.elastic, self.config.shares)
        program = _Server.of(site, self.config, space)
        program.config = self.config
        if self.config.window == "rolling":
            _check_rolling(site.model, space, program.tensors)
            program.measures = False  # a size is another slice in every round: no statistics are its own
        return program

    def client(self, site: ClientSite) -> ClientProgram:
        """Return a client's side: one that trains its Subnet, or random shares of it."""
        if not self.config.nested:
            return super().client(site)
        space = share_space(site.model, self.config.elastic, self.config.shares)
        return _Nested(**self.training(site), space=space, shares=self.config.shares)


class _Server(SubnetProgram):
    """Assigns Subnets by the sandwich rule or at random, and places them in the window of the round."""

    config: RaFFM.Config

    def assign(self, round: int, clients: Sequence[Profile], rng: Random) -> dict[str, Subnet | None]:
        """Give the client that can hold most its largest Subnet, another the smallest, and the others random ones."""
        found = super().assign(round, clients, rng)
        if self.config.assign == "sandwich" and clients:
            assert self.planner is not None
            drawn = rng.sample(list(clients), len(clients))
            able = max(drawn, key=self._capacity)
            found[able.name] = self.largest(able)
            for other in [one for one in drawn if one is not able][:1]:
                found[other.name] = self.planner.space.smallest
        return found

    def choose(self, client: Profile, rng: Random) -> Subnet | None:
        """Return the largest Subnet of one client, or a random one within its budget."""
        if self.config.assign == "largest" or self.planner is None:
            return self.largest(client)
        return self.planner.random(client.bounds, rng)

    def placed(self, round: int, subnet: Subnet | None) -> Layout:
        """Return the leading slices of a Subnet, or those of the round's window."""
        if subnet is None or self.config.window == "leading":
            return super().placed(round, subnet)
        return Layout.of_window(self.model, subnet, self.exchanged, first=round - 1)

    def _capacity(self, client: Profile) -> float:
        assert self.planner is not None
        return self.planner.figures(self.largest(client) or self.planner.space.full)["params"]


@dataclass(kw_only=True, eq=False)
class _Nested(TrainingClient):
    """Trains a random share of its Subnet in every step.

    Attributes:
        space: Of the whole model.
        shares: Of the whole model; those that its Subnet has are drawn.
    """

    space: Space
    shares: Sequence[float] = (1.0,)

    def hooks_for(self, work: Work, bound: Bound) -> Hooks | None:
        """Return hooks that draw a share for every step."""
        return Elastic(bound.model, Together(self.space, self.shares, within=work.head.subnet))


def unit_orders(model: Model, *, norm: int = 1, drawn: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return the order of the units of every dim, for `lissome.models.binding.reorder`.

    Args:
        model: The model, without adapters.
        norm: Of the weights of each unit, 1 or 2; large ones come first.
        drawn: Draws orders at random instead.

    Returns:
        By axis name: LongTensor[lanes, units], new position → old unit.
    """
    parameters = {name: value for name, value in model.module.named_parameters() if value.dim() > 1}
    weights: dict[str, list[tuple[Tensor, int, Tensor]]] = {}
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            if dim.size > 1 and not dim.ordered:
                tied = [one for one in dim.cuts if one.parameter in parameters]
                found = weights.setdefault(branch.axis(dim.name), [])
                found += [(parameters[one.parameter], one.dim, one.units) for one in tied]
    scores = {axis: salience(found, norm=norm) for axis, found in weights.items() if found}
    if drawn is not None:
        scores = {axis: torch.rand(score.shape, generator=drawn) for axis, score in scores.items()}
    return {axis: score.argsort(dim=-1, descending=True, stable=True) for axis, score in scores.items()}


def _check_rolling(model: Model, space: Space, tensors: Mapping[str, Tensor]) -> None:
    """Refuse to move windows over tensors of which clients have their own, frozen copy."""
    weights = dict(model.module.named_parameters())  # statistics of batch norms are taken anew
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            if branch.axis(dim.name) in space.by_name and not dim.ordered:
                for one in dim.cuts:
                    if one.parameter in weights and one.parameter not in tensors:
                        raise ConfigError(f"a rolling window needs {one.parameter} to be trained; freeze less.")
