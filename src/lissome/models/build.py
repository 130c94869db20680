"""From a ``config.json`` to a module of its sizes, without weights; what makes no sense is refused by its field.

transformers checks few fields, and late: a head count of 0 ends as a division by zero somewhere inside. The fields that
say sizes, activations and positions are looked at here before anything is built from them.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from lissome.core.errors import ArtifactError, LissomeError, unknown_name
from lissome.models.foreign import FOREIGN, foreign_skeleton

MODEL_TYPE = "lissome"
"""What ``config.json`` of a folder with uneven blocks calls itself."""
GENERATION = "generation_config.json"
"""Beside it: how a model is to write, such as the tokens that end a text."""

_OWN = {"lissome-convnet": ("lissome.models.convnet", "ConvNetForImageClassification")}
"""Module and class of the networks that lissome defines, by model type."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_SIZES = (
    *_LAYERS, "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim",
    "decoder_ffn_dim", "num_attention_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "n_positions", "max_source_positions",
    "max_target_positions", "word_embed_proj_dim", "num_mel_bins", "num_channels", "state_size", "conv_kernel",
    "expand", "num_heads", "n_groups", "time_step_rank", "mamba_n_heads", "mamba_d_head", "mamba_n_groups",
    "mamba_d_state", "mamba_d_conv", "mamba_expand", "sliding_window",
)  # fmt: skip
_WORDS = frozenset({"auto"})  # what some of them may be instead of a number
_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "query_pre_attn_scalar")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "use_cache", "tie_word_embeddings")
_LARGEST = 1 << 31
_LEGACY_ROPE = ("default", "su", "mrope")  # kinds of scaled positions that configuration classes translate themselves
_WIDEST = 1 << 22  # the largest vocabularies have 2^18 words
_FEW = 64  # blocks that are built before the weights are asked


def skeleton(
    config: Mapping[str, Any],
    into: nn.Module | None = None,
    *,
    stored: Collection[str] | None = None,
    buffers: bool = True,
) -> nn.Module:
    """Build a module of the sizes that a ``config.json`` states, with empty (meta) parameters.

    Args:
        config: What the file holds.
        into: The whole module that one of a user's class was cut from; copied.
        stored: Names of the tensors that there are weights of (default: not known). Every block has one at least, and
            a bare encoder has a pooler when they do.
        buffers: Whether buffers get their values; otherwise they are empty too, and nothing takes memory.

    Raises:
        ArtifactError: When the configuration is not one that transformers or lissome knows; names the field.
    """
    from accelerate import init_empty_weights

    from lissome.models.model import Model
    from lissome.models.reopen import cut_to

    if is_foreign(config):
        return foreign_skeleton(config, into)
    ours = config.get("model_type") == MODEL_TYPE
    base: Any = config.get("base") if ours else config
    try:
        build, beside = stock_class(base)._from_config, pooling(base, stored)
        check_fields(base, None if stored is None else len(stored), "base." if ours else "")
        with init_empty_weights(include_buffers=False) if buffers else torch.device("meta"):
            module: nn.Module = build(configuration(base), **beside)
        if ours:
            check_widths(module)
            module = cut_to(Model(module), _layers(config.get("layers"))).module
    except FAILURES as error:
        if is_memory(error):
            raise
        raise ArtifactError(
            f"config.json does not describe a model that can be built: {_reason(error)}; restore it or get it again."
        ) from error
    return module.eval()


def with_generation(module: nn.Module, folder: Path) -> nn.Module:
    """Give a module the generation settings of its folder, such as all tokens that end a text; in place.

    Args:
        module: One that was built from a configuration, which knows one such token at most.
        folder: Where they lie as ``generation_config.json``; without it the module stays as it is.
    """
    if getattr(module, "generation_config", None) is not None and (folder / GENERATION).is_file():
        from transformers import GenerationConfig

        settings: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        module.generation_config = settings
    return module


def is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of a module of a class of its user."""
    base = config.get("base")
    return config.get("model_type") == MODEL_TYPE and isinstance(base, Mapping) and base.get("model_type") == FOREIGN


FAILURES = (
    LissomeError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError,
    StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""What configuration and model classes raise over fields that do not go together."""


def _reason(error: Exception) -> str:
    """Say in a few words why a model could not be built; what transformers' own checks wrap is the reason."""
    if isinstance(error, LissomeError):
        return str(error).removesuffix(".")
    inner = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    text = " ".join(str(inner).split())[:200].removesuffix(".")
    return text if isinstance(inner, ValueError | RuntimeError) and text else f"{type(inner).__name__} {text}".strip()


def configuration(fields: Mapping[str, Any]) -> Any:
    """Return the configuration of transformers that has such fields; its class says what is wrong with them."""
    from transformers import CONFIG_MAPPING

    kind = fields["model_type"]
    known = stock_class(kind).config_class if kind in _OWN else CONFIG_MAPPING[kind]
    return known.from_dict(dict(fields))


def stock_class(config: Any) -> Any:
    """Return the transformers class that a stock configuration names, from transformers' own tables and nowhere else.

    A configuration that names none is of a causal language model.

    Raises:
        ArtifactError: When the model type is unknown, or the class is not one that transformers lists for it.
    """
    import transformers

    kind = config.get("model_type") if isinstance(config, Mapping) else config
    if isinstance(kind, str) and kind in _OWN:
        return getattr(importlib.import_module(_OWN[kind][0]), _OWN[kind][1])
    listed, causal = _listed(kind)
    given = config.get("architectures") or [causal]
    name = given[0] if isinstance(given, list) else given
    if name not in listed:
        raise ArtifactError(f"{name!r} is not a class of transformers for model type {kind}; only those are built")
    return getattr(transformers, name)


def pooling(config: Any, stored: Collection[str] | None) -> dict[str, bool]:
    """Return what the class of a bare encoder is told beside its configuration, which cannot say there is no pooler."""
    leaves_out = "add_pooling_layer" in inspect.signature(stock_class(config)).parameters
    known = stored is None or any("pooler." in name for name in stored)
    return {"add_pooling_layer": False} if leaves_out and not known else {}


def sibling_classes(config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield every class that transformers has for a configuration's model type, whatever its head."""
    import transformers

    if config.get("model_type") in _OWN:
        yield stock_class(config)
        return
    for name in dict.fromkeys(_listed(config.get("model_type"))[0]):
        if hasattr(transformers, name):
            yield getattr(transformers, name)


def _listed(kind: Any) -> tuple[list[str], str | None]:
    """Names of all classes of a model type, and of the one that predicts the next token."""
    import transformers
    from transformers.models.auto import modeling_auto

    if kind is None:
        raise ArtifactError("it states no model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ArtifactError(f"model type {kind if isinstance(kind, str) else ascii(kind)[:60]} is unknown")
    tables = {name: table.get(kind, ()) for name, table in vars(modeling_auto).items() if name.endswith("_NAMES")}
    causal = tables["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"]
    names = [name for found in tables.values() for name in ([found] if isinstance(found, str) else found)]
    return names, causal if isinstance(causal, str) else None


def check_quantised(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says its weights are not plain numbers.

    Raises:
        ArtifactError: Names the way in which they are quantised.
    """
    found = config.get("quantization_config")
    if found:
        how = found.get("quant_method") if isinstance(found, Mapping) else found
        raise ArtifactError(
            f"quantization_config in config.json says that the weights are quantised ({ascii(how)[:40]}); only "
            "floating numbers are read, give the model that it was made from."
        )


def check_widths(module: nn.Module) -> None:
    """Refuse tensors wider than any model has, before the parts of a model are counted, unit by unit.

    Raises:
        ArtifactError: Names the first.
    """
    for name, parameter in module.named_parameters():
        if max(parameter.shape, default=0) > _WIDEST:
            raise ArtifactError(f"it asks for {name} of the shape {list(parameter.shape)}.")


def is_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, which is nobody's configuration."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def check_fields(config: Mapping[str, Any], tensors: int | None = None, prefix: str = "") -> None:
    """Refuse a stock configuration with a field that cannot be.

    Args:
        config: The configuration.
        tensors: How many tensors the weights have (default: not known).
        prefix: What stands before the name of a field in a message.

    Raises:
        ArtifactError: Names the field, what it says, and what it may say.
    """
    dropouts = [name for name in config if "dropout" in name or name.endswith("_pdrop")]
    staged = "num_channels" in config  # networks of images may have a size for each of their stages
    for names, fits, allowed in (*_RULES, (dropouts, _share, "a number from 0 to 1")):
        for name in names:
            value = config.get(name)
            each = value if staged and isinstance(value, list) and value else [value]
            if value is not None and not all(map(fits, each)):
                raise _wrong(prefix + name, value, allowed)
    for name in _LAYERS:
        count = config.get(name)
        if tensors is not None and type(count) is int and count > max(tensors, _FEW):
            raise ArtifactError(f"{prefix}{name} is {count}, but the weights hold {tensors} tensors in all.")
    _check_activations(config, prefix)
    for name in ("rope_parameters", "rope_scaling"):
        if config.get(name) is not None:
            _check_rope(config[name], prefix + name)
    dtype = config.get("dtype") or config.get("torch_dtype")
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise _wrong(f"{prefix}dtype", dtype, "a floating type, for example float32 or bfloat16")


def _check_activations(config: Mapping[str, Any], prefix: str) -> None:
    from transformers.activations import ACT2FN

    for name in _ACTIVATIONS:
        given = config.get(name)
        if given is not None and (not isinstance(given, str) or given not in ACT2FN):
            raise ArtifactError(f"{prefix}{name}: {unknown_name('activation', str(given)[:60], ACT2FN)}")


def _check_rope(given: Any, name: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if not isinstance(given, Mapping):
        raise _wrong(name, given, "an object")
    inner = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    for place, settings in ({f"{name}.{key}": value for key, value in inner.items()} or {name: given}).items():
        kind, known = settings.get("rope_type", settings.get("type", "default")), {*ROPE_INIT_FUNCTIONS, *_LEGACY_ROPE}
        if not isinstance(kind, str) or kind not in known:
            raise ArtifactError(f"{place}.rope_type: {unknown_name('kind', str(kind)[:60], known)}")
        for key in ("rope_theta", "factor"):
            if settings.get(key) is not None and not _positive(settings[key]):
                raise _wrong(f"{place}.{key}", settings[key], "a positive number")
        part = settings.get("partial_rotary_factor")
        if part is not None and not (_share(part) and part):
            raise _wrong(f"{place}.partial_rotary_factor", part, "a number above 0 and up to 1")


def _size(value: Any) -> bool:
    return (isinstance(value, str) and value in _WORDS) or (type(value) is int and 0 < value <= _LARGEST)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _positive(value: Any) -> bool:
    if type(value) is int:
        return 0 < value <= _LARGEST**2
    return type(value) is float and math.isfinite(value) and value > 0


def _share(value: Any) -> bool:
    return isinstance(value, bool) or (type(value) in {int, float} and 0 <= value <= 1)


_RULES: tuple[tuple[Iterable[str], Callable[[Any], bool], str], ...] = (
    (_SIZES, _size, f"a whole number from 1 to {_LARGEST}"),
    (_NUMBERS, _positive, "a positive number"),
    (_FLAGS, lambda value: isinstance(value, bool), "true or false"),
    (("chunk_size_feed_forward",), _count, f"a whole number from 0 to {_LARGEST}"),
)
"""Fields, what they may be where they are stated, and how that is said."""


def _layers(given: Any) -> list[dict[str, dict[str, int]]]:
    """Return the sizes of blocks that ``config.json`` lists."""
    if not isinstance(given, list):
        raise _wrong("layers", given, "a list with the sizes of each block")
    for index, layer in enumerate(given):
        parts = layer.items() if isinstance(layer, Mapping) else [("", None)]
        for part, sizes in parts:
            whole = isinstance(sizes, Mapping) and all(type(size) is int and size >= 0 for size in sizes.values())
            if not whole:
                raise _wrong(f"layers[{index}]{'.' if part else ''}{part}", sizes, "whole numbers by name")
    return given


def _wrong(name: str, value: Any, allowed: str) -> ArtifactError:
    try:
        shown = ascii(value)
    except ValueError:  # a number of thousands of digits
        shown = "a number too long to show"
    return ArtifactError(f"{name} must be {allowed}, got {shown if len(shown) <= 60 else shown[:57] + '...'}.")
