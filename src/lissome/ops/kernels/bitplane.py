"""Nested weights on a GPU: a matrix-vector product that reads as many planes of bits as are wanted (Triton).

The same codes and scales as `lissome.ops.nested`, in an order that suits a GPU: the bits of one plane of 32
neighbouring inputs are one word, and planes follow each other, the highest first, so that precision b reads b planes.
A decode step is bound by the bytes it reads, on a GPU as on a CPU. Needs the extra `gpu`.
"""

# N outputs, K inputs, J groups of 32 or 64 inputs, M rows

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lissome.core.errors import ConfigError
from lissome.core.optional import optional_import
from lissome.ops.nested import NestedCodes

WORD = 32
"""Inputs whose bits are one word."""
MOST_ROWS = 8
"""Rows up to which every one reads the planes for itself; more are multiplied by a dense copy of the weights."""

_OUTPUTS, _WORDS = 16, 4  # of a block of the kernel


@dataclass(frozen=True, eq=False)
class BitPlanes:
    """A weight W[N, K] by planes.

    Attributes:
        planes: int32[p, N, words], the highest bit first; bit i of word j is of input 32 j + i.
        scales: float16[N, J], what a code is worth, by precision.
        leasts: float16[N, J], what code 0 is worth, by precision.
        inputs: K.
        group: Inputs that share a scale.
    """

    planes: Tensor
    scales: dict[int, Tensor]
    leasts: dict[int, Tensor]
    inputs: int
    group: int

    @classmethod
    def of(cls, codes: NestedCodes, device: torch.device | str = "cuda") -> BitPlanes:
        """Put codes in this order on a device.

        Raises:
            ConfigError: When codes are not even.
        """
        if codes.levels:
            raise ConfigError("the GPU's kernel multiplies even codes; make the weights without /kmeans.")
        bits, device = codes.layout.bits, torch.device(device)
        words = codes.codes.reshape(len(codes.codes), -1, WORD)
        planes = np.stack(
            [np.packbits((words >> (bits - 1 - at)) & 1, axis=-1, bitorder="little") for at in range(bits)]
        )
        return cls(
            torch.from_numpy(planes.view(np.int32)[..., 0]).to(device),
            {key: torch.from_numpy(value).to(device) for key, value in codes.scales.items()},
            {key: torch.from_numpy(value).to(device) for key, value in codes.leasts.items()},
            codes.inputs,
            codes.layout.group,
        )

    @property
    def precisions(self) -> tuple[int, ...]:
        """Precisions that can be read, the lowest first."""
        return tuple(sorted(self.scales))

    def nbytes(self, precision: int) -> int:
        """Bytes that a product at a precision reads."""
        self._check(precision)
        return self.planes[:precision].nbytes + self.scales[precision].nbytes + self.leasts[precision].nbytes

    def weight(self, precision: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return W at a precision, [N, K]."""
        self._check(precision)
        lanes = torch.arange(WORD, device=self.planes.device, dtype=torch.int32)
        codes = torch.zeros((*self.planes.shape[1:], WORD), device=self.planes.device, dtype=torch.int32)
        for plane in self.planes[:precision]:
            codes = codes * 2 + ((plane[..., None] >> lanes) & 1)
        groups = codes.view(len(codes), -1, self.group).float()
        found = groups * self.scales[precision].float()[..., None] + self.leasts[precision].float()[..., None]
        return found.view(len(codes), -1)[:, : self.inputs].to(dtype)

    def linear(self, x: Tensor, precision: int) -> Tensor:
        """Multiply.

        Args:
            x: Float[M, K] on the device of the planes.
            precision: Bits that are read.

        Returns:
            [M, N] in the type of x; sums are in float32.

        Raises:
            ConfigError: When x does not fit, or the weights have not that precision.
            MissingExtraError: When Triton is not installed.
        """
        self._check(precision)
        if x.dim() != 2 or x.shape[1] != self.inputs or not x.is_floating_point() or x.device != self.planes.device:
            raise ConfigError(
                f"x must be floats of shape [M, {self.inputs}] on {self.planes.device}, got {list(x.shape)} of "
                f"{x.dtype} on {x.device}."
            )
        if not 1 <= len(x) <= MOST_ROWS:
            return x @ self.weight(precision, x.dtype).T
        optional_import("triton", extra="gpu")
        from lissome.ops.kernels._triton import bitplane_kernel

        _, outputs, words = self.planes.shape
        y = torch.empty((len(x), outputs), device=x.device, dtype=torch.float32)
        bitplane_kernel[(-(-outputs // _OUTPUTS), len(x))](
            x.contiguous(), self.planes, self.scales[precision], self.leasts[precision], y,
            outputs, self.inputs, words, self.scales[precision].shape[1],
            bits=precision, group_words=self.group // WORD, rows_of_block=_OUTPUTS, words_of_block=_WORDS,
        )  # fmt: skip
        return y.to(x.dtype)

    def _check(self, precision: int) -> None:
        if precision not in self.scales:
            listed = ", ".join(map(str, self.precisions))
            raise ConfigError(f"these weights are read at {listed} bits, not at {precision}.")
