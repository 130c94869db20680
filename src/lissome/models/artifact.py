"""A model as a folder: safetensors, the usual Hugging Face files, and a manifest.

When all blocks have one shape the folder has a stock configuration and opens with transformers alone. Otherwise its
``config.json`` says ``model_type: lissome``, carries the original configuration and the sizes of every block, and
opens with `lissome.load`, or with ``AutoModelForCausalLM`` and its like after ``import lissome.models.auto``. So it is
when weights are sparse or lie on a grid of integers, because they are stored so (see `lissome.models.sparse` and
`lissome.models.integers`). Adapters and virtual tokens
that stand beside the weights are folders of their own, ``adapter`` and ``prompt``, which stock peft opens.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, LissomeError, NumericsError
from lissome.core.files import atomic_folder, inside, read_json, sha256_file
from lissome.core.manifest import Manifest, read_manifest, verify_files, write_manifest
from lissome.models.adapters import adapters, load_adapters, save_adapters
from lissome.models.adapters.layers import is_adapter_tensor
from lissome.models.adapters.prompts import is_prompt_tensor, load_prompt, prompt_of, save_prompt
from lissome.models.foreign import FOREIGN, foreign_config, foreign_skeleton
from lissome.models.integers import STORAGE as INTEGERS
from lissome.models.integers import give, grids, set_grid, take
from lissome.models.model import Model, Source
from lissome.models.paging import stored_tensors
from lissome.models.sparse import STORAGE, compress, expand, masks, set_mask

MODEL_TYPE = "lissome"
WEIGHTS = "model.safetensors"
ADAPTER, PROMPT = "adapter", "prompt"
_FLOAT = "__float__"
_OWN = {"lissome-convnet": ("lissome.models.convnet", "ConvNetForImageClassification")}
"""Module and class of the networks that lissome defines, by model type."""
# What a configuration knows of this process: marks of removed branches, and where on this machine it was read.
_RUNTIME_FIELDS = ("kv_sharing_modes", "_attn_implementation_autoset", "_name_or_path")


def save_model(
    model: Model, folder: Path, *, manifest: Manifest | None = None, extras: Mapping[str, bytes] | None = None
) -> Path:
    """Write a model as a folder that is whole or absent.

    Args:
        model: The model; its parameters are written as they are (shared ones once).
        folder: Where; an older folder there is replaced when the new one is whole.
        manifest: What to say of it; the file list is filled in here. None writes no manifest.
        extras: Small files to put beside the weights, by name; one folder deep at most.

    Raises:
        OSError: When the disk is full or the place cannot be written; nothing is left behind.
    """
    from safetensors.torch import save_file

    with atomic_folder(folder) as part:
        integers, others = take(own_tensors(stored_tensors(model.module)), model.module)
        save_file(integers | compress(others, masks(model.module)), part / WEIGHTS, metadata={"format": "pt"})
        (part / "config.json").write_text(config_text(config_of(model)), encoding="utf-8")
        generation = getattr(model.module, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(part)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        if adapters(model.module):
            save_adapters(model, part / ADAPTER)
        if prompt_of(model) is not None:
            save_prompt(model, part / PROMPT)
        for name, content in (extras or {}).items():
            target = inside(part, name)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        if manifest is not None:
            write_manifest(part, manifest.with_files(part))
    return folder


def config_of(model: Model) -> dict[str, Any]:
    """Return what ``config.json`` says of a model: stock when that gives the sizes of all its parts, ours otherwise."""
    foreign = getattr(model.module, "config", None) is None
    module, base = model.module, foreign_config(model) if foreign else stock_config(model)
    storage = INTEGERS if grids(module) else STORAGE if masks(module) else None
    if storage is None and not foreign and describes(base, module):
        return base
    return {
        "model_type": MODEL_TYPE,
        **({"storage": storage} if storage else {}),
        "architectures": ["LissomeModel"],
        "base": base,
        "layers": model.anatomy.layers(),
        "dtype": base["dtype"],
        **{key: base[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size") if key in base},
    }


def stock_config(model: Model) -> dict[str, Any]:
    """Return a model's configuration in transformers' own words; see `describes` for whether it says everything."""
    module = model.module
    base: dict[str, Any] = module.config.to_dict()  # type: ignore[union-attr,operator]
    for name in _RUNTIME_FIELDS:
        base.pop(name, None)
    base["dtype"] = str(next(module.parameters()).dtype).removeprefix("torch.")
    base["architectures"] = [type(module).__name__]
    return base


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration as the text of ``config.json``."""
    return json.dumps(_tagged(config), indent=2, sort_keys=True) + "\n"


def _tagged(value: Any) -> Any:
    """Write infinity (an open limit of Mamba-2) as transformers does, because JSON has no such number."""
    if isinstance(value, dict):
        return {key: _tagged(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(inner) for inner in value]
    return {_FLOAT: f"{'-' if value < 0 else ''}Infinity"} if isinstance(value, float) and math.isinf(value) else value


def _untagged(value: Any) -> Any:
    """Undo `_tagged`."""
    if isinstance(value, dict):
        tag = value.get(_FLOAT)
        if len(value) == 1 and tag in ("Infinity", "-Infinity"):
            return float(tag)
        return {key: _untagged(inner) for key, inner in value.items()}
    return [_untagged(inner) for inner in value] if isinstance(value, list) else value


def describes(config: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether a stock configuration alone builds a module of these parts and shapes."""
    stock = skeleton(config)
    return {name: value.shape for name, value in stock.state_dict().items()} == {
        name: value.shape for name, value in own_tensors(module.state_dict()).items()
    }


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model itself, without what stands beside its weights."""
    return {
        name: value for name, value in tensors.items() if not is_adapter_tensor(name) and not is_prompt_tensor(name)
    }


def skeleton(config: Mapping[str, Any], into: nn.Module | None = None) -> nn.Module:
    """Build a module of the sizes that a ``config.json`` states, with empty (meta) parameters.

    Args:
        config: The configuration.
        into: The whole module that one of a user's class was cut from; copied.

    Raises:
        ArtifactError: When the configuration is not one that transformers or lissome knows.
    """
    from accelerate import init_empty_weights

    from lissome.models.binding import extract

    ours = config.get("model_type") == MODEL_TYPE
    base: Any = config.get("base") if ours else config
    if isinstance(base, Mapping) and base.get("model_type") == FOREIGN:
        return foreign_skeleton(config, into)
    try:
        build = stock_class(base)._from_config
        with init_empty_weights(include_buffers=False):
            module: nn.Module = build(_stock_config(base))
        if ours:
            whole = Model(module)
            module = extract(whole, whole.anatomy.choices(config["layers"])).module
    except (LissomeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"config.json does not describe a model that can be built: {error}") from error
    return module.eval()


def _stock_config(fields: Mapping[str, Any]) -> Any:
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
    from transformers.models.auto import modeling_auto

    kind = config.get("model_type") if isinstance(config, Mapping) else config
    if kind in _OWN:
        return getattr(importlib.import_module(_OWN[kind][0]), _OWN[kind][1])
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ArtifactError(f"model type {kind} is unknown")
    tables = {name: table.get(kind, ()) for name, table in vars(modeling_auto).items() if name.endswith("_NAMES")}
    listed = [name for found in tables.values() for name in ([found] if isinstance(found, str) else found)]
    given = config.get("architectures") or [tables["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"]]
    name = given[0] if isinstance(given, list) else given
    if name not in listed:
        raise ArtifactError(f"{name!r} is not a class of transformers for model type {kind}; only those are built")
    return getattr(transformers, name)


def load_folder(
    folder: Path,
    *,
    name: str | None = None,
    into: nn.Module | None = None,
    dtype: torch.dtype | None = torch.float32,
    bare: bool = False,
) -> Model:
    """Read an artifact or any Hugging Face folder with safetensors weights.

    Args:
        folder: The folder.
        name: What the user called it (default: the folder's path).
        into: For a module of a class of the user's own, the whole one; it is copied, and may hold any weights.
        dtype: Type to hold the weights in; None keeps the stored one. Default float32, which every CPU computes fast.
        bare: Leave the adapters and virtual tokens that lie beside the weights where they are.

    Raises:
        ArtifactError: When a file is missing, damaged, unsafe or from a newer version.
        NumericsError: When a weight is NaN or infinite.
    """
    from lissome.models.mixers import scan_in_chunks

    manifest = read_manifest(folder) if (folder / "manifest.json").exists() else None
    if manifest is not None:
        verify_files(folder, manifest)
    config = _untagged(read_json(folder / "config.json", finite=False))
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / 'config.json'} is not a JSON object; the file is damaged.")
    files = weight_files(folder)
    module = scan_in_chunks(_fill(folder, config, files, dtype, into))
    check_finite(module)
    digest = sha256_file(files[0]) if len(files) == 1 else None
    model = Model(module, load_tokenizer(folder), Source(name or str(folder), folder, digest, tuple(files)), manifest)
    if (folder / ADAPTER).is_dir() and not bare:
        load_adapters(model, folder / ADAPTER)
    if (folder / PROMPT).is_dir() and not bare:
        load_prompt(model, folder / PROMPT)
    return model


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder.

    Raises:
        ArtifactError: When there are none, or an index names a file outside the folder.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        if not (folder / WEIGHTS).exists():
            raise ArtifactError(
                f"{folder} holds no {WEIGHTS}; only safetensors weights are read (convert other formats first)."
            )
        return [folder / WEIGHTS]
    fields = read_json(index)
    names = sorted(set(fields["weight_map"].values())) if isinstance(fields, dict) and "weight_map" in fields else []
    for shard in names:
        path = PurePosixPath(shard)
        if path.is_absolute() or len(path.parts) != 1 or path.suffix != ".safetensors":
            raise ArtifactError(f"{index} names {shard!r}; only safetensors files inside the folder are read.")
        if not (folder / shard).exists():
            raise ArtifactError(
                f"{folder / shard} is missing, but {index.name} lists it; restore or download it again."
            )
    return [folder / shard for shard in names]


def _fill(
    folder: Path, config: dict[str, Any], files: list[Path], dtype: torch.dtype | None, into: nn.Module | None
) -> nn.Module:
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # progress is our event stream's business
    try:
        if config.get("model_type") != MODEL_TYPE:
            loaded: nn.Module = stock_class(config).from_pretrained(
                folder, dtype=dtype or "auto", use_safetensors=True, local_files_only=True
            )
            return loaded.eval()
        return _fill_skeleton(skeleton(config, into), files, dtype, _stored_dtype(config))
    except SafetensorError as error:
        raise ArtifactError(
            f"the weights in {folder} are damaged or cut short ({error}); restore or remake them."
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{folder} could not be read as a model: {reason}") from error


def _stored_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Number type that a model was saved in; integers are read as numbers of it."""
    found = getattr(torch, str(config.get("dtype")), None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float32


def _fill_skeleton(module: nn.Module, files: list[Path], dtype: torch.dtype | None, stored: torch.dtype) -> nn.Module:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    integers, others = give(tensors, module)
    tensors, found = expand(others, {name: value.shape for name, value in module.state_dict().items()})
    tensors |= {name: read.weight.to(stored) for name, read in integers.items()}
    found |= {name: read.mask for name, read in integers.items() if read.mask is not None}
    for key, tensor in tensors.items():  # a copy is aligned; kernels add up in another order on a mapped, odd address
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        tensors[key] = tensor.to(wanted, copy=True)
    _, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    if hasattr(module, "tie_weights"):
        module.tie_weights()  # type: ignore[operator]
    empty = [key for key, parameter in module.named_parameters() if parameter.is_meta]
    if unexpected or empty:
        raise ArtifactError(
            f"the weights do not fit config.json: {len(empty)} tensors missing ({', '.join(empty[:2])}…), "
            f"{len(unexpected)} unknown ({', '.join(unexpected[:2])}…)."
        )
    for key, mask in found.items():
        set_mask(module.get_submodule(key.removesuffix(".weight")), mask)
    for key, read in integers.items():
        set_grid(module.get_submodule(key.removesuffix(".weight")), read.grid)
    return module.eval()


def ready(module: nn.Module) -> nn.Module:
    """Make a module evaluate, and its scans (see `lissome.models.mixers`) run in chunks; in place."""
    if any(type(part).__name__.endswith("Mixer") for part in module.modules()):
        from lissome.models.mixers import scan_in_chunks  # imports model classes that few need

        scan_in_chunks(module)
    return module.eval()


def check_finite(module: nn.Module) -> None:
    """Refuse a module with NaN or infinity in its weights.

    Raises:
        NumericsError: Names the first such tensor.
    """
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            bad = int((~torch.isfinite(parameter)).sum())
            raise NumericsError(f"{name} holds {bad} NaN or infinite values; the weights are damaged, get them again.")


def load_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of a folder; None when it has none.

    Raises:
        ArtifactError: When its files are damaged.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for damaged files
        raise ArtifactError(f"the tokenizer in {folder} could not be read: {str(error).splitlines()[0]}") from error
