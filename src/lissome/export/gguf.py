"""GGUF: one file for llama.cpp and everything built on it, tokenizer and chat template included.

Blocks of one shape are written for the model's own architecture of llama.cpp. Uneven blocks (widths or heads per
block, removed branches) are written for one that reads sizes per block, where there is one; elsewhere `pad` grows them
to one shape with zeros. Weights are quantised by the `gguf` package, tensor by tensor, so memory stays near one model.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lissome.core.errors import ArtifactError, ConfigError, ExportError, NumericsError, unknown_name
from lissome.core.events import EventStream
from lissome.core.files import atomic_file
from lissome.core.optional import optional_import
from lissome.cost.llama_cpp import LlamaCpp
from lissome.export._architectures import Architecture, fitted
from lissome.export._metadata import FILE_TYPES, add_metadata, context_of
from lissome.export._padding import paddings_of
from lissome.export._report import ExportReport
from lissome.export._rope import Rope, rope_of
from lissome.export._stack import Stack, read_stack
from lissome.export._tensors import BLOCKS, Entry, entries_of, padding_bytes
from lissome.export._vocabulary import vocabulary_of
from lissome.models.gguf.header import read_header
from lissome.models.model import Model

_COARSE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_BY_FILE_TYPE = {number: kind for kind, number in FILE_TYPES.items()}
_BY_FILE_TYPE |= {**dict.fromkeys((10, 11, 12, 13, 14, 21), "Q4_0"), 15: "Q4_1", 16: "Q5_0", 17: "Q5_0", 18: "Q5_1"}
_SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "  In 1815, 12345 ships\tsailed; it's 3.14% -- isn't it?\n\n  def f(x):\n        return x**2  # ok",
    "Größe, naïve, Ωμέγα, русский, 日本語, العربية, 한국어 🙂👩‍👧.",
)


def export(
    model: Model,
    target: Path,
    *,
    type: str | None = None,
    embedding: str | None = None,
    pad: bool = False,
    events: EventStream | None = None,
) -> ExportReport:
    """Write a model as a GGUF file that is whole or absent.

    Args:
        model: The model.
        target: The file; its name must end in ``.gguf``.
        type: Number type of the matrices: F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_0 or Q4_1. A matrix whose rows are not
            a multiple of the type's block becomes F16. Default: `source_type`, so that the result is not a bigger file
            than the original; F16 for a model that did not come from a GGUF file.
        embedding: Number type of the embedding and the output projection. Default: `type`, but Q8_0 for 4 and 5 bits,
            since coarse rounding hurts most there.
        pad: Grow uneven blocks to one shape with zeros where no architecture of llama.cpp can express them, and MLP
            widths to a multiple of the type's block.
        events: Where progress goes: a stage ``export NAME`` counted in tensors.

    Returns:
        What was written, what was padded, and what differs from the original.

    Raises:
        ExportError: When llama.cpp cannot express the model, or the disk is too small; says what would help.
        ConfigError: When `target` or a type is not one of the above.
        NumericsError: When a weight is NaN, infinite, or too large for float16.
        MissingExtraError: When the `gguf` package is not installed.
    """
    library = optional_import("gguf", extra="gguf")
    inner = type if type is not None else source_type(model) or "F16"
    outer = embedding or ("Q8_0" if inner in _COARSE else inner)
    _check_request(target, inner, outer)
    architecture, stack = fitted(read_stack(model), pad=pad, align=BLOCKS[inner][0])
    rope = rope_of(stack)
    vocabulary = vocabulary_of(model.tokenizer, stack.embedding.shape[0])
    entries = list(entries_of(stack, architecture, rope, inner=inner, outer=outer))
    _check_room(target, sum(entry.bytes for entry in entries))
    writer = library.GGUFWriter(None, architecture.name)
    add_metadata(writer, model, stack, architecture, rope, vocabulary, inner)
    with atomic_file(target) as part:
        _write(writer, part, entries, library, events or EventStream(), target.name)
        checks = _tokenizer_check(part, model.tokenizer)
    types: dict[str, int] = {}
    for entry in entries:
        types[entry.kind] = types.get(entry.kind, 0) + entry.bytes
    return ExportReport(
        format="gguf",
        path=target,
        bytes=target.stat().st_size,
        architecture=architecture.name,
        types=types,
        blocks=len(stack.layers),
        padded=paddings_of(stack, padding_bytes(entries)),
        notes=(
            *_notes(stack, architecture, rope, entries, pad),
            *vocabulary.notes,
            *checks,
        ),
    )


def source_type(model: Model) -> str | None:
    """Return the number type of the GGUF file that a model, or the original it was made from, was read from.

    Rounding to the same type again changes next to nothing: the numbers already are multiples of their block's step.
    For the K types, which the `gguf` package cannot write, it is the largest other type that is not bigger. None when
    there was no such file.
    """
    if model.manifest is not None:
        return model.manifest.base.gguf_type
    path = model.source.path
    if path is None or path.suffix != ".gguf" or not path.is_file():
        return None
    return _BY_FILE_TYPE.get(int(read_header(path).metadata.get("general.file_type", -1)))


def _check_request(target: Path, inner: str, outer: str) -> None:
    if target.suffix != ".gguf":
        raise ConfigError(f"{target} must end in .gguf.")
    for name in (inner, outer):
        if name not in BLOCKS:
            raise ConfigError(unknown_name("GGUF number type", name, BLOCKS))


def _check_room(target: Path, needed: int) -> None:
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{target} needs {needed:,} bytes but {folder} has {free:,} free; make room or take a smaller type."
        )


def _write(writer: Any, part: Path, entries: list[Entry], library: Any, events: EventStream, name: str) -> None:
    kinds = library.GGMLQuantizationType
    for entry in entries:
        writer.add_tensor_info(
            entry.name, entry.piece.shape, np.dtype(np.float32), entry.bytes, raw_dtype=kinds[entry.kind]
        )
    try:
        writer.write_header_to_file(path=part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with events.stage(f"export {name}", len(entries)) as stage:
            for entry in entries:
                writer.write_tensor_data(_encoded(entry, library))
                stage.advance()
    finally:
        writer.close()


def _encoded(entry: Entry, library: Any) -> Any:
    """Return the numbers of a tensor in its type, as bytes."""
    numbers = entry.piece.make().to(torch.float32).contiguous()
    low, high = numbers.aminmax()
    largest = max(-low.item(), high.item())
    if not math.isfinite(low.item() + high.item()):
        raise NumericsError(f"{entry.name} holds NaN or infinite values; the weights are damaged.")
    if entry.kind == "F16" and largest > torch.finfo(torch.float16).max:
        raise NumericsError(f"{entry.name} holds {largest:.3g}, which float16 cannot; use --type BF16, F32 or Q8_0.")
    return library.quants.quantize(numbers.numpy(), library.GGMLQuantizationType[entry.kind])


def _notes(stack: Stack, architecture: Architecture, rope: Rope, entries: list[Entry], pad: bool) -> Iterator[str]:
    if architecture.uneven:
        yield f"uneven blocks are written for llama.cpp's {architecture.name!r}, which reads sizes per block"
    if stack.merging:
        yield stack.merging
    odd = [entry for entry in entries if entry.kind == "F16" and len(entry.piece.shape) == 2]
    wanted = {entry.kind for entry in entries} - {"F32", "F16"}
    if odd and wanted:
        narrow = any(entry.name.endswith("ffn_down.weight") for entry in odd)
        hint = "; --pad fills MLP widths up" if narrow and not pad else ""
        yield (
            f"{len(odd)} tensors are F16, since their rows are no multiple of the block of 32 "
            f"({odd[0].name}: {odd[0].piece.shape[-1]}){hint}"
        )
    if stack.window and not architecture.windows:
        yield (
            f"the model's attentions see {stack.window} tokens, llama.cpp's {architecture.name!r} sees all: they agree "
            f"up to the stated context of {context_of(stack, architecture)} tokens"
        )
    if rope.kind == "longrope":
        yield "llama.cpp picks the factors for short or long texts by the size of the context, not by the text's length"


def _tokenizer_check(file: Path, tokenizer: Any) -> tuple[str, ...]:
    """Compare llama.cpp's tokens and chat template with the original's, where llama.cpp is installed.

    Raises:
        ExportError: When llama.cpp refuses the file.
    """
    if tokenizer is None:
        return ()
    if find_spec("llama_cpp") is None:
        return ("tokenizer not compared with llama.cpp's: llama-cpp-python is not installed (extra 'llama')",)
    try:
        peer = LlamaCpp(file, vocabulary_only=True)
    except ArtifactError as error:
        raise ExportError(f"the file was not kept, since {error}") from error
    with peer:
        differ = [text for text in _SAMPLES if peer.tokenize(text) != tokenizer(text)["input_ids"]]
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if (peer.chat_template or None) != (template or None):
            differ.append("the chat template")
    if differ:
        return (f"llama.cpp and the original tokenizer differ on: {differ[0]!r}",)
    return (f"llama.cpp gives the original's token ids on {len(_SAMPLES)} sample texts, and has its chat template",)
