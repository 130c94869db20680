"""How tensors travel: as they are, as differences, the largest numbers of them alone, in fewer bits, in one piece.

A codec is written as words joined by ``+``, applied in this order: ``delta`` (difference to what the receiver has),
``top=5%`` (the largest numbers of each tensor by size, others become zero), ``fp16``, ``bf16`` or ``int8`` (a scale per
row), ``pack`` (one run of bytes instead of an entry per tensor); ``raw`` is none of them. With ``feedback`` a client
remembers what the codec left out and adds it to what it sends next (Karimireddy et al. 2019, arXiv 1901.09847).

Sizes follow from the codec and the shapes alone, so that a receiver knows what must come before it looks at a number.
Tensors of whole numbers travel as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor

from lissome.core.errors import ConfigError, FederationError, unknown_name

Tensors = Mapping[str, Tensor]
Number = Literal["fp32", "fp16", "bf16", "int8"]

AT, BITS, SCALE, PACKED = "|at", "|bits", "|scale", "|packed"
"""Endings of the names of what travels beside the numbers: where they stand (indices or bits), and their scale."""

_WORDS = ("raw", "delta", "top=SHARE", "fp16", "bf16", "int8", "pack", "feedback")
_TOP = re.compile(r"top=(?P<number>[0-9.]+)(?P<percent>%?)")
_HALF_LARGEST = torch.finfo(torch.float16).max
_STEPS = 127  # of int8 on either side of zero: -128 is left out, so that a number and its negative are alike


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How tensors travel.

    Attributes:
        delta: Send the difference to what the receiver has.
        top: Share of the numbers of each tensor that are sent, the largest by size; 1 sends all.
        number: How each is written.
        pack: Send one run of bytes, which saves some 128 bytes and a name per tensor.
        feedback: Whether the sender adds what was left out before; needs ``delta``.

    Raises:
        ConfigError: When feedback is asked for without delta.
    """

    delta: bool = False
    top: float = 1.0
    number: Number = "fp32"
    pack: bool = False
    feedback: bool = False

    def __post_init__(self) -> None:
        if self.feedback and not self.delta:
            raise ConfigError("the codec's feedback is about differences; write for example delta+top=5%+feedback.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a codec such as ``"delta+top=5%+int8"``.

        Raises:
            ConfigError: When a word is unknown, stands twice, or is out of range.
        """
        found: dict[str, bool | float | Number] = {}
        for word in text.replace(" ", "").split("+"):
            key, value = _word(word, text)
            if key in found:
                raise ConfigError(f"the codec {text!r} says {key} twice; keep one of them.")
            found[key] = value
        found.pop("raw", None)
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = ["delta"] * self.delta + [f"top={self.top * 100:g}%"] * (self.top < 1)
        words += [self.number] * (self.number != "fp32") + ["pack"] * self.pack
        words += ["feedback"] * self.feedback
        return "+".join(words) or "raw"

    @torch.no_grad()
    def encode(self, tensors: Tensors, base: Tensors | None = None) -> dict[str, Tensor]:
        """Turn tensors into what travels.

        Args:
            tensors: What to send, of any number type.
            base: What the receiver has, for ``delta``.

        Returns:
            Tensors of types that NumPy knows, contiguous, sharing no memory with `tensors`.

        Raises:
            ConfigError: When there is no base, or it has other tensors.
        """
        wire: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if value.is_floating_point():
                wire |= self._encode_one(name, value, self._base(base, name, value))
            else:
                wire[name] = value.detach().cpu().contiguous().clone()
        return {PACKED: _packed(wire)} if self.pack else wire

    @torch.no_grad()
    def decode(self, wire: Tensors, templates: Tensors, base: Tensors | None = None) -> dict[str, Tensor]:
        """Turn what travelled back into tensors; the inverse of `encode` up to what it leaves out.

        Args:
            wire: What came.
            templates: Tensors whose shapes and number types the results have; they need no data.
            base: What was given to `encode`, or what stands in its place (an update may be added to a newer state).

        Raises:
            FederationError: When what came is not what this codec makes of such tensors; says what is wrong.
        """
        self.check(wire, templates)
        if self.pack:
            wire = _unpacked(wire[PACKED], self._spec(templates))
        found = {}
        for name, template in templates.items():
            value = self._decode_one(name, wire, template) if template.is_floating_point() else wire[name]
            if self.delta and template.is_floating_point():
                value = value + self._base(base, name, template)
            found[name] = value.to(template.dtype, copy=True)  # what came may be shared with others
        return found

    def check(self, wire: Tensors, templates: Tensors) -> None:
        """Refuse what this codec does not make of such tensors, by names, shapes and types alone.

        Raises:
            FederationError: Names the first difference.
        """
        wanted = self.spec(templates)
        for name in wire.keys() - wanted.keys():
            raise FederationError(f"there is an unknown tensor {name[:80]!r}")
        for name, template in wanted.items():
            if name not in wire:
                raise FederationError(f"the tensor {name!r} is missing")
            found = wire[name]
            if found.shape != template.shape or found.dtype != template.dtype:
                raise FederationError(
                    f"the tensor {name!r} is {_kind(found)}, but {_kind(template)} was agreed",
                )

    def spec(self, templates: Tensors) -> dict[str, Tensor]:
        """What `encode` makes of tensors of these shapes and types, as tensors without data."""
        spec = self._spec(templates)
        if not self.pack:
            return spec
        size = sum(one.numel() * one.element_size() for one in spec.values())
        return {PACKED: torch.empty(size, dtype=torch.uint8, device="meta")}

    def payload(self, templates: Tensors) -> int:
        """Bytes of the numbers that `encode` makes of tensors of these shapes and types."""
        return sum(one.numel() * one.element_size() for one in self._spec(templates).values())

    def _spec(self, templates: Tensors) -> dict[str, Tensor]:
        spec: dict[str, Tensor] = {}
        for name in sorted(templates):  # the order in which packed tensors lie
            template = templates[name]
            shape = tuple(template.shape)
            if not template.is_floating_point():
                spec[name] = _meta(shape, template.dtype)
                continue
            count = self._kept(template.numel())
            if count < template.numel():
                by_index = _by_index(count, template.numel())
                where = (count,) if by_index else (math.ceil(template.numel() / 8),)
                spec[name + (AT if by_index else BITS)] = _meta(where, torch.int32 if by_index else torch.uint8)
                shape = (count,)
            spec[name] = _meta(shape, _STORED[self.number])
            if self.number == "int8":
                spec[name + SCALE] = _meta((shape[0],) if len(shape) > 1 else (1,), torch.float32)
        return {name: spec[name] for name in sorted(spec)}

    def _kept(self, numel: int) -> int:
        return min(numel, max(1, math.ceil(self.top * numel)))

    def _base(self, base: Tensors | None, name: str, value: Tensor) -> Tensor:
        if not self.delta:
            return torch.zeros(())
        if base is None or name not in base or base[name].shape != value.shape:
            raise ConfigError(f"delta: the receiver has no {name!r} of this shape; send it whole first.")
        return base[name].detach().cpu().float()

    def _encode_one(self, name: str, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        change = value.detach().cpu().float() - base
        wire: dict[str, Tensor] = {}
        count = self._kept(change.numel())
        if count < change.numel():
            flat = change.flatten()
            # Stable, so that of equal sizes the first ones go, here and everywhere.
            kept = flat.abs().argsort(descending=True, stable=True)[:count].sort().values
            wire[name + (AT if _by_index(count, flat.numel()) else BITS)] = _where(kept, flat.numel())
            change = flat[kept]
        return wire | _written(name, change, self.number)

    def _decode_one(self, name: str, wire: Tensors, template: Tensor) -> Tensor:
        value = _read(name, wire, self.number)
        count, total = self._kept(template.numel()), template.numel()
        if count == total:
            return value
        kept = wire[name + AT].long() if _by_index(count, total) else _from_bits(wire[name + BITS], total)
        inside = len(kept) == count and int(kept[0]) >= 0 and int(kept[-1]) < total
        if not inside or bool((kept.diff() <= 0).any()):
            raise FederationError(f"the places of {name!r} are not {count} ascending ones below {total}")
        flat = torch.zeros(total)
        flat[kept] = value
        return flat.view(template.shape)


_STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.int16, "int8": torch.int8}


def _word(word: str, text: str) -> tuple[str, bool | float | Number]:
    if word in {"raw", "delta", "pack", "feedback"}:
        return word, True
    if word in {"fp16", "bf16", "int8"}:
        return "number", cast(Number, word)
    match = _TOP.fullmatch(word)
    if match is None:
        raise ConfigError(unknown_name("word", word, _WORDS, f"in the codec {text!r}; write for example delta+int8."))
    try:
        share = float(match["number"]) / (100 if match["percent"] else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"{word!r} in the codec {text!r} must be above 0 and at most 100%.")
    return "top", share


def _written(name: str, value: Tensor, number: Number) -> dict[str, Tensor]:
    if number == "fp32":
        return {name: value.contiguous().clone()}
    if number == "fp16":
        return {name: value.clamp(-_HALF_LARGEST, _HALF_LARGEST).half()}
    if number == "bf16":  # NumPy has no such numbers; their bits travel
        return {name: value.bfloat16().contiguous().view(torch.int16).clone()}
    rows = value.flatten(1) if value.dim() > 1 else value.reshape(1, -1)
    scale = rows.abs().amax(1) / _STEPS if rows.numel() else torch.zeros(len(rows))
    steps = (rows / torch.where(scale > 0, scale, 1.0).unsqueeze(1)).round().clamp(-_STEPS, _STEPS)
    return {name: steps.to(torch.int8).view(value.shape), name + SCALE: scale}


def _read(name: str, wire: Tensors, number: Number) -> Tensor:
    value = wire[name]
    if number == "bf16":
        return value.view(torch.bfloat16).float()
    if number != "int8":
        return value.float()
    scale = wire[name + SCALE]
    shape = (-1, *[1] * (value.dim() - 1)) if value.dim() > 1 else (1,) * value.dim()
    return value.float() * scale.view(shape)


def _by_index(count: int, total: int) -> bool:
    """Whether indices of four bytes are shorter than a bit for every place."""
    return 4 * count <= math.ceil(total / 8)


def _where(kept: Tensor, total: int) -> Tensor:
    if _by_index(len(kept), total):
        return kept.to(torch.int32)
    flags = torch.zeros(math.ceil(total / 8) * 8, dtype=torch.uint8)
    flags[kept] = 1
    return (flags.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)


def _from_bits(bits: Tensor, total: int) -> Tensor:
    flags = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return flags.flatten()[:total].nonzero().flatten()


def _packed(wire: Tensors) -> Tensor:
    parts = [wire[name].contiguous().flatten().view(torch.uint8) for name in sorted(wire) if wire[name].numel()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def _unpacked(run: Tensor, spec: Tensors) -> dict[str, Tensor]:
    found, start = {}, 0
    for name, template in spec.items():
        stop = start + template.numel() * template.element_size()
        found[name] = run[start:stop].clone().view(template.dtype).view(template.shape)  # a copy is aligned
        start = stop
    return found


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
