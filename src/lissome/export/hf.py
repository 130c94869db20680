"""Hugging Face folder: safetensors and a stock configuration, opened by transformers without lissome.

A stock configuration states one MLP width and one number of heads for all blocks. Uneven blocks of Llama-like decoders
are grown to one shape with zeros when `pad` is given; those of other families are refused. `lissome.load` and a lissome
artifact need neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from lissome.core.errors import ConfigError, ExportError, unknown_name
from lissome.core.events import EventStream
from lissome.core.files import atomic_folder
from lissome.export._padding import Sizes, padded, paddings_of, uniform_sizes
from lissome.export._report import ExportReport
from lissome.export._stack import Layer, Piece, Stack, read_stack, stacked, whole
from lissome.models.anatomy import anatomy_of
from lissome.models.artifact import describes, own_tensors, stock_config
from lissome.models.build import skeleton
from lissome.models.families.decoder import COMPANIONS
from lissome.models.marks import check_own, config_text
from lissome.models.model import Model
from lissome.models.paging import stored_tensors
from lissome.models.preparing import write_preparing

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHARD = "5GB"
_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}


def export(
    model: Model,
    target: Path,
    *,
    type: str | None = None,
    pad: bool = False,
    events: EventStream | None = None,
) -> ExportReport:
    """Write a model as a folder that transformers opens, whole or absent.

    Args:
        model: The model.
        target: The folder; an older export or artifact there is replaced when the new one is whole.
        type: Number type: F32, F16 or BF16. Default: as the weights are held.
        pad: Grow uneven blocks to one shape with zeros.
        events: Where progress goes: a stage ``export NAME`` counted in blocks.

    Returns:
        What was written and what was padded.

    Raises:
        ExportError: When no stock configuration can say the model's sizes and `pad` is not given.
        ConfigError: When `type` is not one of the above.
        ArtifactError: When `target` is a file, or a folder or model that lissome did not write.
    """
    if type is not None and type not in _TYPES:
        raise ConfigError(unknown_name("number type", type, _TYPES))
    config = stock_config(model)
    if model.anatomy.architecture not in COMPANIONS:
        return _as_it_is(model, target, config, _TYPES[type] if type is not None else None)
    stack = read_stack(model)
    stack, sizes = _stock(stack, config, pad=pad)
    kind = _TYPES[type] if type is not None else stack.embedding.dtype
    config |= _fields(stack, sizes) | {"dtype": str(kind).removeprefix("torch.")}
    state: dict[str, Tensor] = {}
    added: dict[str, float] = {}
    with (events or EventStream()).stage(f"export {target.name}", len(stack.layers)) as stage:
        for name, piece in _outside(stack):
            state[name] = piece.make().to(kind).contiguous()
        for index, layer in enumerate(stack.layers):
            for branch, name, piece in _named(layer, stack.model_type):
                state[f"model.layers.{index}.{name}"] = piece.make().to(kind).contiguous()
                part = f"block {index} {branch}"
                added[part] = added.get(part, 0) + piece.added * kind.itemsize
            stage.advance()
    _save(model, target, config, state)
    return replace(
        _report(target, config, state, len(stack.layers)),
        padded=paddings_of(stack, added),
        notes=(stack.merging,) if stack.merging else (),
    )


def _as_it_is(model: Model, target: Path, config: dict[str, Any], kind: torch.dtype | None) -> ExportReport:
    """Write a model of any family, when a stock configuration gives the sizes of all its parts."""
    if not describes(config, model.module):
        raise ExportError(
            f"a stock configuration cannot say this {model.anatomy.architecture} ({_difference(model, config)}), and "
            "--pad fills up Llama-like models alone; open the artifact with lissome.load."
        )
    state = {
        name: tensor.to(kind or tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in own_tensors(stored_tensors(model.module)).items()
    }
    config |= {"dtype": str(kind).removeprefix("torch.")} if kind is not None else {}
    _save(model, target, config, state)
    return _report(target, config, state, len(model.anatomy.blocks))


def _difference(model: Model, config: Mapping[str, Any]) -> str:
    """The first block that is not as the configuration says."""
    stock = anatomy_of(skeleton(config)).layers()
    for index, (ours, theirs) in enumerate(zip(model.anatomy.layers(), stock, strict=False)):
        for part, sizes in theirs.items():
            if part not in ours:
                return f"block {index} has no {part}"
            for dim, size in sizes.items():
                if ours[part].get(dim) != size:
                    return f"block {index}: {part} {dim} is {ours[part].get(dim)}, but it says {size}"
    return "its tensors have other names or shapes"


def _report(target: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], blocks: int) -> ExportReport:
    types: dict[str, int] = {}
    for tensor in state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        types[name] = types.get(name, 0) + tensor.nbytes
    return ExportReport(
        format="hf",
        path=target,
        bytes=sum(file.stat().st_size for file in target.iterdir()),
        architecture=str(config["architectures"][0]),
        types=types,
        blocks=blocks,
    )


def _stock(stack: Stack, config: Mapping[str, Any], *, pad: bool) -> tuple[Stack, Sizes]:
    """Return the model at sizes that its stock configuration can say."""
    sizes = uniform_sizes(stack)
    accepted = _accepts(stack, config, sizes)
    if not stack.uneven and accepted:
        return stack, sizes
    if not pad:
        reason = (
            stack.uneven or f"transformers refuses {sizes.groups * sizes.queries} heads at hidden size {stack.hidden}"
        )
        raise ExportError(
            f"a stock configuration cannot say this model ({reason}); add --pad to fill its blocks up with zeros, or "
            "open the artifact with lissome.load."
        )
    if not accepted:
        most = max(int(config["num_attention_heads"]), sizes.groups * sizes.queries)
        more = sorted(
            (groups * queries, groups, queries)
            for groups, queries in product(range(sizes.groups, most + 1), range(sizes.queries, most + 1))
            if groups * queries <= stack.hidden
        )
        found = (Sizes(groups, queries, sizes.width) for _, groups, queries in more)
        chosen = next((one for one in found if _accepts(stack, config, one)), None)
        if chosen is None:
            raise ExportError("no number of heads that holds the model's is one that transformers accepts.")
        sizes = chosen
    return padded(stack, sizes), sizes


def _accepts(stack: Stack, config: Mapping[str, Any], sizes: Sizes) -> bool:
    """Whether transformers takes a configuration of these sizes (some classes want heads to divide the hidden size)."""
    try:
        stack.config.__class__.from_dict({**config, **_fields(stack, sizes)})
    except (ValueError, StrictDataclassError):
        return False
    return True


def _fields(stack: Stack, sizes: Sizes) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "num_hidden_layers": len(stack.layers),
        "intermediate_size": sizes.width,
        "num_attention_heads": sizes.groups * sizes.queries,
        "num_key_value_heads": sizes.groups,
        "head_dim": stack.attentions[0].shape.head_dim,
        "tie_word_embeddings": stack.head is None,
    }
    if getattr(stack.config, "layer_types", None):
        flags = [layer.attention is not None and layer.attention.sliding for layer in stack.layers]
        fields["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in flags]
    return fields


def _outside(stack: Stack) -> Iterator[tuple[str, Piece]]:
    yield "model.embed_tokens.weight", whole(stack.embedding)
    yield "model.norm.weight", whole(stack.norm)
    if stack.head is not None:
        yield "lm_head.weight", whole(stack.head)


def _named(layer: Layer, model_type: str) -> Iterator[tuple[str, str, Piece]]:
    """Yield the tensors of a block, with their branch, under transformers' names."""
    assert layer.attention is not None
    assert layer.mlp is not None
    attention, mlp = dict(layer.attention.pieces), dict(layer.mlp.pieces)
    if model_type == "phi3":
        attention["qkv"] = stacked([attention.pop(role) for role in "qkv"])
        mlp["gate_up"] = stacked([mlp.pop("gate"), mlp.pop("up")])
    for branch, pieces in (("attention", attention), ("mlp", mlp)):
        norms = dict(zip(("norm", "post_norm"), COMPANIONS[model_type][branch], strict=False))
        for role, piece in pieces.items():
            name = norms.get(role) or _NAMES[role.removesuffix("_bias")]
            yield branch, f"{name}.{'bias' if role.endswith('_bias') else 'weight'}", piece


def _save(model: Model, target: Path, config: Mapping[str, Any], state: dict[str, Tensor]) -> None:
    from huggingface_hub import save_torch_state_dict

    check_own(target)
    with atomic_folder(target) as part:
        save_torch_state_dict(state, part, max_shard_size=_SHARD)
        (part / "config.json").write_text(config_text(config), encoding="utf-8")
        generation = getattr(model.module, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(part)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        write_preparing(model.preparing, part)
