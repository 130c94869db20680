"""The client's side of secure aggregation, around a client that trains."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lissome.core.errors import FederationError, LissomeError
from lissome.core.files import parse_json
from lissome.engine.federate.client import Answer, ClientProgram, Work
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.secure import masks
from lissome.engine.federate.store import Kept

KEYS, SHARES, UNMASK, MASKED = "mask-keys", "mask-shares", "unmask", "masked/"
"""Actions beside the training, and the beginning of the name of what is sent instead of tensors."""

UNSUITED = "unsuited"
"""Note with the numbers by which a client says that the largest change does not suit its update; mostly none."""

_NONCE = "mask nonce"


@dataclass(kw_only=True, eq=False)
class SecureClient:
    """Sends sums' summands that tell nothing by themselves.

    Attributes:
        inner: Trains; its answers to ``train`` are masked, others pass.
        largest: Largest change of a number that is sent.
    """

    inner: ClientProgram
    largest: float

    def profile(self) -> Profile:
        """Say who this client is."""
        return self.inner.profile()

    def templates(self, head: OrderHead) -> Mapping[str, Tensor] | None:
        """What the inner client accepts."""
        return None if head.action in {KEYS, SHARES, UNMASK} else self.inner.templates(_inner(head))

    def act(self, work: Work) -> Answer:
        """Do one step of the protocol, or what else the order says.

        Raises:
            FederationError: When this client is not part of the sum, or the order breaks the protocol.
        """
        match work.head.action:
            case "mask-keys":
                nonce = secrets.token_bytes(masks.SECRET)  # anew even for a repeated round: no mask is used twice
                return self._answer(work, {"keys": _public(nonce)}, nonce)
            case "mask-shares":
                return self._answer(work, {"shares": self._shares(work)}, self._nonce(work))
            case "train":
                return self._masked(work)
            case "unmask":
                return self._answer(work, self._unmasking(work), self._nonce(work))
        return self.inner.act(work)

    def _answer(self, work: Work, notes: Mapping[str, Any], nonce: bytes) -> Answer:
        keep = Kept(work.kept.tensors, {**work.kept.facts, _NONCE: nonce.hex()})
        return Answer(weight=0.0, notes=notes, keep=keep)

    def _nonce(self, work: Work) -> bytes:
        """The secret of the round, if the server knows this client by the keys that follow from it."""
        nonce = bytes.fromhex(str(work.kept.facts.get(_NONCE, "")))
        if work.head.settings.get("own") != (_public(nonce) if nonce else None):
            raise FederationError("this client is no part of the sum: it has other keys than those of this round")
        return nonce

    def _shares(self, work: Work) -> dict[str, str]:
        """Shares of both secrets for every neighbour, sealed."""
        nonce, peers = self._nonce(work), work.head.settings["peers"]
        places, needed = {name: int(one["place"]) for name, one in peers.items()}, int(work.head.settings["needed"])
        if not 1 < needed <= len(places):
            raise FederationError(f"{needed} of {len(places)} neighbours shall restore a secret; that protects nothing")
        parts = [masks.split(_secret(nonce, what), list(places.values()), needed) for what in ("self", "mask")]
        return {
            name: masks.sealed(
                self._channel(nonce, peers[name], work, to=name),
                json.dumps([part[place] for part in parts]).encode(),
            ).hex()
            for name, place in places.items()
        }

    def _masked(self, work: Work) -> Answer:
        nonce, settings = self._nonce(work), work.head.settings
        answer = self.inner.act(replace(work, head=_inner(work.head)))
        change = {name: value.double() - work.tensors[name].double() for name, value in answer.tensors.items()}
        weight = min(1.0, answer.weight / float(settings["heaviest"]))
        words = masks.in_steps(change, weight, self.largest)
        words = words + masks.stream(_secret(nonce, "self"), len(words))
        for name, peer in settings["peers"].items():
            words = words + pair_mask(_secret(nonce, "mask"), peer, self.profile().name, name, len(words))
        facts = answer.keep.facts if answer.keep is not None else work.kept.facts
        tensors = answer.keep.tensors if answer.keep is not None else work.kept.tensors
        return replace(
            answer, tensors={f"{MASKED}{work.head.round}": torch.from_numpy(words.astype(np.int32))},
            notes={**answer.notes, UNSUITED: masks.unsuited(change, self.largest)},
            keep=Kept(tensors, {**facts, _NONCE: nonce.hex()}),
        )  # fmt: skip

    def _unmasking(self, work: Work) -> dict[str, Any]:
        """Shares of own masks of those who answered, of keys of those who did not; both of nobody."""
        nonce, settings = self._nonce(work), work.head.settings
        answered, gone = set(settings["answered"]), set(settings["gone"])
        if answered & gone:
            raise FederationError("both secrets of a client were asked for, which would unmask it")
        if len(answered) < masks.FEWEST:
            raise FederationError(f"a sum of {len(answered)} hides nobody, at least {masks.FEWEST} must be in it")
        found: dict[str, Any] = {"self": {}, "mask": {}}
        if self.profile().name in answered:
            found["seed"] = _secret(nonce, "self").hex()
        for name, box in settings["shares"].items():
            channel = self._channel(nonce, settings["peers"][name], work, to=self.profile().name)
            with contextlib.suppress(LissomeError, ValueError, TypeError):  # a neighbour may have sealed anything
                own, mask = parse_json(masks.opened(channel, bytes.fromhex(box)), "a share")
                if name in answered:
                    found["self"][name] = own
                elif name in gone:
                    found["mask"][name] = mask
        return found

    def _channel(self, nonce: bytes, peer: Mapping[str, Any], work: Work, *, to: str) -> bytes:
        """Key for shares between this client and a neighbour, in one direction and round."""
        purpose = f"share for {to} in round {work.head.round}"
        return masks.agreed(_secret(nonce, "channel"), bytes.fromhex(peer["channel"]), purpose)


def pair_mask(secret: bytes, peer: Mapping[str, Any], own: str, other: str, count: int) -> masks.Words:
    """Mask between two clients: what one adds the other takes away, modulo 2³²."""
    words = masks.stream(masks.agreed(secret, bytes.fromhex(peer["mask"]), "mask"), count)
    return words if own < other else np.uint32(0) - words


def _inner(head: OrderHead) -> OrderHead:
    """The order as the method's own client knows it."""
    return replace(head, settings=head.settings.get("inner", {})) if head.action == "train" else head


def _secret(nonce: bytes, what: str) -> bytes:
    return masks.derived(nonce, what)


def _public(nonce: bytes) -> dict[str, str]:
    return {what: masks.public_key(_secret(nonce, what)).hex() for what in ("channel", "mask")}
