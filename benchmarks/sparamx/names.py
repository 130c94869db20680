"""What the arms of the claim are called; the tables need nothing else of it."""

from __future__ import annotations

SHARES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of zeros."""

DENSE = {"bf16": "bf16 dense", "int8": "int8 dense", "bf16, fp32 inputs": "bf16 dense, fp32 inputs"}
"""The own dense kernel with the same order of weights, by kind: what isolates sparsity."""

TORCH = {"torch fp32": "float32", "torch bf16": "bfloat16", "torch int8": "int8"}
"""What PyTorch offers: oneDNN for floats, FBGEMM with dynamically quantised inputs for int8."""

CSR = "torch CSR"
"""The naive way to use zeros."""

DENSE_CACHE = "int8"
"""The engine's own cache of integers, every number kept."""

SPARSE_CACHES = ("int8:0.3,0.4", "int8:0.4,0.5", "int8:0.3,0.6", "int8:0.5,0.5")
"""Shares of zeros in keys and values of earlier blocks; values bear more of them than keys."""


def sparse(kind: str, share: float) -> str:
    """Name of a sparse arm."""
    return f"{kind} sparse {share:.0%}"
