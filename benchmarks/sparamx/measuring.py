"""Times layers whose weights lie out of cache, one arm after the other, round after round.

With one thread, times are those that the process computes: what other programs take of the machine's time falls
out, what they take of its memory bandwidth does not. The bandwidth is therefore measured before every turn, and shares
of it are taken turn by turn.
"""

# N outputs and K inputs of a layer, L layers

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks._turns import Clock, in_turns
from benchmarks.sparamx.names import CSR, DENSE, SHARES, TORCH, sparse
from lissome.ops.kernels import native
from lissome.ops.kernels.packed import Form, PackedWeight

Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Arm:
    """One way to hold the same layers.

    Attributes:
        layers: What to call with one row of inputs, one for each layer.
        x: The input.
        nbytes: Bytes of all weights.
    """

    layers: Sequence[Call]
    x: Tensor
    nbytes: int


def weight(size: int, share: float) -> Tensor:
    """Return a normal matrix with a share of zeros, the same each time."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator)
    return matrix.masked_fill_(torch.rand(size, size, generator=generator) < share, 0)


def own(form: Form, share: float | None, size: int, layers: int, dtype: torch.dtype) -> Arm:
    """Our kernels; a share of None is the dense one."""
    matrix = weight(size, share or 0.0)
    packed = [PackedWeight.pack(matrix, form, sparse=share is not None) for _ in range(layers)]
    return Arm([one.linear for one in packed], torch.ones(1, size, dtype=dtype), sum(one.nbytes for one in packed))


def theirs(kind: str, size: int, layers: int) -> Arm:
    """PyTorch's linear layers of half zeros."""
    made = [nn.Linear(size, size, bias=False) for _ in range(layers)]
    for layer in made:
        layer.weight.data = weight(size, 0.5)
    if kind == "int8":
        return Arm([_quantised(layer) for layer in made], torch.ones(1, size), layers * size * size)
    dtype = cast("torch.dtype", getattr(torch, kind))
    return Arm([layer.to(dtype) for layer in made], torch.ones(1, size, dtype=dtype), layers * size**2 * dtype.itemsize)


def _quantised(layer: nn.Linear) -> Call:
    from torch.ao.nn.quantized import dynamic
    from torch.ao.quantization import default_dynamic_qconfig

    layer.qconfig = default_dynamic_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that quantised tensors will be removed from torch one day
        return cast("Call", dynamic.Linear.from_float(layer))


def csr(size: int, layers: int) -> Arm:
    """PyTorch's compressed rows, half zeros, in fp32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are in beta
        rows = [weight(size, 0.5).to_sparse_csr() for _ in range(layers)]
    nbytes = sum(one.values().nbytes + one.col_indices().nbytes for one in rows)
    return Arm([lambda x, one=one: one @ x.T for one in rows], torch.ones(1, size), nbytes)


def all_arms(size: int, layers: int) -> dict[str, Arm]:
    """Every arm by name; some 2 GB for 24 layers of 2048²."""
    half, full = torch.bfloat16, torch.float32
    kinds: list[tuple[str, Form, torch.dtype, tuple[float, ...]]] = [
        ("bf16", "bf16", half, SHARES),
        ("int8", "int8", full, SHARES),
        ("bf16, fp32 inputs", "bf16", full, (0.5, 0.8)),
    ]
    arms = {}
    for kind, form, dtype, shares in kinds:
        arms[DENSE[kind]] = own(form, None, size, layers, dtype)
        arms |= {sparse(kind, share): own(form, share, size, layers, dtype) for share in shares}
    arms |= {name: theirs(kind, size, layers) for name, kind in TORCH.items()}
    return arms | {CSR: csr(size, layers)}


def race(arms: Mapping[str, Arm], *, rounds: int, threads: int, repeat: int = 1) -> dict[str, Any]:
    """Time all arms in turns.

    Args:
        arms: By name.
        rounds: How often each is timed, after one round that is thrown away.
        threads: Threads; with one, times are processor time.
        repeat: Passes over the layers in one time; after more than one, weights may lie in a cache.

    Returns:
        ``seconds`` of a pass, and ``bandwidth`` in bytes per second, by arm and round; ``bytes`` by arm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}

    def turn(name: str, now: Clock) -> None:
        start = now()
        for _ in range(repeat):
            _pass(arms[name])
        seconds[name].append((now() - start) / repeat)

    with torch.inference_mode():
        sizes = {name: arm.nbytes for name, arm in arms.items()}
        bandwidth = in_turns(sizes, turn, rounds=rounds, threads=threads, cold=repeat == 1)
    return {
        "seconds": {name: times[1:] for name, times in seconds.items()},
        "bytes": {name: arm.nbytes for name, arm in arms.items()},
        "bandwidth": bandwidth,
        "kernels": native.choice().name,
    }


def _pass(arm: Arm) -> None:
    for layer in arm.layers:
        layer(arm.x)
