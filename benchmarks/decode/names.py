"""What the arms of the claim are called; the tables need nothing else of it."""

from __future__ import annotations

MODELS = ("smollm2-135m", "gemma-3-270m")
SOURCE = {"smollm2-135m": "Q4_1", "gemma-3-270m": "Q4_K_M"}
"""Type of the GGUF file that each model comes as; its arm of llama.cpp runs that very file."""

LLAMA = ("Q4_1", "Q4_0", "IQ4_NL", "Q4_K_M", "Q8_0")
"""Types of llama.cpp; those that the model does not come as are made from its weights by llama.cpp's own quantiser."""

BITS = (4, 3)
TORCH = {"torch fp32": "float32", "torch bf16": "bfloat16"}
OPENVINO = {"openvino int8": 8, "openvino int4": 4}

SPARSE = {
    "wanda: torch fp32": "zeros multiplied like other numbers",
    "wanda: torch bf16": "zeros multiplied like other numbers",
    "wanda: transformers, sparse bf16": "our kernels inside transformers, non-zeros stored; head int8",
    "wanda: engine dense bf16": "our engine and kernels, every weight stored; head int8",
    "wanda: engine sparse bf16": "our engine and kernels, non-zeros stored; head int8",
    "wanda: engine sparse int8": "our engine and kernels, non-zeros stored; head int8",
}
"""Arms of the model with half of its block weights pruned."""


def nested(bits: int) -> str:
    """Name of an arm of the engine."""
    return f"nested {bits} bits"


def llama(kind: str) -> str:
    """Name of an arm of llama.cpp."""
    return f"llama.cpp {kind}"
