"""Who is there: profiles of reachable clients, how much each may weigh, and who is asked no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random
from statistics import median

from lissome.core.errors import FederationError, LissomeError
from lissome.engine.federate.audit import Audit
from lissome.engine.federate.guard import check_size, largest_answer
from lissome.engine.federate.orders import AnswerHead
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.profile import Profile

_OUTLIER = 10.0  # times the median of all examples: the most that one client weighs


class Members:
    """The clients of a federation.

    Args:
        audit: Where refusals are written.
        strikes: Rejected answers after which a client is asked no more.
        base: Fingerprint of the model that all must start from; empty: any.
        check: Raises a LissomeError for a client that the method has nothing for.
    """

    def __init__(
        self, audit: Audit, strikes: int, base: str = "", check: Callable[[Profile], None] = lambda _: None
    ) -> None:
        self._audit, self._strikes, self._base, self._check = audit, strikes, base, check
        self._by_address: dict[str, Profile | None] = {}
        self._reachable: frozenset[str] = frozenset()
        self._tokens: dict[str, str] = {}
        self._refused: set[str] = set()
        self._round = 0

    def see(self, addresses: Sequence[str], round: int) -> list[str]:
        """Take note of who can be reached; return those that have not said yet who they are.

        Who was refused is asked again when it comes back, and in the next round: what was wrong may have been mended.
        """
        self._reachable = frozenset(addresses)
        again = {one for one in self._refused if one not in self._reachable or round != self._round}
        self._refused, self._round = self._refused - again, round
        for address in again:
            self._by_address.pop(address, None)
        return [address for address in addresses if address not in self._by_address]

    def asked(self, address: str) -> None:
        """Know that somebody was asked who they are; they are not asked twice."""
        self._by_address.setdefault(address, None)

    def join(self, address: str, parcel: Parcel, round: int) -> None:
        """Take a client in, or write down why not: no usable profile, nothing for it, or a name that is there."""
        try:
            check_size(parcel.bytes, largest_answer())
            head = AnswerHead.from_json(parcel.head)
            if head.error:
                raise FederationError(head.error)
            profile = Profile.from_json(head.notes)
            if self._base and profile.base and profile.base != self._base:
                raise FederationError(f"{profile.name} starts from another model or other classes; give it the same")
            twin = next((at for at, one in self._by_address.items() if one and one.name == profile.name), None)
            known = self._tokens.get(profile.name, profile.token)
            if known != profile.token or (twin is not None and twin != address and not profile.token):
                raise FederationError(f"{profile.name} is there already; every client needs a name of its own")
            alike = next((name for name in self._tokens if _alike(name, profile.name)), None)
            if alike is not None:
                raise FederationError(f"{profile.name} differs from {alike} in case alone; it needs a name of its own")
            self._check(profile)
            if twin is not None and twin != address:
                del self._by_address[twin]  # it came back at another address
            self._tokens[profile.name] = profile.token
            self._by_address[address] = profile
        except LissomeError as error:
            self.refuse(address, round, str(error))

    def refuse(self, address: str, round: int, reason: str) -> None:
        """Write down that somebody may not join, or could not say who it is."""
        self._refused.add(address)
        self._audit.note("refused", round=round, client=address, action="profile", reason=reason)

    def present(self) -> list[Profile]:
        """Profiles of those that can be reached and are still asked, by name."""
        found = [one for at, one in self._by_address.items() if one and at in self._reachable]
        kept = [one for one in found if self._audit.strikes[one.name] < self._strikes]
        return sorted(kept, key=lambda one: one.name)

    def address(self, name: str) -> str | None:
        """Return where a client is reached; None when it is not there."""
        found = (at for at, one in self._by_address.items() if one and one.name == name and at in self._reachable)
        return next(found, None)

    def name(self, address: str) -> str:
        """Return the name of who is reached there, or the address when it is not known."""
        profile = self._by_address.get(address)
        return profile.name if profile else address

    def heaviest(self) -> float:
        """Return the most that one client's answer counts: ten times the median of what all of them have.

        A client that claims to have a million examples where others have a hundred would otherwise decide alone.
        """
        return heaviest(one.examples for one in self._by_address.values() if one)


def _alike(one: str, other: str) -> bool:
    """Whether two names differ in case alone, so that some disks hold one folder for both."""
    return one != other and one.casefold() == other.casefold()


def heaviest(examples: Iterable[int]) -> float:
    """Return ten times the median of what clients have; infinity when there are none."""
    known = [max(1, one) for one in examples]
    return _OUTLIER * median(known) if known else math.inf


def sampled(clients: Sequence[Profile], count: int, rng: Random) -> list[Profile]:
    """Draw clients, all of them when there are no more, in the order of their names."""
    drawn = rng.sample(list(clients), min(count, len(clients)))
    return sorted(drawn, key=lambda one: one.name)
