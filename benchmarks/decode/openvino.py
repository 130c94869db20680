"""OpenVINO, where it is installed: the model traced with its cache as a state, weights compressed by NNCF.

Neither is needed by lissome: ``pip install openvino nncf`` brings this arm into the table.
"""

# T tokens, P positions before them

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.decode.files import Files
from lissome.engine.decode.decoder import Floats
from lissome.models.nested.file import open_nested
from lissome.models.nested.spec import AttentionSpec

GROUP = 32
"""Weights that share a scale at 4 bits: as in GGUF and in nested weights."""
_NEVER = -1e9  # added to the score of what is not seen
_LONGEST = 2048  # positions


def installed() -> bool:
    """Whether both packages are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", "nncf"))


class OpenVino:
    """A model in OpenVINO.

    Args:
        files: The model.
        bits: 8 or 4; embedding and head have 8 in both, as NNCF chooses.
        threads: Threads.
    """

    def __init__(self, files: Files, bits: int, *, threads: int) -> None:
        import openvino

        spec = open_nested(files.nested).spec
        self._parts = [layer.attention for layer in spec.layers if layer.attention is not None]
        self._windows = sorted({part.window for part in self._parts})
        model = _converted(files, self._parts, self._windows)
        model = _compressed(model, bits)
        constants = [one for one in model.get_ops() if one.get_type_name() == "Constant" and _read_whole(one)]
        self.nbytes = sum(one.get_byte_size() for one in constants)
        self.cell, self.tokens = files.cell, spec.vocabulary
        self.note = f"{openvino.__version__.split('-')[0]}, traced from transformers"
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def reset(self) -> None:
        """Forget all tokens."""
        self._request.reset_state()

    def feed(self, ids: Sequence[int], start: int, *, every: bool = False) -> Floats:
        """Run tokens."""
        count = len(ids)
        at, seen = np.arange(start, start + count)[:, None], np.arange(start + count)[None]
        given: dict[str, Any] = {
            "ids": np.array([ids], np.int64),
            "positions": at.T.astype(np.int64),
            "rows": np.arange(0 if every else count - 1, count, dtype=np.int64),
        }
        for window in self._windows:
            hidden = (seen > at) | ((seen <= at - window) if window else False)
            given[f"mask{window}"] = np.where(hidden, np.float32(_NEVER), np.float32(0))[None, None]
        logits: Floats = self._request.infer(given)["logits"][0].copy()
        return logits

    def close(self) -> None:
        """Nothing is held outside Python."""


def _read_whole(constant: Any) -> bool:
    """Whether a token reads all of it, not a row of a table of angles."""
    return not any("rotary_emb" in one.get_node().get_friendly_name() for one in constant.output(0).get_target_inputs())


class _Angles(nn.Module):
    """A model's cosines and sines as tables: OpenVINO would compute them in bf16, without odd numbers from 256 on."""

    def __init__(self, rotary: Any, example: Tensor, length: int) -> None:
        super().__init__()
        kinds = dict.fromkeys(getattr(rotary.config, "layer_types", None) or ["full_attention"])
        every = torch.arange(length)[None]
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        found = {kind: rotary(example, every, *([kind] if by_kind else [])) for kind in kinds}
        self._tables = {kind: tuple(one[0] for one in pair) for kind, pair in found.items()}

    def forward(self, _: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
        """Return both, [1, T, E]."""
        kind = layer_type if layer_type in self._tables else next(iter(self._tables))
        return tuple(table[position_ids] for table in self._tables[kind])


class _Traced(nn.Module):
    """A model as a function of tensors alone: cache in, cache out."""

    def __init__(self, module: Any, parts: Sequence[AttentionSpec], windows: Sequence[int]) -> None:
        super().__init__()
        self.module, self._parts, self._windows = module, parts, windows

    def forward(self, ids: Tensor, positions: Tensor, rows: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Return logits and the longer cache."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        masks, past = rest[: len(self._windows)], rest[len(self._windows) :]
        cache = DynamicCache()
        for at in range(len(self._parts)):
            layer: Any = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = past[2 * at], past[2 * at + 1], True
            cache.layers.append(layer)
        mask: Any = dict(zip(self._windows, masks, strict=True))
        kinds = getattr(self.module.config, "layer_types", None)
        named = {"full_attention": mask.get(0), "sliding_attention": mask[max(self._windows)]}
        given = named if kinds and "sliding_attention" in kinds else masks[0]
        hidden = self.module.model(
            input_ids=ids, position_ids=positions, attention_mask=given, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = self.module.lm_head(hidden[:, rows])
        return logits, *(one for layer in cache.layers for one in (layer.keys, layer.values))


def _converted(files: Files, parts: Sequence[AttentionSpec], windows: Sequence[int]) -> Any:
    """Trace the model and make its cache a state."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    module: Any = deepcopy(files.model.module)
    module.set_attn_implementation("sdpa")
    module.model.rotary_emb = _Angles(module.model.rotary_emb, torch.zeros(1, 1, module.config.hidden_size), _LONGEST)
    tokens, past = 2, 3
    example = [torch.ones(1, tokens, dtype=torch.long), torch.arange(past, past + tokens)[None], torch.arange(tokens)]
    example += [torch.zeros(1, 1, tokens, past + tokens) for _ in windows]
    example += [torch.zeros(1, part.kv_heads, past, part.size) for part in parts for _ in range(2)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a trace does not follow branches on sizes: there are none on these
        model = openvino.convert_model(_Traced(module, parts, windows), example_input=tuple(example))
    inside = [f"{kind}{layer}" for layer in range(len(parts)) for kind in ("keys", "values")]
    names = ["ids", "positions", "rows", *(f"mask{window}" for window in windows), *inside]
    for port, name in zip(model.inputs, names, strict=True):
        port.set_names({name})
    for port, name in zip(model.outputs, ["logits", *(f"{name}.next" for name in inside)], strict=True):
        port.set_names({name})
    dynamic = {"ids": [1, -1], "positions": [1, -1], "rows": [-1]} | {f"mask{one}": [1, 1, -1, -1] for one in windows}
    for layer, part in enumerate(parts):
        dynamic |= {f"{kind}{layer}": [1, part.kv_heads, -1, part.size] for kind in ("keys", "values")}
    model.reshape({name: openvino.PartialShape(shape) for name, shape in dynamic.items()})
    apply_make_stateful_transformation(model, {name: f"{name}.next" for name in inside})
    return model


def _compressed(model: Any, bits: int) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    kept = nncf.IgnoredScope(patterns=[".*rotary_emb.*"])  # tables of angles look like embeddings
    if bits == 8:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=kept)
    mode = nncf.CompressWeightsMode.INT4_ASYM
    return nncf.compress_weights(model, mode=mode, group_size=GROUP, ratio=1.0, ignored_scope=kept)
