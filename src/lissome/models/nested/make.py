"""From a model to a file of nested weights, one matrix at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lissome.core.errors import NumericsError
from lissome.core.events import EventStream
from lissome.core.files import atomic_folder
from lissome.core.manifest import Base, Manifest, write_manifest
from lissome.models.marks import check_own
from lissome.models.model import Model
from lissome.models.nested.blocks import BlockReader
from lissome.models.nested.describe import describe
from lissome.models.nested.file import NAME, layout_of, write_nested
from lissome.ops.levels import MOST_LEVEL_BITS, Histogram, Levels
from lissome.ops.nested import LARGEST, MOST_BITS, Layout, NestedCodes, counted, from_blocks, quantise

_PIECE = 1 << 22  # weights that are quantised at a time


def make(
    model: Model,
    path: Path | str,
    *,
    layout: Layout | None = None,
    head: Layout | None = None,
    importance: Mapping[str, Tensor] | None = None,
    events: EventStream | None = None,
) -> Path:
    """Write a model's nested weights.

    Blocks of a GGUF file that the model was read from, and whose bits and groups are those of the layout, are taken as
    they are: nothing is lost at the whole precision.

    Args:
        model: A causal language model.
        path: The file to write.
        layout: How codes of blocks are cut. Default: 3 + 1 bits, groups of 32.
        head: The same for the embedding and the head, in as many segments. Default: two bits more in the first, because
            the head's errors reach the result unmixed.
        importance: By which squared errors of weights count, by parameter's name, e.g. from
            `lissome.engine.decode.fisher`; of others all errors count alike.
        events: Where progress goes: a stage ``nest`` counted in weights.

    Raises:
        UnsupportedModelError: When the engine does not run models of this kind.
        NumericsError: When weights are NaN, infinite or too large for halves, or their importance cannot be.
        OSError: When the disk is full or the place cannot be written.
    """
    layout, path, found = layout or Layout(), Path(path), describe(model)
    head = head or with_more_bits(layout)
    importance, blocks = importance or {}, BlockReader.of(model)
    total = sum(prod(shape) for shape in found.spec.weights().values())
    with (
        write_nested(path, found.spec, layout, head) as writer,
        (events or EventStream()).stage("nest", total) as stage,
    ):
        for name, vector in found.vectors.items():
            writer.vector(name, vector.numpy())
        for name, parts in found.matrices.items():
            pieces, own = [], layout_of(name, layout, head)
            levels = _levels(model, parts, own, importance) if own.levels == "kmeans" else None
            for part in parts:
                weight = model.module.get_parameter(part).detach()
                pieces.append(_codes(blocks, part, weight, own, importance.get(part), levels))
                stage.advance(weight.numel())
            writer.matrix(name, _stacked(pieces))
    return path


def make_folder(model: Model, folder: Path | str, *, extras: Mapping[str, Path] | None = None, **settings: Any) -> Path:
    """Write a folder that is whole or absent: weights, tokenizer, how to generate, and a manifest.

    Args:
        model: A causal language model.
        folder: Where; an older artifact there is replaced when the new one is whole.
        extras: Files to copy into it, by name; weights that were made before are among them, or made now.
        settings: Those of `make`.

    Raises:
        UnsupportedModelError: When the engine does not run models of this kind.
        ArtifactError: When the place is a file or somebody else's folder.
        OSError: When the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    check_own(folder)
    with atomic_folder(folder) as part:
        for name, file in (extras or {}).items():
            shutil.copyfile(file, part / name)
        if not (part / NAME).exists():
            make(model, part / NAME, **settings)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part)
        generation = getattr(model.module, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(part)
        write_manifest(part, _manifest(model).with_files(part))
    return folder


def _manifest(model: Model) -> Manifest:
    """What is known of the model, and that its weights are nested now."""
    known = model.manifest or Manifest(
        name=model.name,
        base=Base(name=model.name, architecture=model.anatomy.architecture, sha256=model.source.sha256),
        tags=("dense",),
        layers=tuple(model.anatomy.layers()),
    )
    return replace(known, tags=tuple(sorted({*known.tags, "nested"})))


def with_more_bits(layout: Layout) -> Layout:
    """Return a layout with two bits more in its first segment, 8 in all at most, 6 of levels that are not even."""
    most = MOST_BITS if layout.levels == "even" else MOST_LEVEL_BITS
    return replace(layout, planes=(layout.planes[0] + min(2, most - layout.bits), *layout.planes[1:]))


def _levels(model: Model, parts: tuple[str, ...], layout: Layout, importance: Mapping[str, Tensor]) -> Levels:
    """Levels that all parameters of a matrix share."""
    histogram = Histogram()
    for part in parts:
        for _, values, counts in _pieces(part, model.module.get_parameter(part).detach(), importance.get(part)):
            counted(histogram, values, layout, counts)
    return histogram.levels(layout.planes)


def _pieces(
    name: str, weight: Tensor, importance: Tensor | None
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32] | None]]:
    """Rows, from which on, with their importance."""
    rows = max(1, _PIECE // weight.shape[1])
    for first in range(0, weight.shape[0], rows):
        counts = None if importance is None else importance[first : first + rows].float().numpy()
        values = weight[first : first + rows].float().numpy()
        if not (np.abs(values) <= LARGEST).all():
            raise NumericsError(
                f"{name} has weights that are NaN, infinite or beyond {LARGEST:.0f}; nested weights cannot hold them."
            )
        if counts is not None and not (np.isfinite(counts) & (counts >= 0)).all():
            raise NumericsError(f"the importance of {name} must be numbers of 0 and more; some are others.")
        yield first, values, counts


def _codes(
    blocks: BlockReader | None,
    name: str,
    weight: Tensor,
    layout: Layout,
    importance: Tensor | None,
    levels: Levels | None,
) -> NestedCodes:
    """Codes of one parameter, rows in pieces."""
    pieces = []
    for first, values, counts in _pieces(name, weight, importance):
        exact = None if blocks is None else blocks.read(name, first, values, layout)
        if exact is None:
            pieces.append(quantise(values, layout, counts, levels=levels))
        else:
            pieces.append(from_blocks(*exact, layout, counts))
    return _stacked(pieces)


def _stacked(pieces: list[NestedCodes]) -> NestedCodes:
    """Rows of several, one after the other."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    return NestedCodes(
        np.concatenate([piece.codes for piece in pieces]),
        {key: np.concatenate([piece.scales[key] for piece in pieces]) for key in first.scales},
        {key: np.concatenate([piece.leasts[key] for piece in pieces]) for key in first.leasts},
        first.inputs,
        first.layout,
        first.levels,
    )
