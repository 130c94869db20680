"""The server's side of secure aggregation, around a method whose clients all send the same whole tensors."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from random import Random
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lissome.core.errors import ConfigError, FederationError
from lissome.core.seeds import derive
from lissome.engine.federate.guard import check_numbers
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.members import heaviest
from lissome.engine.federate.merge import Mean, Piece, Tensors
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program, Report
from lissome.engine.federate.secure import masks
from lissome.engine.federate.secure.client import KEYS, MASKED, SHARES, UNMASK, UNSUITED, pair_mask
from lissome.models.model import Model
from lissome.models.space import Subnet

_NOTES = 1 << 10  # bytes of notes that an answer may bring for each neighbour
_HEX = re.compile(r"([0-9a-f]{2})*")


class MaskedSum:
    """Sum of masked vectors modulo 2³².

    Args:
        base: Old values; its one vector of this round says the size.
    """

    keeps: bool = False
    limits: bool = True  # what comes is masked, and clients cut off large changes

    def __init__(self, base: Tensors) -> None:
        self._name = next(name for name in base if name.startswith(MASKED))
        self._sum = np.zeros(len(base[self._name]), np.uint32)
        self._count = 0

    def add(self, piece: Piece) -> None:
        """Take a vector in."""
        self._sum = self._sum + piece.tensors[self._name].numpy().astype(np.uint32)
        self._count += 1

    def result(self) -> dict[str, Tensor]:
        """Return the sum; empty when nobody sent one."""
        return {self._name: torch.from_numpy(self._sum.astype(np.int32))} if self._count else {}


class SecureProgram(Program):
    """Runs a method's rounds so that the server sees sums alone.

    Args:
        inner: The method's server: one phase, merged by the plain mean.
        largest: Largest change of a number that clients send.
        neighbours: Clients that each shares its masks with; all, where there are fewer.
        share: Share of the neighbours that must answer to restore a secret.
        seed: Of who is whose neighbour.

    Raises:
        ConfigError: When the method needs more than a sum; says what.
    """

    def __init__(
        self, inner: Program, *, largest: float, neighbours: int = 20, share: float = 0.6, seed: int = 0
    ) -> None:
        phases = list(inner.phases(1))
        if len(phases) != 1 or phases[0].merger is not Mean:
            raise ConfigError(
                "secure aggregation gives a sum of whole tensors, and nothing else; this method, or its setting merge "
                'or bound, needs each client\'s answer by itself. Set merge = "mean" and no bound, or leave secure out.'
            )
        if phases[0].up.top < 1 or phases[0].up.delta or phases[0].up.number != "fp32":
            raise ConfigError('secure aggregation sends whole numbers of its own; leave up = "raw".')
        super().__init__({}, outer=inner.outer)
        self._members: dict[str, Profile] = {}
        self.inner, self.tensors = inner, dict(inner.tensors)
        self._train, self._largest, self._share = phases[0], largest, share
        self._neighbours, self._seed = neighbours, seed
        self._names = sorted(name for name in inner.tensors if inner.tensors[name].is_floating_point())
        self._begin(0)

    def check(self, client: Profile) -> None:
        """Refuse whom the method refuses, and a device that would send less than all that is exchanged."""
        self._refuse_slices([client], self.inner.assign(1, [client], Random(0)))
        self.inner.check(client)

    def takes_part(self, phase: Phase, client: Profile) -> bool:
        """Whether a client has examples: without, it has no part in the sum, and no masks to be taken away."""
        return client.examples > 0

    @property
    def planner(self) -> Any:
        """That of the method."""
        return getattr(self.inner, "planner", None)

    def _begin(self, round: int) -> None:
        self._keys: dict[str, dict[str, str]] = {}
        self._boxes: dict[str, dict[str, str]] = {}
        self._peers: dict[str, list[str]] = {}
        self._answered: list[str] = []
        self._sum: Tensor | None = None
        for name in [name for name in self.tensors if name.startswith(MASKED)]:
            del self.tensors[name]
        size = sum(self.tensors[name].numel() for name in self._names)
        self.tensors[f"{MASKED}{round}"] = torch.zeros(size + 1, dtype=torch.int32)

    def phases(self, round: int) -> Sequence[Phase]:
        """Keys, shares, the training, and what takes the masks away."""
        self._begin(round)
        few = Phase(action=KEYS, kind="query", sends=False, merger=None, extra=_NOTES)
        notes = _NOTES * (self._neighbours + 1)
        return (
            few,
            Phase(action=SHARES, kind="query", sends=False, merger=None, extra=notes),
            Phase(action=self._train.action, kind="train", merger=MaskedSum, down=self._train.down),
            Phase(action=UNMASK, kind="query", sends=False, merger=None, extra=notes),
        )

    def evaluation(self) -> Phase:
        """That of the method."""
        return self.inner.evaluation()

    def assign(self, round: int, clients: Sequence[Profile], rng: Random) -> Mapping[str, Subnet | None]:
        """Give everybody what the method says: a model of their own, if what is exchanged is whole.

        Raises:
            ConfigError: When the method would exchange slices with somebody.
        """
        found = self.inner.assign(round, clients, rng)
        self._refuse_slices(clients, found)
        if len(clients) > masks.MOST:
            raise ConfigError(f"a sum modulo 2³² holds {masks.MOST} clients, {len(clients)} were sampled.")
        self._members |= {one.name: one for one in clients}
        return found

    def _refuse_slices(self, clients: Sequence[Profile], assigned: Mapping[str, Subnet | None]) -> None:
        for one in clients:
            back = self.inner.returns(self._train, 1, one, assigned.get(one.name))
            if any(back.keys.values()) or not back.places.keys() >= set(self._names):
                raise ConfigError(
                    f"{one.name} would get a sub-network and send slices; secure aggregation needs the same from "
                    "everybody. Leave its budget out, or let it keep its model: method rafl, share = knowledge."
                )

    def judged(
        self, round: int, clients: Sequence[Profile], trained: Mapping[str, Subnet | None], rng: Random
    ) -> Mapping[str, Subnet | None]:
        """What the method says."""
        return self.inner.judged(round, clients, trained, rng)

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """What the method says, without the masked vector."""
        found = self.inner.layout(phase, round, client, subnet)
        return found.only(name for name in found.places if not name.startswith(MASKED))

    def returns(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """The masked vector of the round alone."""
        return Layout.whole([f"{MASKED}{round}"])

    def settings(self, phase: Phase, round: int, client: Profile) -> dict[str, Any]:
        """What a client needs for its step of the protocol."""
        inner = dict(self.inner.settings(self._train, round, client))
        if phase.action == KEYS:
            return {}
        if phase.kind == "evaluate":
            return dict(self.inner.settings(phase, round, client))
        name = client.name
        peers = {one: {**self._keys[one], "place": self._place(one)} for one in self._peers.get(name, ())}
        found: dict[str, Any] = {"own": self._keys.get(name, "none"), "peers": peers}
        if phase.action == SHARES:
            return {**found, "needed": self._needed}
        if phase.action == UNMASK:
            gone = [one for one in self._boxes if one not in self._answered]
            boxes = {one: self._boxes[one][name] for one in self._boxes if name in self._boxes[one]}
            return {**found, "answered": self._answered, "gone": gone, "shares": boxes}
        if name not in self._boxes:
            found["own"] = "none"
        found["peers"] = {one: keys for one, keys in peers.items() if one in self._boxes}
        return {**found, "inner": inner, "heaviest": self._heaviest}

    def accept(self, phase: Phase, report: Report) -> None:
        """Refuse keys, shares and openings that are none: no client of this protocol sends such.

        Raises:
            FederationError: Says which.
        """
        notes, peers = report.notes, self._peers.get(report.client, ())
        if phase.action == KEYS and not _are_keys(notes.get("keys")):
            raise FederationError("what came are no keys for a sum: two usable public halves, 'channel' and 'mask'")
        if phase.action == SHARES and not _are_boxes(notes.get("shares"), peers):
            raise FederationError("what came are no shares for a sum: one sealed box for each neighbour")
        if phase.action == UNMASK and not _are_openings(notes):
            raise FederationError("what came takes no masks away: shares by neighbour in 'self' and 'mask', a 'seed'")
        if phase.action == self._train.action and not _is_unsuited(notes.get(UNSUITED)):
            raise FederationError("what came does not say how a sum suits: 'cut', 'step' and 'wanted', or none of them")
        if phase.action not in {KEYS, SHARES, UNMASK}:
            self.inner.accept(phase, report)

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> Mapping[str, float]:
        """Take in a step; after the last one, the mean."""
        if phase.action == KEYS:
            self._keys = {one.client: one.notes["keys"] for one in reports}
            self._peers = self._graph(sorted(self._keys), round)
        elif phase.action == SHARES:
            self._boxes = {one.client: one.notes["shares"] for one in reports if one.client in self._keys}
        elif phase.action == UNMASK:
            try:
                return {**self._unmasked(round, reports), "lost": 0.0}
            except FederationError:
                return {"lost": 1.0}  # too few are left to take the masks away: the round changes nothing
        else:
            self._answered, self._sum = [one.client for one in reports], merged[f"{MASKED}{round}"]
            self._reports = list(reports)
        return {}

    def remarks(self, phase: Phase, reports: Sequence[Report]) -> dict[str, str]:
        """Warn where too few are left for a sum, and where numbers are cut off, or lost between two steps."""
        if phase.action == KEYS and len(reports) < masks.FEWEST:
            line = (
                f"{len(reports)} clients are left for a secure sum, which needs {masks.FEWEST}; have more clients, or "
                "lengthen the deadline"
            )
            return {"too few for a sum": line}
        told = [one.notes[UNSUITED] for one in reports if one.notes.get(UNSUITED)]
        if phase.action != self._train.action or not told:
            return {}
        cut, step = (median(one[name] for one in told) for name in (masks.CUT, masks.STEP))
        what = f"{cut:.0%} of the changes are beyond it and cut off"
        if cut < step:
            what = f"a step of it is {step:.2g} times a usual change, and what is smaller is lost"
        wanted = max(one[masks.WANTED] for one in told)
        line = (
            f"secure_largest = {self._largest:g} does not suit {len(told)} of {len(reports)} clients: {what}; set "
            f"secure_largest = {wanted:g}"
        )
        return {"secure_largest": line}

    def _unmasked(self, round: int, reports: Sequence[Report]) -> Mapping[str, float]:
        assert self._sum is not None
        if len(self._answered) < masks.FEWEST:
            raise FederationError(f"a sum of {len(self._answered)} hides nobody; no client takes its masks away")
        words = self._sum.numpy().astype(np.uint32)
        shares: dict[str, dict[str, dict[int, int]]] = {"self": {}, "mask": {}}
        for one in [one for one in reports if one.client in self._keys]:
            for what, known in shares.items():
                for name, share in _shares(one.notes[what]).items():
                    known.setdefault(name, {})[self._place(one.client)] = share
        told = {one.client: bytes.fromhex(one.notes["seed"]) for one in reports if "seed" in one.notes}
        for name in self._answered:
            seed = told[name] if name in told else self._restored(name, shares["self"])
            words = words - masks.stream(seed, len(words))
        for name in [one for one in self._boxes if one not in self._answered]:
            left = [one for one in self._peers[name] if one in self._answered]
            secret = self._restored(name, shares["mask"]) if left else b""
            for other in left:  # the surviving neighbour added its half, which this takes away
                words = words + pair_mask(secret, self._keys[other], name, other, len(words))
        templates = {name: self.tensors[name] for name in self._names}
        mean = masks.from_steps(words, templates, self._largest)
        moved = {name: (templates[name].double() + mean[name]).to(templates[name].dtype) for name in mean}
        found = self.inner.conclude(self._train, round, moved, self._reports)
        self.tensors |= self.inner.tensors
        return found

    def _restored(self, name: str, shares: Mapping[str, Mapping[int, int]]) -> bytes:
        found = shares.get(name, {})
        if len(found) < self._needed:
            raise FederationError(f"{len(found)} of {self._needed} shares for {name} came; the round's sum is lost")
        return masks.joined(dict(list(found.items())[: self._needed]))

    def _graph(self, names: Sequence[str], round: int) -> dict[str, list[str]]:
        """Put clients on a circle at random; neighbours are the nearest ones on both sides."""
        circle = list(names)
        Random(derive(self._seed, "neighbours", round)).shuffle(circle)
        reach = min(self._neighbours // 2, (len(circle) - 1) // 2) if len(circle) > self._neighbours else len(circle)
        found = {}
        for at, name in enumerate(circle):
            near = {circle[(at + step) % len(circle)] for step in range(-reach, reach + 1)}
            found[name] = sorted(near - {name})
        return found

    @property
    def _needed(self) -> int:
        fewest = min(map(len, self._peers.values()), default=0)
        return max(2, math.ceil(self._share * fewest))

    @property
    def _heaviest(self) -> float:
        known = [self._members[name].examples for name in self._boxes]
        return float(min(max(known, default=1) or 1, heaviest(known)))

    def _place(self, name: str) -> int:
        return sorted(self._keys).index(name) + 1

    def evaluate(self, round: int) -> Mapping[str, float]:
        """What the method finds."""
        return self.inner.evaluate(round)

    def outcome(self) -> Model | None:
        """What the method gives."""
        return self.inner.outcome()

    def state(self) -> tuple[Mapping[str, Tensor], Any]:
        """What the method must remember; a round that is repeated begins with new keys."""
        return self.inner.state()

    def restore(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Give the method back what it must remember."""
        self.inner.tensors |= {name: self.tensors[name] for name in self.inner.tensors}
        self.inner.restore(tensors, value)


def _is_hex(value: Any, size: int = masks.SECRET) -> bool:
    """Whether something that came stands for so many bytes; 0: for any."""
    return isinstance(value, str) and _HEX.fullmatch(value) is not None and (not size or len(value) == 2 * size)


def _are_keys(value: Any) -> bool:
    """Whether all can work with what came: keys that nobody agrees with would fail every neighbour."""
    known = isinstance(value, dict) and value.keys() == {"channel", "mask"} and all(map(_is_hex, value.values()))
    return known and all(masks.usable(bytes.fromhex(one)) for one in value.values())


def _are_boxes(value: Any, peers: Sequence[str]) -> bool:
    return isinstance(value, dict) and value.keys() == set(peers) and all(_is_hex(one, 0) for one in value.values())


def _are_openings(notes: Mapping[str, Any]) -> bool:
    """Whether an answer can take masks away; what is in a share its neighbour sealed, which is no fault of this one."""
    told = "seed" not in notes or _is_hex(notes["seed"])
    return told and all(isinstance(notes.get(what), dict) for what in ("self", "mask"))


def _is_unsuited(value: Any) -> bool:
    """Whether something that came says how badly the largest change suits, or nothing."""
    if not value:
        return True
    if not isinstance(value, dict) or value.keys() != {masks.CUT, masks.STEP, masks.WANTED}:
        return False
    with contextlib.suppress(FederationError):
        return bool(check_numbers(value))
    return False


def _shares(found: Mapping[str, Any]) -> dict[str, int]:
    """Opened shares by whose they are; what is none is left out."""
    return {name: one for name, one in found.items() if type(one) is int and 0 <= one < masks.PRIME}
