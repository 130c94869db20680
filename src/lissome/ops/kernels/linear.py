"""A linear layer with packed weights, in the place of ``nn.Linear``; for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissome.ops.kernels.packed import Form, PackedWeight


class SparseLinear(nn.Module):
    """``y = x Wᵀ + b`` of which only the non-zero weights are stored (or all, when packed so).

    Buffers are those of `PackedWeight`, with the bias in float32. There are no parameters: a gradient flows to the
    input only, through weights that are unpacked for it.

    Attributes:
        in_features, out_features: K and N.
        dtype: Type of the weights it was made from; what `weight` is returned in.
    """

    values: Tensor
    bias: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.form: Form = packed.form
        self.dtype = dtype
        for name in ("values", "bitmap", "starts", "scales", "sums"):
            self.register_buffer(name, packed.tensors().get(name))
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self._packed: PackedWeight | None = packed

    @classmethod
    def of(cls, layer: nn.Module, form: Form = "bf16", *, sparse: bool = True) -> Self:
        """Pack ``nn.Linear``, or GPT-2's Conv1D, whose weight is [in, out].

        Raises:
            ConfigError: When its weight is no matrix of floats in the CPU's memory.
        """
        weight, bias = layer.weight, getattr(layer, "bias", None)
        assert isinstance(weight, Tensor)
        matrix = weight.T if type(layer).__name__ == "Conv1D" else weight
        made = cls(PackedWeight.pack(matrix, form, sparse=sparse), bias, weight.dtype)
        return made.train(layer.training)

    @property
    def packed(self) -> PackedWeight:
        """The buffers as kernels read them."""
        if self._packed is None:
            parts = {name: getattr(self, name) for name in ("values", "bitmap", "starts", "scales", "sums")}
            self._packed = PackedWeight(self.form, (self.out_features, self.in_features), **parts)
        return self._packed

    @property
    def weight(self) -> Tensor:
        """W, unpacked anew each time: for whatever reads a layer's weight instead of calling it."""
        return self.packed.unpack().to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply Float[..., K] → [..., N], in the type of x."""
        if torch.is_grad_enabled() and x.requires_grad:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.packed.unpack().to(x.dtype), bias)
        return self.packed.linear(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes, form and share of zeros."""
        zeros = 1 - self.packed.nonzeros / (self.in_features * self.out_features)
        kind = f"{zeros:.1%} zeros left out" if self.bitmap is not None else "dense"
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.form}, {kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A model is cast to another type as a whole; scales and bias stay fp32 here, whatever it is.
        floats = {name: getattr(self, name) for name in ("scales", "bias") if getattr(self, name) is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in floats.items():
            setattr(self, name, before.to(getattr(self, name).device))
        self._packed = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = None  # looked at again before a kernel reads it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}
