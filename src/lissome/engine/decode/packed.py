"""A torch model in the decoder engine with packed weights: its zeros left out, in bf16 or int8, no Python per layer.

SparAMX's kernels (`lissome.ops.kernels.packed`) under the engine's decode step. Nothing is written to a file; nested
weights (`lissome.models.nested`) are what to keep, these are for models that are sparse.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lissome.core.errors import UnsupportedModelError
from lissome.cost.measured import Request, Target
from lissome.engine.decode.decoder import Decoder, DecoderSettings, Floats
from lissome.engine.decode.phases import Phases
from lissome.engine.decode.timing import Racer
from lissome.models.model import Model
from lissome.models.nested.describe import describe
from lissome.models.nested.spec import DecoderSpec
from lissome.models.packed import pack_linears, zero_share
from lissome.ops.kernels import native
from lissome.ops.kernels.packed import BREAK_EVEN, Form, PackedWeight
from lissome.ops.nested import Layout, quantise, to_planes, to_scales

_EMBEDDING = Layout((8,))
_ROWS = 4096  # of the embedding that are rounded at a time


@dataclass(frozen=True, eq=False)
class PackedModel:
    """Weights for `lissome.engine.decode.Decoder`, read at 8 bits, of which the packed ones take no notice.

    Attributes:
        path: Where the model is from, for messages.
        spec: The description; its head is never tied, because it is held in another form than the embedding.
        vectors: float32 by name.
        matrices: What the compiled module holds, by name.
        nbytes: Bytes of all matrices but the embedding.
    """

    path: Path
    spec: DecoderSpec
    vectors: dict[str, Floats]
    matrices: dict[str, Any]
    nbytes: int
    layout: Layout = _EMBEDDING

    @classmethod
    def of(cls, model: Model, *, weights: Form = "bf16", head: Form = "int8", dense: bool = False) -> PackedModel:
        """Pack a causal language model.

        A matrix with enough zeros holds only the others. The embedding, of which a token reads one row, is rounded to 8
        bits with a scale for every 32 numbers.

        Args:
            model: The model; it stays as it is.
            weights: How the blocks' weights are held.
            head: How the head is held.
            dense: Store zeros too, for comparisons.

        Raises:
            UnsupportedModelError: When the engine does not run models of this kind.
            ConfigError: When there are no compiled kernels, or a weight cannot be packed.
        """
        native.required()
        found, matrices, nbytes = describe(model), dict[str, Any](), 0
        named = dict(found.matrices)
        named.setdefault("head", named["embedding"])
        for name, parts in named.items():
            rows = [model.module.get_parameter(part).detach() for part in parts]
            if name == "embedding":
                matrices[name] = _embedding(rows[0])
                continue
            whole, form = rows[0] if len(rows) == 1 else torch.cat(rows), head if name == "head" else weights
            packed = PackedWeight.pack(whole, form, sparse=not dense and zero_share(whole) > BREAK_EVEN[form])
            matrices[name] = packed.handle
            nbytes += packed.nbytes
        vectors: dict[str, Floats] = {name: vector.numpy() for name, vector in found.vectors.items()}
        return cls(Path(model.name), replace(found.spec, tied=False), vectors, matrices, nbytes)

    def vector(self, name: str) -> Floats:
        """Return a vector."""
        return self.vectors[name]

    def held(self, name: str, *, resident: bool) -> Any:
        """Return a matrix as the compiled module holds it; it is in huge pages anyway."""
        return self.matrices[name]


def accelerated(model: Model, kernels: Mapping[str, Any], request: Request | None = None) -> tuple[Target, str]:
    """Return what runs a model on kernels for zeros, to be timed: the engine, or where it does not run it, torch.

    Args:
        model: The model; it stays as it is, and where torch runs it a copy is packed.
        kernels: ``weights`` and ``head`` as in `lissome.models.packed.kernels_of`.
        request: What it will be timed by (default: the usual one).

    Returns:
        The target, and what it is, for a person.

    Raises:
        ConfigError: When a layer cannot be packed.
    """
    request, forms = request or Request(), f"{kernels['weights']}, head {kernels['head']}"
    packed = in_engine(model, kernels)
    if packed is None:
        work = model.derived(copy.deepcopy(model.module))
        assert work.anatomy.branches  # read before its layers are others
        done = pack_linears(work.module, **kernels)
        count = sum(one.sparse for one in done)
        return work, f"kernels for zeros run {count} of {len(done)} linear layers ({forms})"
    bits = packed.layout.bits
    settings = DecoderSettings(cells=request.prompt + request.new, threads=torch.get_num_threads())
    racer = Racer(Decoder(packed, settings), 0, Phases(bits, ((bits, None),)))
    return racer, f"the decoder engine with kernels for zeros runs it ({forms}), {packed.nbytes / 1e6:.0f} MB a token"


def in_engine(model: Model, kernels: Mapping[str, Any]) -> PackedModel | None:
    """Return a model packed for the engine; None where that does not run it, or its layers shall stay."""
    if native.module() is None or "keep" in kernels.values():
        return None
    try:
        return PackedModel.of(model, weights=kernels["weights"], head=kernels["head"])
    except UnsupportedModelError:
        return None


def _embedding(rows: torch.Tensor) -> Any:
    """The embedding in 8 bits, as the compiled module holds it."""
    pieces = [
        quantise(rows[first : first + _ROWS].float().numpy(), _EMBEDDING, rounds=1)
        for first in range(0, len(rows), _ROWS)
    ]
    bits = _EMBEDDING.bits
    codes = np.concatenate([piece.codes for piece in pieces])
    scale, least = (np.concatenate([getattr(piece, side)[bits] for piece in pieces]) for side in ("scales", "leasts"))
    planes, halves = to_planes(codes, _EMBEDDING), to_scales(scale, least)
    return native.required().Nested(*rows.shape, _EMBEDDING.group, planes, {bits: (bits, halves)})
