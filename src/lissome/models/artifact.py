"""A model as a folder: safetensors, the usual Hugging Face files, and a manifest.

When all blocks have one shape the folder has a stock configuration and opens with transformers alone. Otherwise its
``config.json`` says ``model_type: lissome``, carries the original configuration and the sizes of every block, and
opens with `lissome.load`, or with ``AutoModelForCausalLM`` and its like after ``import lissome.models.auto``. So it is
when weights are sparse or lie on a grid of integers, because they are stored so (see `lissome.models.sparse` and
`lissome.models.integers`). Adapters and virtual tokens that stand beside the weights are folders of their own,
``adapter`` and ``prompt``, which stock peft opens; learnt maps of kernels are a file, ``crops.safetensors``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, NumericsError, SubnetError, UnsupportedModelError
from lissome.core.files import atomic_folder, inside, read_json, sha256_files
from lissome.core.manifest import MANIFEST, Manifest, read_manifest, verify_files, write_manifest
from lissome.models.adapters import adapters, load_adapters, save_adapters
from lissome.models.adapters.layers import is_adapter_tensor
from lissome.models.adapters.prompts import is_prompt_tensor, load_prompt, prompt_of, save_prompt
from lissome.models.anatomy import Anatomy, Layer
from lissome.models.build import (
    FAILURES,
    MODEL_TYPE,
    check_quantised,
    is_foreign,
    is_memory,
    pooling,
    skeleton,
    stock_class,
    with_generation,
)
from lissome.models.crops import FILE as CROPS
from lissome.models.crops import is_crop_tensor, load_crops, save_crops
from lissome.models.foreign import foreign_config, is_own
from lissome.models.integers import STORAGE as INTEGERS
from lissome.models.integers import give, grids, set_grid, take
from lissome.models.marks import MARK, check_own, config_text, read_config, untagged
from lissome.models.model import Model, Source
from lissome.models.paging import stored_tensors
from lissome.models.preparing import read_preparing, write_preparing
from lissome.models.space import Space
from lissome.models.sparse import STORAGE, compress, expand, masks, set_mask
from lissome.models.stored import (
    check_beside,
    check_entries,
    check_filled,
    check_loaded,
    check_shapes,
    read_entries,
    share,
    shared,
)

WEIGHTS = "model.safetensors"
ADAPTER, PROMPT = "adapter", "prompt"
_REMAKE = "it is damaged, restore or remake the artifact."
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
# What a configuration knows of this process: marks of removed branches, where it was read, and who wrote that.
_RUNTIME_FIELDS = ("kv_sharing_modes", "_attn_implementation_autoset", "_name_or_path", MARK)


def save_model(
    model: Model, folder: Path, *, manifest: Manifest | None = None, extras: Mapping[str, bytes | Path] | None = None
) -> Path:
    """Write a model as a folder that is whole or absent.

    Args:
        model: The model; its parameters are written as they are (shared ones once).
        folder: Where; an older folder there is replaced when the new one is whole.
        manifest: What to say of it; the file list is filled in here. None writes no manifest.
        extras: Files to put beside the weights, by name, as bytes or as what to copy; one folder deep at most.

    Raises:
        ArtifactError: When a model that lissome did not write stands there, or anything else that is no artifact.
        OSError: When the disk is full or the place cannot be written; nothing is left behind.
    """
    from safetensors.torch import save_file

    check_own(folder)
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
        save_crops(model.module, part)
        write_preparing(model.preparing, part)
        for name, content in (extras or {}).items():
            target = inside(part, name)
            target.parent.mkdir(exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
        if manifest is not None:
            write_manifest(part, manifest.with_files(part))
    return folder


def config_of(model: Model) -> dict[str, Any]:
    """Return what ``config.json`` says of a model: stock when that gives the sizes of all its parts, ours otherwise."""
    foreign = is_own(model)
    module, base = model.module, foreign_config(model) if foreign else stock_config(model)
    storage = INTEGERS if grids(module) else STORAGE if masks(module) else None
    if storage is None and not foreign and describes(base, module):
        return base
    return uneven_config(base, model.anatomy.layers(), storage)


def uneven_config(base: Mapping[str, Any], layers: Sequence[Layer], storage: str | None = None) -> dict[str, Any]:
    """Return what ``config.json`` says of a model whose blocks no stock configuration can say.

    Args:
        base: Stock configuration of a model that holds every block; it states its ``dtype``.
        layers: What each block has.
        storage: How its weights are stored, where that is not number by number.
    """
    return {
        "model_type": MODEL_TYPE,
        **({"storage": storage} if storage else {}),
        "architectures": ["LissomeModel"],
        "base": base,
        "layers": layers,
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


def describes(config: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether a stock configuration alone builds a module of these parts and shapes."""
    ours = {name: value.shape for name, value in own_tensors(module.state_dict()).items()}
    stock = skeleton(config, stored=ours, buffers=False)
    return ours == {name: value.shape for name, value in stock.state_dict().items()}


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model itself, without what stands beside its weights."""
    beside = (is_adapter_tensor, is_prompt_tensor, is_crop_tensor)
    return {name: value for name, value in tensors.items() if not any(is_one(name) for is_one in beside)}


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
        bare: Leave the adapters, virtual tokens and maps of kernels that lie beside the weights where they are.

    Raises:
        ArtifactError: When a file is missing, damaged, unsafe or from a newer version.
        NumericsError: When a weight is NaN or infinite.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    if manifest is not None:
        verify_files(folder, manifest, read=_read_files(folder))
    config = untagged(read_config(folder))
    files = weight_files(folder)
    module = ready(_fill(folder, config, files, dtype, into))
    check_finite(module)
    source = Source(name or str(folder), folder, sha256_files(files), tuple(files))
    model = Model(module, load_tokenizer(folder, module), source, manifest, read_preparing(folder))
    if (folder / ADAPTER).is_dir() and not bare:
        load_adapters(model, folder / ADAPTER)
    if (folder / PROMPT).is_dir() and not bare:
        load_prompt(model, folder / PROMPT)
    if (folder / CROPS).is_file() and not bare:
        load_crops(model, folder)
    if manifest is not None:
        check_stated(manifest, model.anatomy, str(folder / MANIFEST))
    return model


def _read_files(folder: Path) -> list[str]:
    """Names of the files of a folder from which its model is read."""
    beside = [path for name in (ADAPTER, PROMPT) for path in (folder / name).glob("*") if path.is_file()]
    tokenizer = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    crops = [folder / CROPS] if (folder / CROPS).is_file() else []
    paths = [folder / "config.json", *weight_files(folder), *tokenizer, *beside, *crops]
    return [path.relative_to(folder).as_posix() for path in paths]


def check_stated(manifest: Manifest, anatomy: Anatomy, where: str) -> None:
    """Compare what a manifest says of a model with the model.

    Args:
        manifest: The manifest.
        anatomy: What is in the model that was read.
        where: How to call the manifest in an error.

    Raises:
        ArtifactError: When it names another architecture or other sizes, or a choice that its space does not have.
    """
    stated, found = manifest.layers, anatomy.layers()
    if manifest.base.architecture != anatomy.architecture:
        kind = ascii(manifest.base.architecture)[:60]
        raise ArtifactError(f"{where} says {kind}, but the model is of type {anatomy.architecture}; {_REMAKE}")
    if stated and len(stated) != len(found):
        raise ArtifactError(f"{where} lists {len(stated)} blocks, but the model has {len(found)}; {_REMAKE}")
    for index, (given, sizes) in enumerate(zip(stated, found, strict=False)):
        if given != sizes:
            raise ArtifactError(f"{where} says of block {index} {ascii(given)[:80]}, but it is {sizes}; {_REMAKE}")
    if manifest.subnet is None:
        return
    if manifest.space is None:
        raise ArtifactError(f"{where} has a subnet, but not the space that it was chosen from; {_REMAKE}")
    try:
        Space.from_json(manifest.space, f"{where}.space").check(manifest.subnet)
    except SubnetError as error:
        raise ArtifactError(f"{where}: {str(error).removesuffix('.')}; {_REMAKE}") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder.

    Raises:
        ArtifactError: When there are none, or an index names a file outside the folder.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        if not (folder / WEIGHTS).is_file():
            raise ArtifactError(
                f"{folder} holds no {WEIGHTS}; only safetensors weights are read (convert other formats first)."
            )
        return [folder / WEIGHTS]
    fields = read_json(index)
    places = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(places, dict) or not places:
        raise ArtifactError(f"{index} lists no tensors; it is damaged, restore or download it again.")
    shards = {shard if isinstance(shard, str) else ascii(shard)[:40] for shard in places.values()}
    for shard in sorted(shards):
        path = PurePosixPath(shard)
        if path.is_absolute() or len(path.parts) != 1 or path.suffix != ".safetensors" or "\0" in shard:
            raise ArtifactError(f"{index} names {shard!r}; only safetensors files inside the folder are read.")
        if not (folder / shard).is_file():
            raise ArtifactError(
                f"{folder / shard} is missing, but {index.name} lists it; restore or download it again."
            )
    return [folder / shard for shard in sorted(shards)]


def _fill(
    folder: Path, config: dict[str, Any], files: list[Path], dtype: torch.dtype | None, into: nn.Module | None
) -> nn.Module:
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # progress is our event stream's business
    try:
        entries = read_entries(files)
        check_quantised(config)
        if is_foreign(config):
            return _fill_skeleton(skeleton(config, into), files, dtype, _stored_dtype(config))
        empty = skeleton(config, stored=entries, buffers=False)
        if config.get("model_type") == MODEL_TYPE:
            check_shapes({name: entry.shape for name, entry in entries.items()}, empty)
            check_beside(folder)
            uneven = _fill_skeleton(skeleton(config, stored=entries), files, dtype, _stored_dtype(config))
            return with_generation(uneven, folder)
        check_entries(entries, empty)
        check_beside(folder)
        loaded, info = stock_class(config).from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, local_files_only=True, output_loading_info=True,
            **pooling(config, entries),
        )  # fmt: skip
        check_loaded(info, config)
        module: nn.Module = loaded.eval()
        return module
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from error
    except SafetensorError as error:
        raise ArtifactError(
            f"the weights in {folder} are damaged or cut short ({error}); restore or remake them."
        ) from error
    except (OSError, *FAILURES) as error:
        if is_memory(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(f"{folder} could not be read as a model: {reason}; restore it or get it again.") from error


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
    check_filled(tensors, module)
    for key, tensor in tensors.items():  # a copy is aligned; kernels add up in another order on a mapped, odd address
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        tensors[key] = tensor.to(wanted, copy=True)
    tied = shared(module)
    module.load_state_dict(tensors, strict=False, assign=True)
    for names in tied:  # they are stored once
        for given in [name for name in names if name in tensors][:1]:
            share(module, names, given)
    if hasattr(module, "tie_weights"):
        module.tie_weights()  # type: ignore[operator]
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
        UnsupportedModelError: When a lazy layer has not run yet, or weights are on the device meta.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
            lacks = "numbers yet; load the weights" if parameter.is_meta else "shape yet; let the module read one input"
            raise UnsupportedModelError(f"{name} has no {lacks}, then give it again.")
        if bad := int((~torch.isfinite(parameter)).sum()):
            raise NumericsError(f"{name} holds {bad} NaN or infinite values; the weights are damaged, get them again.")


def load_tokenizer(folder: Path, module: nn.Module) -> Any:
    """Read the tokenizer of a folder; None when it has none.

    Args:
        folder: The folder.
        module: The model in it: its configuration, not the folder's, says what transformers knows of its tokenizers.

    Raises:
        ArtifactError: When its files are damaged.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    config = getattr(module, "config", None)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    try:
        known = config if isinstance(config, PreTrainedConfig) else None
        return AutoTokenizer.from_pretrained(folder, config=known, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(
            f"the tokenizer in {folder} could not be read ({reason}); its files are damaged, get them again."
        ) from error
