"""Nested weights: a folder that lissome's own decoder engine runs on CPUs, several precisions in one file.

``lissome generate``, ``bench``, ``inspect`` and ``serve`` take such a folder. Any width of any block can be said, so
nothing is ever padded.
"""

from __future__ import annotations

from pathlib import Path

from lissome.core.events import EventStream
from lissome.engine.decode.phases import NAME as SCHEDULE
from lissome.engine.decode.schedulers import FILE as SCHEDULER
from lissome.export._report import ExportReport
from lissome.models.model import Model
from lissome.models.nested.file import NAME, open_nested
from lissome.models.nested.make import make_folder
from lissome.ops.nested import Layout, layout_named

_PARTS = {".planes.": "codes", ".scales.": "scales", ".levels.": "levels"}  # of a matrix, by what arrays are called


def export(
    model: Model,
    target: Path,
    *,
    type: str | None = None,
    pad: bool = False,  # noqa: ARG001  (every format is asked)
    events: EventStream | None = None,
) -> ExportReport:
    """Write a model as a folder of nested weights, whole or absent.

    Args:
        model: A causal language model.
        target: The folder; an older artifact there is replaced when the new one is whole.
        type: Bits of each segment, the highest first, such as ``3+1`` (default), which is read at 3 and 4 bits, or
            ``4+2+2``; ``/64`` after them for groups of 64 inputs instead of 32, and ``/kmeans`` last for levels fitted
            by weighted k-means instead of evenly spaced ones. Weights that a method put beside the
            model are taken when this is not given, with their schedule.
        pad: Without effect: the format says every size.
        events: Where progress goes: a stage ``nest`` counted in weights.

    Returns:
        What was written.

    Raises:
        ConfigError: When `type` is no such layout.
        UnsupportedModelError: When the engine does not run models of this kind.
        ArtifactError: When `target` is a file or somebody else's folder.
    """
    layout = layout_named(type) if type is not None else Layout()
    make_folder(model, target, extras=_made_before(model) if type is None else {}, layout=layout, events=events)
    file = open_nested(target)
    types: dict[str, int] = {}
    for name, place in file.places.items():
        what = next((what for part, what in _PARTS.items() if part in name), "F32")
        types[what] = types.get(what, 0) + place.nbytes
    precisions = ", ".join(map(str, file.layout.precisions))
    notes = [f"read at {precisions} bits; embedding and head have {file.head.bits - file.layout.bits} bits more"]
    if model.tokenizer is None:
        notes.append("the model has no tokenizer: the engine takes token ids, `generate` and `serve` do not run it")
    return ExportReport(
        format="nested",
        path=target,
        bytes=sum(path.stat().st_size for path in target.iterdir()),
        architecture=file.spec.kind,
        types=types,
        blocks=len(file.spec.layers),
        notes=tuple(notes),
    )


def _made_before(model: Model) -> dict[str, Path]:
    """Nested weights, and how they are read, in the folder that the model was read from."""
    folder = model.source.path
    names = (NAME, SCHEDULE, SCHEDULER)
    found = {} if folder is None else {name: folder / name for name in names if (folder / name).is_file()}
    return found if NAME in found else {}
