"""Weights of linear layers as kernels read them: bitmap and non-zeros, or dense in the same order.

``y = x Wᵀ + b``, after SparAMX (AbouElhamayed et al. 2025, arXiv 2502.12444). A decode step reads every weight once and
computes little with it, so that its time is that of the bytes: at a share s of zeros 16(1 − s) + 1 bits a weight
in bf16 and 8(1 − s) + 1 in int8, instead of 16 and 8. Kernels expand rows of 64 bytes into registers; nothing dense is
ever stored, and longer prompts expand a few kilobytes at a time into the cache.

Activations keep their type: fp32 stays fp32 (bf16 weights are exact in it), bf16 is multiplied as bf16 where the CPU
can, int8 weights take activations quantised per token. A row's result depends neither on other rows nor on threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # 0.2 µs; the protocol's own method takes 5

from lissome.core.errors import ArtifactError, ConfigError
from lissome.ops.kernels import native
from lissome.ops.kernels import reference as ref

Form = Literal["bf16", "int8"]
"""How weights are held."""

BREAK_EVEN: dict[Form, float] = {"bf16": 1 / 16, "int8": 1 / 8}
"""Share of zeros from which on the sparse form has fewer bytes than the dense one."""

_ITEM, _CODE = {"bf16": 2, "int8": 1}, {"bf16": torch.int16, "int8": torch.int8}
_SLACK = 64  # readable bytes behind the last value
_KEPT = (torch.float32, torch.bfloat16)  # types of activations that kernels read
_PACKED = (*_KEPT, torch.float16)  # types of weights that they pack


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """W[N, K], packed.

    Attributes:
        form: How weights are held.
        shape: N outputs and K inputs.
        values: Non-zeros and 64 bytes behind them, or all weights: uint8, the bytes.
        bitmap: Which weights are not zero, int64 words; None when dense.
        starts: Index of each panel's first value, int64[P + 1]; None when dense.
        scales: What an integer is worth, float32 per output, padded to whole panels; None for bf16.
        sums: Sum of each output's integers, int32, padded likewise; None for bf16.
    """

    form: Form
    shape: tuple[int, int]
    values: Tensor
    bitmap: Tensor | None = None
    starts: Tensor | None = None
    scales: Tensor | None = None
    sums: Tensor | None = None

    _handle: Any = field(init=False, repr=False)  # the compiled module's view of it, or None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_handle", self._checked())

    @classmethod
    def pack(cls, weight: Tensor, form: Form = "bf16", *, sparse: bool = True) -> PackedWeight:
        """Pack a matrix of floats.

        Args:
            weight: Float[N, K] in the CPU's memory, with any strides.
            form: bf16 rounds to nearest even; int8 has one symmetric scale per output.
            sparse: Store the non-zeros only (−0 counts as zero), or everything in the same order.

        Raises:
            ConfigError: When it is no matrix of floats here, or int8 is wanted of NaN or infinity.
        """
        _check_matrix(weight, form)
        weight = weight.detach() if weight.dtype in _PACKED else weight.detach().float()
        compiled, shape = native.module(), (weight.shape[0], weight.shape[1])
        if compiled is None:
            return _packed_ref(cls, weight, form, sparse=sparse)
        try:
            arrays: Any = compiled.pack(to_dlpack(weight), form, sparse, torch.get_num_threads())
        except ValueError as error:
            raise ConfigError(f"this weight cannot be packed as {form}: {error}.") from error
        values, *others = (None if array is None else torch.from_numpy(array) for array in arrays)
        assert values is not None
        return cls(form, shape, values, *others)

    @property
    def handle(self) -> Any:
        """What the compiled module holds of it; None without one."""
        return self._handle

    @property
    def sparse(self) -> bool:
        """Whether only non-zeros are stored."""
        return self.bitmap is not None

    @property
    def nonzeros(self) -> int:
        """How many weights are stored, without padding; all when dense."""
        return math.prod(self.shape) if self.starts is None else int(self.starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return what it consists of, by name."""
        names = ("values", "bitmap", "starts", "scales", "sums")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def codes(self) -> Tensor:
        """Return what is stored of W: bits of bfloat16 as int16[N, K], or int8[N, K]."""
        if self._handle is None:
            return torch.from_numpy(np.ascontiguousarray(self._codes_ref()))
        out = torch.empty(self.shape, dtype=_CODE[self.form])
        self._handle.unpack(to_dlpack(out), torch.get_num_threads())
        return out

    def unpack(self) -> Tensor:
        """Return W: bfloat16[N, K], or float32[N, K] of int8."""
        codes = self.codes()
        if self.scales is None:
            return codes.view(torch.bfloat16)
        return codes.float() * self.scales[: self.shape[0], None]

    def linear(self, x: Tensor, bias: Tensor | None = None, *, threads: int | None = None) -> Tensor:
        """Multiply.

        Args:
            x: Float[..., K]; types other than float32 and bfloat16 are computed as float32.
            bias: Float32[N].
            threads: Threads to split panels over (default: as many as torch uses); no result depends on it.

        Returns:
            [..., N] in the type of x.

        Raises:
            ConfigError: When x does not have K columns, or is not in the CPU's memory.
        """
        outputs, inputs = self.shape
        if not x.is_cpu or not x.is_floating_point() or x.shape[-1] != inputs:
            raise ConfigError(
                f"x must be floats of shape [..., {inputs}] in the CPU's memory, "
                f"got {list(x.shape)} of {x.dtype} on {x.device}."
            )
        rows = x.detach() if x.requires_grad else x
        if x.dtype not in _KEPT:
            rows = rows.float()
        if x.dim() != 2:
            rows = rows.reshape(-1, inputs)
        y = self._linear_ref(rows, bias) if self._handle is None else self._linear(rows, bias, threads)
        if x.dtype not in _KEPT:
            y = y.to(x.dtype)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)

    def integers(self, x: Tensor, *, threads: int | None = None) -> Tensor:
        """Multiply integers exactly: int8[M, K] → int32[M, N].

        Raises:
            ConfigError: When the weights are not int8.
        """
        if self.form != "int8":
            raise ConfigError("integers are multiplied by int8 weights; these are bf16.")
        if self._handle is None:
            return torch.from_numpy(ref.integers_ref(x.numpy(), self._codes_ref().astype(np.int8)))
        return self._linear(x, None, threads, torch.int32)

    def _linear(self, x: Tensor, bias: Tensor | None, threads: int | None, dtype: torch.dtype | None = None) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        y = torch.empty((x.shape[0], self.shape[0]), dtype=dtype or x.dtype)
        given = None if bias is None else to_dlpack(bias)
        self._handle.linear(to_dlpack(x), to_dlpack(y), given, threads or torch.get_num_threads())
        return y

    def _linear_ref(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.scales is None:
            return ref.linear_ref(x, self.unpack(), bias)
        return ref.linear_int8_ref(x, self.codes().numpy(), self.scales[: self.shape[0]].numpy(), bias)

    def _codes_ref(self) -> ref.Codes:
        stored = self.values if self.bitmap is None else self.values[:-_SLACK]
        codes: ref.Codes = stored.view(_CODE[self.form]).numpy()
        panels = -(-self.shape[0] // ref.PANEL)
        dense = codes if self.bitmap is None else ref.expanded_ref(codes, self.bitmap.numpy(), panels)
        return ref.unordered_ref(dense.reshape(panels, -1), self.shape, self.form)

    def _checked(self) -> Any:
        """Let the compiled module look at everything once, so that no damaged file makes it read outside of it."""
        compiled = native.module()
        if compiled is None:
            return None
        try:
            return compiled.Weight(self.form, *self.shape, **self.tensors())
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"a packed weight of shape {list(self.shape)} is damaged: {error}.") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        parts: dict[str, Any] = {name: tensor.clone() for name, tensor in self.tensors().items()}
        return replace(self, **parts)

    def __reduce__(self) -> Any:
        return PackedWeight, (self.form, self.shape, self.values, self.bitmap, self.starts, self.scales, self.sums)


def _check_matrix(weight: Tensor, form: str) -> None:
    if weight.dim() != 2 or not weight.is_floating_point() or weight.device.type != "cpu" or not weight.numel():
        raise ConfigError(
            f"a weight to pack must be a matrix of floats in the CPU's memory, got {list(weight.shape)} of "
            f"{weight.dtype} on {weight.device}."
        )
    if form not in _ITEM:
        raise ConfigError(f"weights are held as {' or '.join(_ITEM)}, got {form!r}.")


def _packed_ref(cls: type[PackedWeight], weight: Tensor, form: Form, *, sparse: bool) -> PackedWeight:
    codes, scales = ref.codes_ref(weight, form)
    if scales is not None and not np.isfinite(scales).all():
        raise ConfigError("this weight cannot be packed as int8: it has numbers that are NaN or infinite.")
    shape, rows = (weight.shape[0], weight.shape[1]), -weight.shape[0] % ref.PANEL
    more: dict[str, Any] = {}
    if scales is not None:
        sums = codes.astype(np.int32).sum(1, dtype=np.int32)
        more = {"scales": np.pad(scales, (0, rows)), "sums": np.pad(sums, (0, rows))}
    values = ordered = ref.ordered_ref(codes, form)
    if sparse:
        values, more["bitmap"], more["starts"] = ref.compressed_ref(ordered)
    stored = np.concatenate([values.reshape(-1).view(np.uint8), np.zeros(_SLACK if sparse else 0, np.uint8)])
    return cls(form, shape, torch.from_numpy(stored), **{name: torch.from_numpy(part) for name, part in more.items()})
