"""Weights of which several precisions are read: codes whose highest bits are a coarser code of the same weight.

After "any-precision" weights (Park et al. 2024, arXiv 2402.10517) in their uniform form: one code q of p bits for every
weight, and at precision b the weight is ``scale_b · (q >> (p - b)) + least_b``. Scale and least are fitted anew at
every precision by (weighted) least squares, one pair for each output and group of 32 or 64 inputs, held as halves.
Differs from the paper: groups along the inputs with two numbers each, instead of one table of centroids per output,
because that is exact for GGUF's blocks, multiplies as integers, and loses less at 3 bits. The paper's form, levels that
are not evenly spaced, can be had too, a table for each matrix and precision (`lissome.ops.levels`): the weight is then
``scale_b · levels_b[q >> (p - b)] + least_b``.

The layout of planes is that of ``native/nested/nested.h``.
"""

# N outputs, K inputs, J groups, G inputs of a group, P panels of 16 outputs, B blocks of 32 inputs

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lissome.core.errors import ConfigError
from lissome.ops.levels import MOST_LEVEL_BITS, TOP, Histogram, Levels

PANEL, BLOCK, LINE = 16, 32, 64  # outputs and inputs of a block; bytes of one bit of its codes
GROUPS = (32, 64)
MOST_BITS = 8
LARGEST = 65504.0
"""The largest half: scales and leasts are halves."""
_LAYOUT = re.compile(r"(?P<planes>\d(?:\+\d)*)(?:/(?P<group>\d+))?(?:/(?P<levels>kmeans))?")

Spacing = Literal["even", "kmeans"]
"""What a code is worth: itself, or a level of its matrix's table."""

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Layout:
    """How the codes of a file are cut.

    Attributes:
        planes: Bits of each segment, the highest first; precisions that can be read are their partial sums. The
            default (3, 1) is read at 3 and 4 bits.
        group: Inputs that share a scale, 32 or 64. Default 32, what GGUF's blocks have.
        levels: Whether codes are evenly spaced or levels are fitted by k-means, then of at most 6 bits. Default even:
            exact for GGUF's blocks, and nothing to look up.
    """

    planes: tuple[int, ...] = (3, 1)
    group: int = 32
    levels: Spacing = "even"

    def __post_init__(self) -> None:
        whole = all(isinstance(count, int) and count >= 1 for count in self.planes)
        if not self.planes or not whole or not 2 <= sum(self.planes) <= MOST_BITS or self.planes[0] < 2:
            raise ConfigError(
                f"planes are counts of bits, the first at least 2 and all together at most {MOST_BITS}, such as "
                f"(3, 1); got {self.planes}."
            )
        if self.group not in GROUPS:
            raise ConfigError(f"a group has 32 or 64 inputs, got {self.group}.")
        if self.levels not in get_args(Spacing):
            raise ConfigError(f"levels are even or kmeans, got {self.levels!r:.20}.")
        if self.levels == "kmeans" and self.bits > MOST_LEVEL_BITS:
            raise ConfigError(
                f"levels by k-means have at most {MOST_LEVEL_BITS} bits, got {self.bits}; leave out /kmeans, or bits."
            )

    def __str__(self) -> str:
        """What `layout_named` reads."""
        parts = ["+".join(map(str, self.planes))]
        parts += [str(self.group)] if self.group != GROUPS[0] else []
        return "/".join([*parts, *([self.levels] if self.levels != "even" else [])])

    @property
    def bits(self) -> int:
        """Bits of a whole code."""
        return sum(self.planes)

    @property
    def precisions(self) -> tuple[int, ...]:
        """Precisions that can be read, the lowest first."""
        return tuple(int(total) for total in np.cumsum(self.planes))


def layout_named(text: str) -> Layout:
    """Read a layout such as ``3+1``, ``4+2+2/64`` or ``3+1/kmeans``.

    Raises:
        ConfigError: When it is none.
    """
    match = _LAYOUT.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r} is no layout of nested weights; write bits of each segment such as 3+1 or 4+2+2, /64 after "
            "them for groups of 64, and /kmeans last for levels that are not even."
        )
    planes = tuple(int(bits) for bits in match["planes"].split("+"))
    return Layout(planes, int(match["group"] or 32), "kmeans" if match["levels"] else "even")


@dataclass(frozen=True, eq=False)
class NestedCodes:
    """A weight as codes, before they are cut into planes.

    Attributes:
        codes: uint8[N, J·G], padded with zeros to whole groups.
        scales: What a code is worth, float16[N, J], by precision.
        leasts: What code 0 is worth, float16[N, J], by precision.
        inputs: K, without padding.
        layout: How they are cut.
        levels: What codes are worth before scales, by precision; empty when they are even.
    """

    codes: Codes
    scales: dict[int, Halves]
    leasts: dict[int, Halves]
    inputs: int
    layout: Layout
    levels: Levels = field(default_factory=dict)

    def weight(self, precision: int) -> Floats:
        """Return W at a precision, float32[N, K]: ``level · scale + least``, each step rounded to float32."""
        coarse: Codes = (self.codes >> (self.layout.bits - precision)).astype(np.uint8)
        codes = _levelled(coarse, self.levels, precision).astype(np.float32)
        groups = codes.reshape(len(codes), -1, self.layout.group)
        scale, least = self.scales[precision].astype(np.float32), self.leasts[precision].astype(np.float32)
        found: Floats = (groups * scale[:, :, None] + least[:, :, None]).reshape(codes.shape)[:, : self.inputs]
        return found


def quantise(
    weight: Floats,
    layout: Layout,
    importance: Floats | None = None,
    *,
    rounds: int = 6,
    levels: Levels | None = None,
) -> NestedCodes:
    """Choose codes for a matrix, then scales for every precision.

    Scales start from each group's least and largest weight; codes and scales are then improved in turns, and the best
    of the turns is kept: that with the smallest sum of squared errors at the whole precision.

    Args:
        weight: Float32[N, K].
        layout: How codes are cut.
        importance: Non-negative float32[N, K] by which squared errors count, e.g. the Fisher diagonal; groups of zeros
            count evenly. None: all errors count alike.
        rounds: Turns. Default 6: later ones hardly change anything.
        levels: For a layout with levels, those of the whole matrix when this is a piece of it. None: of this weight.
    """
    groups, inputs = _grouped(weight, layout.group), weight.shape[1]
    counts = _counts(groups, importance, layout.group, inputs)
    if layout.levels == "kmeans" and levels is None:
        levels = counted(Histogram(), weight, layout, importance).levels(layout.planes)
    own = levels[layout.bits] if levels else np.arange(1 << layout.bits, dtype=np.uint8)
    low, high = groups.min(2, keepdims=True), groups.max(2, keepdims=True)
    scale, least = _halved((high - low) / (TOP if levels else own[-1])), _halved(low)
    best = _rounded(groups, scale, least, own)
    error = _error(groups, own[best], scale, least, counts)
    for _ in range(rounds):
        scale, least = _fitted(groups, own[_rounded(groups, scale, least, own)], counts)
        codes = _rounded(groups, scale, least, own)
        found = _error(groups, own[codes], scale, least, counts)
        better = found < error
        best, error = np.where(better, codes, best), np.where(better, found, error)
    return fitted(groups, best, layout, counts, inputs, levels)


def counted(histogram: Histogram, weight: Floats, layout: Layout, importance: Floats | None = None) -> Histogram:
    """Add a weight float32[N, K] and its importance to a histogram, and return it."""
    counts = np.ones_like(weight, np.float32) if importance is None else importance.astype(np.float32)
    padded = np.pad(counts, ((0, 0), (0, -weight.shape[1] % layout.group)))
    histogram.add(_grouped(weight, layout.group), padded.reshape(len(weight), -1, layout.group))
    return histogram


def fitted(
    groups: Floats, codes: Codes, layout: Layout, counts: Floats, inputs: int, levels: Levels | None = None
) -> NestedCodes:
    """Fit scales for every precision to given codes, all [N, J, G]."""
    scales, leasts, levels = {}, {}, levels or {}
    for precision in layout.precisions:
        coarse: Codes = (codes >> (layout.bits - precision)).astype(np.uint8)
        scale, least = _fitted(groups, _levelled(coarse, levels, precision), counts)
        scales[precision], leasts[precision] = _as_halves(scale), _as_halves(least)
    return NestedCodes(codes.reshape(len(codes), -1), scales, leasts, inputs, layout, levels)


def _levelled(codes: Codes, levels: Levels, precision: int) -> Codes:
    """What codes of a precision are worth before scales."""
    return levels[precision][codes] if levels else codes


def from_blocks(
    codes: Codes, scale: Halves, least: Halves, layout: Layout, importance: Floats | None = None
) -> NestedCodes:
    """Take codes of `layout.bits` bits as they are, with their scales; lower precisions are fitted to what they mean.

    Args:
        codes: uint8[N, K], whole groups.
        scale: What a code is worth at the whole precision, float16[N, J].
        least: What code 0 is worth, float16[N, J].
        layout: How codes are cut.
        importance: As in `quantise`.
    """
    rows, inputs = codes.shape
    groups = codes.reshape(rows, -1, layout.group)
    exact = groups * scale.astype(np.float32)[:, :, None] + least.astype(np.float32)[:, :, None]
    found = fitted(exact, groups, layout, _counts(exact, importance, layout.group, inputs), inputs)
    found.scales[layout.bits], found.leasts[layout.bits] = scale, least
    return found


def _grouped(weight: Floats, group: int) -> Floats:
    """[N, K] to [N, J, G]; what pads the last group repeats its last weight, so that it widens no range."""
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % group)), mode="edge")
    return padded.reshape(len(weight), -1, group).astype(np.float32)


def _counts(groups: Floats, importance: Floats | None, group: int, inputs: int) -> Floats:
    counts = np.ones_like(groups) if importance is None else np.pad(importance, ((0, 0), (0, -inputs % group)))
    counts = counts.reshape(groups.shape).astype(np.float32)
    largest = counts.max(2, keepdims=True)
    even: Floats = np.where(largest > 0, counts / np.where(largest > 0, largest, 1), np.float32(1))
    return even


def _halved(values: Floats) -> Floats:
    return _as_halves(values).astype(np.float32)


def _as_halves(values: Floats) -> Halves:
    with np.errstate(over="ignore"):
        halves: Halves = np.clip(values, -LARGEST, LARGEST).astype(np.float16)
    return halves[..., 0] if halves.ndim == 3 else halves


def _rounded(groups: Floats, scale: Floats, least: Floats, levels: Codes) -> Codes:
    """Codes of the nearest levels."""
    scale, least = _column(scale), _column(least)
    steps = np.divide(groups - least, scale, out=np.zeros_like(groups), where=scale != 0)
    if np.array_equal(levels, np.arange(len(levels))):
        codes: Codes = np.clip(np.rint(steps), 0, levels[-1]).astype(np.uint8)
    else:
        codes = np.searchsorted((levels[1:].astype(np.float32) + levels[:-1]) / 2, steps).astype(np.uint8)
    return codes


def _column(values: Floats) -> Floats:
    return values if values.ndim == 3 else values[..., None]


def _error(groups: Floats, codes: Codes, scale: Floats, least: Floats, counts: Floats) -> Floats:
    found: Floats = (np.square(codes * _column(scale) + _column(least) - groups) * counts).sum(2, keepdims=True)
    return found


def _fitted(groups: Floats, codes: Codes, counts: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of ``scale · code + least`` per group, rounded to halves: [N, J] each.

    The scale is rounded first and the least fitted to the rounded one.
    """
    total = counts.sum(2)
    code_mean = (codes * counts).sum(2) / total
    mean = (groups * counts).sum(2) / total
    centred = codes - code_mean[..., None]
    spread = (np.square(centred) * counts).sum(2)
    slope = (centred * counts * groups).sum(2)
    scale = _halved(np.divide(slope, spread, out=np.zeros_like(slope), where=spread > 0).astype(np.float32))
    least = _halved((mean - scale * code_mean).astype(np.float32))
    return scale, least


def to_planes(codes: Codes, layout: Layout) -> list[NDArray[np.uint8]]:
    """Cut codes [N, J·G] into segments of bytes, each [P, B, planes of the segment, 64] flattened."""
    padded = np.pad(codes, ((0, -len(codes) % PANEL), (0, 0)))
    panels, blocks = len(padded) // PANEL, padded.shape[1] // BLOCK
    # panel, (lane, half, low) of the output, block, (pair, odd, byte) of the input: see `place` in nested.h
    parts = padded.reshape(panels, 4, 2, 2, blocks, 4, 2, 4).transpose(0, 4, 1, 5, 2, 6, 3, 7)
    placed = np.ascontiguousarray(parts).reshape(panels, blocks, LINE, 8)
    found, left = [], layout.bits
    for count in layout.planes:
        lines = np.empty((panels, blocks, count, LINE), np.uint8)
        for plane in range(count):
            left -= 1
            lines[:, :, plane] = np.packbits((placed >> left) & 1, axis=-1, bitorder="little")[..., 0]
        found.append(lines.reshape(-1))
    return found


def from_planes(segments: list[NDArray[np.uint8]], shape: tuple[int, int], layout: Layout) -> Codes:
    """Undo `to_planes` for the segments that are given: codes of as many bits, uint8[N, J·G]."""
    width = -(-shape[1] // layout.group) * layout.group
    panels, blocks = -(-shape[0] // PANEL), width // BLOCK
    placed = np.zeros((panels, blocks, LINE, 8), np.uint8)
    for segment in segments:
        lines = segment.reshape(panels, blocks, -1, LINE)
        for plane in range(lines.shape[2]):
            placed = 2 * placed + np.unpackbits(lines[:, :, plane, :, None], axis=-1, bitorder="little")
    parts = placed.reshape(panels, blocks, 4, 4, 2, 2, 2, 4).transpose(0, 2, 4, 6, 1, 3, 5, 7)
    return np.ascontiguousarray(parts).reshape(panels * PANEL, width)[: shape[0]]


def to_scales(scale: Halves, least: Halves) -> NDArray[np.uint16]:
    """Put scales and leasts [N, J] in the order of kernels: [P, J, 2, 16] flattened, as bits."""
    both = np.stack([scale, least], axis=-1)
    padded = np.pad(both, ((0, -len(both) % PANEL), (0, 0), (0, 0)))
    panels = padded.reshape(-1, PANEL, padded.shape[1], 2).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(panels).reshape(-1).view(np.uint16)


def from_scales(stored: NDArray[np.uint16], outputs: int) -> tuple[Halves, Halves]:
    """Undo `to_scales`: float16[N, J] each."""
    panels = -(-outputs // PANEL)
    both = stored.view(np.float16).reshape(panels, -1, 2, PANEL).transpose(0, 3, 1, 2)
    flat = np.ascontiguousarray(both).reshape(panels * PANEL, -1, 2)[:outputs]
    return flat[..., 0], flat[..., 1]
