"""What travels between server and client: a head that says what it is, tensors, and numbers.

The head is JSON and small. A reply's numbers are its weight (``num-examples``) and its metrics, by name. The same
parcel becomes a Flower Message (see `lissome.engine.federate.flower.records`); its size is counted as Flower counts it,
so that the figures of all back ends are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Kind = Literal["query", "train", "evaluate"]
"""What a message asks for, in Flower's words: facts, work, or a judgement."""

WEIGHT = "num-examples"
"""Name of the number that says how much an answer weighs; Flower's strategies read it too."""

PROFILE = "profile"
"""The action that every client knows: say who you are."""

ARRAY_HEADER = 128
"""Bytes that Flower adds to each tensor (the header of an .npy file)."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One message.

    Attributes:
        kind: What an order asks for, and its answer gives.
        head: JSON-able facts, of `lissome.engine.federate.orders`.
        tensors: What travels, of types that NumPy knows.
        numbers: Weight and metrics of an answer.
    """

    kind: Kind
    head: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def payload(self) -> int:
        """Bytes of the tensors' numbers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Bytes of the whole message: the payload, headers and names of the tensors, the numbers and the head."""
        arrays = sum(ARRAY_HEADER + len(name) for name in self.tensors)
        return self.payload + arrays + sum(8 + len(name) for name in self.numbers) + len(self.head_text.encode())

    @property
    def head_text(self) -> str:
        """The head as compact JSON."""
        return json.dumps(self.head, separators=(",", ":"), sort_keys=True)
