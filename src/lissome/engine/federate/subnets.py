"""The server's side of methods whose clients train Subnets of one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from random import Random
from typing import Any, ClassVar, Self

from torch import Tensor

from lissome.core.errors import ConfigError
from lissome.core.seeds import derive
from lissome.engine.federate.bound import Bound, cut_model, is_cut
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.merge import Holders, Merger, Overlap, Trimmed
from lissome.engine.federate.method import FederatedConfig, ServerSite
from lissome.engine.federate.norms import STATISTICS, WHOLE, let_follow, moments_of, moved, prefix_of, take_moments
from lissome.engine.federate.outer import Outer
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.profile import Profile, in_proportion
from lissome.engine.federate.program import TRAIN, Phase, Program, Report
from lissome.engine.federate.public import ServerPhase
from lissome.engine.federate.releases import Releases
from lissome.engine.federate.training import EVALUATE, MEASURE, MOMENTS, Lesson, global_tensors
from lissome.engine.paths import share_of
from lissome.models.model import Model
from lissome.models.space import Axis, Space, Subnet

_PLANNED = 200  # orders that are drawn to know how many clients hold a coordinate on average
_LAYOUTS = 64  # of Subnets, kept because every phase of a round asks for them again


def share_space(model: Model, kinds: Sequence[str], shares: Sequence[float]) -> Space:
    """Return the Space in which dims have shares of their units; branches all stay.

    Args:
        model: The whole model.
        kinds: Of dims, such as ``("width", "groups")``; others have one size.
        shares: Of the whole, at most 1; every size is the largest that the dim allows within a share.

    Raises:
        ConfigError: When the model has no dim of such kinds.
    """
    axes: dict[str, Axis] = {}
    for branch in model.anatomy.branches:
        for dim in branch.dims:
            if dim.kind not in kinds or dim.size < 2:
                continue
            allowed = dim.allowed or range(max(1, dim.least), dim.size + 1)
            most = [share_of(dim.size, share) for share in shares]
            sizes = {max((one for one in allowed if one <= size), default=allowed[0]) for size in most}
            axes.setdefault(branch.axis(dim.name), Axis(branch.axis(dim.name), tuple(sorted(sizes | {dim.size}))))
    if not axes:
        known = sorted({dim.kind for branch in model.anatomy.branches for dim in branch.dims})
        raise ConfigError(f"{model.name} has no dims of the kinds {', '.join(kinds)}; it has: {', '.join(known)}.")
    return Space(tuple(axes.values()))


class SubnetProgram(Program):
    """Gives each client the largest Subnet within its budget, and scores the whole model on the server's own data.

    Args:
        model: The whole model; its trained parameters are overwritten when the server evaluates.
        tensors: What is exchanged, of `lissome.engine.federate.training.global_tensors`.
        planner: Finds Subnets; None gives everybody the whole model.
        lesson: The server's own data; None: the server evaluates nothing.
        rate: Learning rate of the clients by round; None leaves it to their settings.
        outer: As of `Program`.
        phases: As of `Program`.

    Attributes:
        measures: Whether clients measure moments of batch norms, as `lissome.engine.federate.norms` says.
        sizes: Subnets of which there are such moments, by what the names of these begin with.
    """

    own_norms: ClassVar[bool] = False
    """Whether every client of this method has statistics of its own."""

    def __init__(
        self,
        model: Model,
        tensors: Mapping[str, Tensor],
        *,
        planner: Planner | None = None,
        lesson: Lesson | None = None,
        rate: Callable[[int], float] | None = None,
        outer: Outer | None = None,
        phases: Sequence[Phase] = (TRAIN,),
    ) -> None:
        super().__init__(tensors, outer=outer, phases=phases)
        self.model, self.planner = model, planner
        self.releases: Releases | None = None
        self.own: ServerPhase | None = None
        self._lesson, self._rate = lesson, rate
        self._plain = False  # whether clients' tensors are merged by a mean that takes no slices
        self._layouts: dict[Subnet, Layout] = {}
        self.measures = False
        self._measured_by: Merger = Overlap
        self._prefixes: dict[Subnet | None, str] = {}
        self.sizes: dict[str, Subnet | None] = {}

    @classmethod
    def of(cls, site: ServerSite, config: FederatedConfig, space: Space | None = None) -> Self:
        """Build the usual server's side from the settings that federated methods share.

        Args:
            site: What the server starts from.
            config: The settings.
            space: What Subnets are chosen from (default: all that the model can be cut to).
        """
        tensors = global_tensors(site.model, site.lesson, config.private)
        program = cls(
            site.model, tensors, lesson=site.lesson, rate=lambda number: config.rate * config.decay ** (number - 1),
            outer=config.server_optimizer(), phases=(config.phase(),),
        )  # fmt: skip
        program._plain = config.merge == "mean"
        hidden = config.private_updates or config.secure  # moments would travel without noise or masks
        program.measures = not (cls.own_norms or hidden) and moved(site.model, tensors)
        if config.merge == "trimmed" or config.bound is not None:
            program._measured_by = partial(Trimmed, share=config.trim)
        codec = Codec.parse(config.up)

        def uplink(subnet: Subnet) -> float:
            return float(codec.payload(program.layout_of(subnet).templates(program.tensors)))

        if config.private_updates:
            program.releases = Releases(site.folder / "releases.json", config.noise, config.delta)
            program.change(merger=config.merger(cache(partial(program.planned, site, config.noise_clients or 1))))
        program.planner = Planner(space or site.model.space(), site.cost, uplink)
        return program

    def check(self, client: Profile) -> None:
        """Refuse whom this method has nothing for: one client must not end the federation of all.

        Raises:
            BudgetError: When no Subnet meets its budget.
            ConfigError: When it would send slices where a plain mean is taken: each answer would be a strike.
        """
        subnet = self.largest(client)
        if self._plain and any(self.returns(self._phases[0], 1, client, subnet).keys.values()):
            raise ConfigError(
                f"{client.name} would send slices, but merge=mean takes whole tensors from everybody; leave its budget "
                "out, or set merge=overlap."
            )

    def settings(self, phase: Phase, round: int, client: Profile) -> dict[str, Any]:
        """Tell clients the learning rate of the round, and whether statistics of batch norms are measured."""
        found: dict[str, Any] = {MOMENTS: True} if self.measures and phase.action != MEASURE else {}
        if self._rate is not None and phase.kind == "train":
            found["train"] = {"lr": self._rate(round)}
        return found

    def assign(self, round: int, clients: Sequence[Profile], rng: Random) -> dict[str, Subnet | None]:
        """Give each client the largest Subnet within its budget; one without a budget gets the whole model."""
        return {one.name: self.choose(one, rng) for one in clients}

    def choose(self, client: Profile, rng: Random) -> Subnet | None:
        """Return the Subnet of one client."""
        return self.largest(client)

    def largest(self, client: Profile) -> Subnet | None:
        """Return the largest Subnet within a client's budget; None, the whole model, when it has none."""
        if self.planner is None or not client.bounds:
            return None
        return self.planner.largest(client.bounds)

    def cuts(self, client: Profile) -> bool:
        """Tell whether a client's Subnet leaves weights of the model out, not ranks of its adapters alone."""
        return self.size_of(self.largest(client)) != WHOLE

    def judged(
        self, round: int, clients: Sequence[Profile], trained: Mapping[str, Subnet | None], rng: Random
    ) -> dict[str, Subnet | None]:
        """Let every client evaluate the largest Subnet within its budget, whatever it trained."""
        return {one.name: self.largest(one) for one in clients}

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return what a Subnet keeps of the exchanged tensors; to be judged, with the moments of its batch norms."""
        held = self.placed(round, subnet)
        return held.also(self._moments(subnet)) if phase.action == EVALUATE and self.measures else held

    def returns(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """Return what comes back: what goes down, or the moments that are measured."""
        return self._moments(subnet) if phase.action == MEASURE else super().returns(phase, round, client, subnet)

    def placed(self, round: int, subnet: Subnet | None) -> Layout:
        """Return where a Subnet lies in the exchanged tensors in a round; default: always the leading units."""
        return self.layout_of(subnet)

    def measurement(self) -> Phase | None:
        """Return the phase in which clients measure moments, merged by a mean, trimmed where answers are doubted."""
        return Phase(action=MEASURE, who="all", merger=self._measured_by) if self.measures else None

    def size_of(self, subnet: Subnet | None) -> str:
        """Return what the names of the moments of a Subnet begin with; one that cuts no weights is the whole model."""
        if subnet not in self._prefixes:
            whole = subnet is None or not is_cut(self.model, cut_model(self.model, subnet))
            self._prefixes[subnet] = WHOLE if whole else prefix_of(subnet)
        return self._prefixes[subnet]

    def _moments(self, subnet: Subnet | None) -> Layout:
        """Return the moments of a Subnet; at first those of the whole model's units."""
        prefix = self.size_of(subnet)
        if prefix not in self.sizes:
            self.sizes[prefix] = None if prefix == WHOLE else subnet
            self.tensors |= moments_of(cut_model(self.model, subnet), prefix)
        return Layout.whole(name for name in self.tensors if name.startswith(prefix))

    @property
    def exchanged(self) -> list[str]:
        """Names of the tensors that clients train."""
        return [name for name in self.tensors if not name.startswith(STATISTICS)]

    def planned(self, site: ServerSite, clients: int) -> Holders:
        """Return how many clients are planned to hold each coordinate, on average over rounds.

        It follows from the recipe alone: so many clients with its kinds of devices are assigned Subnets, in as many
        rounds as it takes to draw some hundred.

        Args:
            site: Its kinds of devices; where it has none, all hold everything.
            clients: How many are wanted in a round.
        """
        rounds, phase = math.ceil(_PLANNED / clients), self._phases[0]
        held = Holders(rounds)
        kinds = site.kinds or [("", 1.0)]
        dealt = [kinds[kind][0] for kind in in_proportion([share for _, share in kinds], clients)]
        profiles = [Profile(name=f"planned-{at:06}", examples=1, budget=budget) for at, budget in enumerate(dealt)]
        for number in range(1, rounds + 1):
            assigned = self.assign(number, profiles, Random(derive(site.seed, "planned", number)))
            for one in profiles:
                held.add(self.layout(phase, number, one, assigned[one.name]), 1.0)
        return held

    def layout_of(self, subnet: Subnet | None) -> Layout:
        """Return what a Subnet keeps of the exchanged tensors."""
        if subnet is None:
            return Layout.whole(self.exchanged)
        if subnet not in self._layouts:
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            self._layouts[subnet] = Layout.of_subnet(self.model, subnet, self.exchanged)
        return self._layouts[subnet]

    def evaluate(self, round: int) -> dict[str, float]:
        """Score the whole model on the server's own data."""
        if self._lesson is None:
            return {}
        bound = self.loaded()
        bound.module.eval()
        return self._lesson.score(bound.module)[1]

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> Mapping[str, float]:
        """Take the merged tensors, and learn from public examples where there are some.

        Where updates are merged with noise, say what privacy all that was released so far promises.
        """
        if phase.action == MEASURE:  # no step of an optimizer
            self.tensors |= merged
            return {}
        found = dict(super().conclude(phase, round, merged, reports))
        if self.own is not None and merged:
            bound, names = self.loaded(), self.exchanged
            let_follow(bound.module, self.measures)
            found["public"] = self.own.train(bound, names, round)
            self.tensors |= bound.values(names)
        return {**found, "epsilon": self.releases.one_more(round)} if self.releases and merged else found

    def loaded(self) -> Bound:
        """Return the whole model with the global tensors in it.

        Raises:
            ValueError: When there is no lesson, hence no module around the model.
        """
        if self._lesson is None:
            raise ValueError("a module around the model needs a lesson")
        bound = Bound.of(self.model, self.model, self._lesson.around(self.model), None)
        bound.load({name: self.tensors[name] for name in self.exchanged})
        take_moments(self.model, self.tensors, WHOLE)
        return bound

    def state(self) -> tuple[Mapping[str, Tensor], Any]:
        """Of which sizes there are moments."""
        return {}, {size: subnet and subnet.to_json() for size, subnet in self.sizes.items()} or None

    def restore(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Take it back."""
        self.sizes = {size: Subnet(subnet) if subnet else None for size, subnet in (value or {}).items()}
