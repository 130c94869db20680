"""Mamba mixers of transformers with another forward: with a scan in chunks, or without a scan.

The stock mixers loop over tokens in Python (Mamba-1) or copy B and C for every head (Mamba-2) unless compiled kernels
are installed. The classes here have the same parameters, caches and outputs (to rounding); a mixer becomes one of them
by a change of its class, so that names, hooks and saved files stay. Three things are better than stock: a prompt that
continues a cache goes on from its states in Mamba-1 too, a decode step of Mamba-2 respects `time_step_limit`, and the
bias of an `in_proj` does not enter the convolution from padding.

Without its scan a mixer is a gated causal convolution: ``y = x`` after the convolution, then the gate (and, in Mamba-2,
the norm) and the output projection as before. It keeps no state but the convolution's.
"""

# B sequences, T tokens, D residual width, C channels, N states, H heads of P channels, G groups of B and C

from __future__ import annotations

import importlib.util
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.mamba.modeling_mamba import (
    MambaMixer,
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_selective_state_update,
)
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, mamba2_selective_state_update

from lissome.ops.scan import selective_scan, ssd_scan


class ChunkedMamba(MambaMixer):
    """Mamba-1 with a scan in chunks."""

    def forward(
        self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Mix tokens: [B, T, D] → [B, T, D]; arguments as in the stock mixer."""
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        x = _convolved(self, _without_padding(x, attention_mask), cache_params, **kwargs)
        x = _without_padding(x, attention_mask)
        mixed: Tensor = self.out_proj((self.scanned(x, cache_params) * F.silu(gate)).to(hidden_states.dtype))
        return mixed

    def scanned(self, x: Tensor, cache: Any) -> Tensor:
        """Scan [B, T, C] → [B, T, C] from the cache's states on, which follow."""
        rates, b, c = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1)
        # the bias is added in float32: small steps would lose their digits in a 16-bit sum
        dt = F.softplus(F.linear(rates, self.dt_proj.weight).float() + self.dt_proj.bias.float())
        a = -self.A_log.float().exp()
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        if state is not None and x.shape[1] == 1:
            step: Tensor = mamba_selective_state_update(state, x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], self.D.float())
            return step.unsqueeze(1)
        y, end = selective_scan(x, dt, a, b, c, state)
        if cache is not None:
            cache.update_recurrent_state(end, self.layer_idx)
        skip: Tensor = x * self.D.float()
        return y + skip


class ScanlessMamba(ChunkedMamba):
    """Mamba-1 without its scan."""

    def scanned(self, x: Tensor, cache: Any) -> Tensor:
        """Return the input."""
        return x


class _Mamba2Forward:
    """The forward of Mamba-2 and its likes; expects the attributes of the stock mixer."""

    def forward(
        self: Any, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Mix tokens: [B, T, D] → [B, T, D]; arguments as in the stock mixer."""
        gate, inputs, rates = self.in_proj(hidden_states).tensor_split(
            [self.intermediate_size, self.intermediate_size + self.conv_dim], -1
        )
        inputs = _convolved(self, _without_padding(inputs, attention_mask), cache_params, **kwargs)
        y = self.scanned(_without_padding(inputs, attention_mask), rates, cache_params)
        mixed: Tensor = self.out_proj(self.norm(y, gate).to(hidden_states.dtype))
        return mixed

    def scanned(self: Any, inputs: Tensor, rates: Tensor, cache: Any) -> Tensor:
        """Scan x, B and C [B, T, C + 2GN] at step sizes [B, T, H] → [B, T, C], from the cache's states on."""
        x, b, c = (value.unflatten(-1, shape) for value, shape in zip(self._split(inputs), self._shapes(), strict=True))
        dt = F.softplus(rates.float() + self.dt_bias.float()).clamp(*self.time_step_limit)
        a = -self.A_log.float().exp()
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        if state is not None and x.shape[1] == 1:
            wide = (*x.shape[2:], self.ssm_state_size)
            step: Tensor = mamba2_selective_state_update(
                state, x[:, 0].float(), dt[:, 0, :, None].expand(-1, *wide[:2]), a[:, None, None].expand(wide),
                b[:, 0].float(), c[:, 0].float(), self.D.float()[:, None].expand(wide[:2]),
            )  # fmt: skip
            return step.flatten(1).unsqueeze(1)
        y, end = ssd_scan(x, dt, a, b, c, state)
        if cache is not None:
            cache.update_recurrent_state(end, self.layer_idx)
        skip: Tensor = x * self.D.float()[:, None]
        return (y + skip).flatten(2)

    def _split(self: Any, inputs: Tensor) -> tuple[Tensor, ...]:
        shared = self.n_groups * self.ssm_state_size
        parts: tuple[Tensor, ...] = inputs.split([self.intermediate_size, shared, shared], -1)
        return parts

    def _shapes(self: Any) -> list[tuple[int, int]]:
        return [(self.num_heads, self.head_dim), *[(self.n_groups, self.ssm_state_size)] * 2]


class _ScanlessForward(_Mamba2Forward):
    """The same without the scan: no rows, channels or parameters of it are expected."""

    def scanned(self: Any, inputs: Tensor, rates: Tensor, cache: Any) -> Tensor:
        """Return the input."""
        return inputs


class ChunkedMamba2(_Mamba2Forward, Mamba2Mixer):
    """Mamba-2 with small chunks."""


class ChunkedBamba(_Mamba2Forward, BambaMixer):
    """Bamba's Mamba-2 with small chunks."""


class ScanlessMamba2(_ScanlessForward, Mamba2Mixer):
    """Mamba-2 without its scan."""


class ScanlessBamba(_ScanlessForward, BambaMixer):
    """Bamba's Mamba-2 without its scan."""


_CHUNKED = {MambaMixer: ChunkedMamba, Mamba2Mixer: ChunkedMamba2, BambaMixer: ChunkedBamba}
_SCANLESS = {MambaMixer: ScanlessMamba, Mamba2Mixer: ScanlessMamba2, BambaMixer: ScanlessBamba}


def scan_in_chunks(module: nn.Module) -> nn.Module:
    """Give all stock mixers of a module the scan in chunks, unless compiled kernels are installed; in place."""
    if importlib.util.find_spec("mamba_ssm") is None:
        for part in module.modules():
            if type(part) in _CHUNKED:
                part.__class__ = _CHUNKED[type(part)]
    return module


def scanless(mixer: nn.Module) -> type[nn.Module]:
    """Return the class that a mixer without its scan has."""
    return next(ours for stock, ours in _SCANLESS.items() if isinstance(mixer, stock))


def has_scan(mixer: nn.Module) -> bool:
    """Whether a mixer scans."""
    return not isinstance(mixer, ScanlessMamba | _ScanlessForward)


def _without_padding(states: Tensor, mask: Tensor | None) -> Tensor:
    """Zero what stands on padding, [B, T, ·]; a mask of all tokens so far is cut to the last T."""
    return states if mask is None else (states * mask[:, -states.shape[1] :, None]).to(states.dtype)


def _convolved(mixer: Any, inputs: Tensor, cache: Any, **kwargs: Any) -> Tensor:
    """Convolve and activate [B, T, C] → [B, T, C], behind what the cache holds, which follows."""
    x: Tensor = inputs.transpose(1, 2)
    layer = mixer.layer_idx
    weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
    state = None if cache is None else cache.get_conv_state(layer)
    if state is not None and x.shape[-1] == 1 and not cache.is_recording_past(layer):
        x = causal_conv1d_update(x, state, weight, bias, activation=mixer.activation)
    else:
        if cache is not None:
            x = cache.update_conv_state(x, layer, conv_kernel_size=mixer.conv_kernel_size)
        x = causal_conv1d_fn(x, weight, bias, activation=mixer.activation, **kwargs)[..., -inputs.shape[1] :]
    return x.transpose(1, 2)
