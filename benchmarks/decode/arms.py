"""Engines behind one interface: tokens at positions in, logits out."""

# T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from benchmarks._turns import Clock
from lissome.cost.llama_cpp import LlamaCpp
from lissome.engine.decode import Decoder
from lissome.engine.decode.decoder import Floats


class Arm(Protocol):
    """One way to run a model.

    Attributes:
        nbytes: Bytes of weights that a token reads.
        cell: Bytes of the cache that a token reads for each position before it.
        tokens: Size of the vocabulary.
        note: What else a reader must know; may be empty.
    """

    nbytes: int
    cell: int
    tokens: int
    note: str

    def reset(self) -> None:
        """Forget all tokens."""

    def feed(self, ids: Sequence[int], start: int, *, every: bool = False) -> Floats:
        """Run tokens that follow those before; logits of the last one or of every one, float32[1 or T, V]."""

    def close(self) -> None:
        """Give the memory back."""


def request(arm: Arm, ids: Sequence[int], prompt: int, now: Clock) -> tuple[float, float]:
    """Return the seconds of a prompt and of the median token after it."""
    arm.reset()
    start = now()
    arm.feed(ids[:prompt], 0)
    first, times = now() - start, []
    for at in range(prompt, len(ids)):
        start = now()
        arm.feed([ids[at]], at)
        times.append(now() - start)
    return first, float(np.median(times))


class Own:
    """The decoder engine at one precision.

    Args:
        decoder: The engine.
        bits: Which precision.
    """

    note = ""

    def __init__(self, decoder: Decoder, bits: int) -> None:
        self._decoder, self._bits = decoder, bits
        self.nbytes = self._decoder.weight_bytes(bits)
        self.cell = self._decoder.cell_bytes
        self.tokens = self._decoder.spec.vocabulary

    def reset(self) -> None:
        """Forget all tokens."""
        self._decoder.seq_rm(0)

    def feed(self, ids: Sequence[int], start: int, *, every: bool = False) -> Floats:
        """Run tokens."""
        wanted = range(len(ids)) if every else None
        return self._decoder.forward(ids, range(start, start + len(ids)), 0, self._bits, wanted=wanted)

    def close(self) -> None:
        """Nothing is held outside Python."""


class Cpp:
    """llama.cpp, with its own defaults except for threads and context."""

    def __init__(self, path: Path, cell: int, *, context: int, threads: int) -> None:
        self._model = LlamaCpp(path, context=context, threads=threads)
        self.nbytes, self.note = read_bytes(path)
        self.cell, self.tokens = cell, self._model.tokens

    def reset(self) -> None:
        """Forget all tokens."""
        self._model.reset()

    def feed(self, ids: Sequence[int], start: int, *, every: bool = False) -> Floats:
        """Run tokens."""
        return self._model.feed(ids, start, every=every)

    def close(self) -> None:
        """Give the memory back."""
        self._model.close()


def read_bytes(path: Path) -> tuple[int, str]:
    """Return the bytes that a token reads of a GGUF file, and in which types they lie."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    tensors = GGUFReader(path).tensors
    untied = any(tensor.name == "output.weight" for tensor in tensors)
    for tensor in tensors:
        if not (untied and tensor.name == "token_embd.weight"):  # one row of it is read
            sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    listed = (f"{kind} {size / 1e6:.0f} MB" for kind, size in sorted(sizes.items(), key=lambda pair: -pair[1]))
    return sum(sizes.values()), ", ".join(one for one in listed if not one.endswith(" 0 MB"))


class Torch:
    """A model of transformers with its own cache.

    Args:
        module: The model; its linear layers may be packed.
        nbytes: Bytes that a token reads (default: of all parameters, tied ones once).
        cell: Bytes of a position in a cache of halves.
    """

    note = ""

    def __init__(self, module: nn.Module, cell: int, nbytes: int | None = None) -> None:
        from transformers import DynamicCache

        self._module, self._new, self._cache = module, DynamicCache, DynamicCache()
        kinds = {parameter.dtype.itemsize for parameter in module.parameters()}
        self.cell = cell * max(kinds) // 2
        self.nbytes = nbytes if nbytes is not None else sum(one.nbytes for one in module.parameters())
        config: Any = module.config
        self.tokens = int(config.vocab_size)

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache = self._new()

    @torch.inference_mode()
    def feed(self, ids: Sequence[int], start: int, *, every: bool = False) -> Floats:
        """Run tokens."""
        assert self._cache.get_seq_length() == start
        found = self._module(
            torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True, logits_to_keep=0 if every else 1
        )
        logits: Floats = found.logits[0].float().numpy()
        return logits

    def close(self) -> None:
        """Nothing is held outside Python."""


def likeliest(logits: Floats) -> tuple[int, float]:
    """Return the likeliest token of float32[V], and by how much its logit is above the next one's."""
    second, first = np.argpartition(logits, -2)[-2:]
    if logits[second] > logits[first]:
        first, second = second, first
    return int(first), float(logits[first] - logits[second])
