"""The folder that a GGUF file becomes: checked before anything is written, whole or absent, remembered by checksum."""

from __future__ import annotations

import errno
import shutil
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from lissome.core.errors import ArtifactError, LissomeError
from lissome.core.events import EventStream
from lissome.core.files import atomic_folder, cache_dir, known_sha256, locked, read_json, write_json
from lissome.models.artifact import uneven_config
from lissome.models.binding import extract
from lissome.models.build import check_widths
from lissome.models.gguf.header import Header, damaged, read_header
from lissome.models.gguf.mapping import config_of, layers_of, takes_of
from lissome.models.gguf.tokenizer import save_tokenizer
from lissome.models.gguf.weights import BYTES, StoredType, Take, stored_type, write_safetensors
from lissome.models.marks import config_text
from lissome.models.model import Model

Layers = list[dict[str, dict[str, int]]]

_CONVERTER = 1  # raise it when the same file would be converted to something else
_STAMP = "source.json"
_DTYPES: dict[StoredType, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def convert_once(gguf: Path, events: EventStream) -> Path:
    """Return the folder of a GGUF file, making it when it is not in the cache; see `lissome.models.gguf.convert`."""
    header = read_header(gguf)
    digest = known_sha256(gguf)
    folder = cache_dir() / "converted" / digest[:16]
    if _is_whole(folder, digest):
        return folder
    with locked(folder.parent / f".{folder.name}.lock"):
        if not _is_whole(folder, digest):  # another process may have made it while this one waited
            _convert(header, digest, folder, events)
    return folder


def _is_whole(folder: Path, digest: str) -> bool:
    """Whether the folder is of this file and this converter, and all its files have their size."""
    try:
        stamp = read_json(folder / _STAMP)
    except ArtifactError:
        return False
    if not isinstance(stamp, dict) or (stamp.get("sha256"), stamp.get("converter")) != (digest, _CONVERTER):
        return False
    files = stamp.get("files")
    return isinstance(files, dict) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items()
    )


def _convert(header: Header, digest: str, folder: Path, events: EventStream) -> None:
    config, layers, takes = config_of(header), layers_of(header), takes_of(header)
    _check(header, config, layers, takes)
    stored = stored_type(header.path, takes)
    needed = BYTES[stored] * sum(prod(take.shape) for take in takes)
    if shutil.disk_usage(folder.parent).free < needed:
        raise _disk_full(header, needed)
    total = sum(take.entry.size for take in takes)
    try:
        with atomic_folder(folder) as part, events.stage(f"convert {header.path.name}", total) as stage:
            save_tokenizer(header, part, longest=config["max_position_embeddings"])
            write_safetensors(part / "model.safetensors", header.path, takes, stored, stage)
            _save_config(part, {**config, "dtype": _DTYPES[stored]}, layers)
            _generation(header, config).save_pretrained(part)
            files = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
            source = {"converter": _CONVERTER, "file": header.path.name, "sha256": digest, "stored": stored}
            write_json(part / _STAMP, {**source, "files": files})
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(header, needed) from error
        raise


def _save_config(part: Path, config: dict[str, Any], layers: Layers | None) -> None:
    if layers is None:
        AutoConfig.for_model(**config).save_pretrained(part)
    else:
        (part / "config.json").write_text(config_text(uneven_config(config, layers)), encoding="utf-8")


def _disk_full(header: Header, needed: int) -> ArtifactError:
    return ArtifactError(
        f"{header.path.name} converted takes {needed // 1_000_000} MB, more than is free on the disk of {cache_dir()}; "
        "free some space or set LISSOME_CACHE to another folder."
    )


def _generation(header: Header, config: dict[str, Any]) -> GenerationConfig:
    """Stop at the end of the text, and at the end of a turn where the file names one."""
    ends = [config["eos_token_id"], header.token("eot")]
    known = list(dict.fromkeys(end for end in ends if end is not None))
    eos = known if len(known) > 1 else next(iter(known), None)
    return GenerationConfig(bos_token_id=config["bos_token_id"], eos_token_id=eos, pad_token_id=config["pad_token_id"])


def _check(header: Header, config: dict[str, Any], layers: Layers | None, takes: list[Take]) -> None:
    """Compare names and shapes with the model that transformers would build, which allocates nothing here."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        if layers is not None:
            check_widths(model)
            whole = Model(model)
            model = extract(whole, whole.anatomy.choices(layers)).module
    except (LissomeError, ValueError, TypeError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()
        raise damaged(
            header.path, f"no model can have the sizes in its header ({reason[0] if reason else ''})"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        expected.pop("lm_head.weight", None)
    found = {take.target: take.shape for take in takes}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wanted, given = expected.get(name, "nothing"), found.get(name, "nothing")
            raise damaged(header.path, f"for {name} its header asks for {wanted} and it holds {given}")
