"""Nested weights: a folder that lissome's own decoder engine runs on CPUs, several precisions in one file.

``lissome generate``, ``bench``, ``inspect`` and ``serve`` take such a folder. Any width of any block can be said, so
nothing is ever padded.
"""

from __future__ import annotations

import re
from pathlib import Path

from lissome.core.errors import ConfigError
from lissome.core.events import EventStream
from lissome.export._report import ExportReport
from lissome.models.model import Model
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make_folder
from lissome.ops.nested import Layout

_TYPE = re.compile(r"(?P<planes>\d(?:\+\d)*)(?:/(?P<group>\d+))?")


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
            ``4+2+2``; ``/64`` after them for groups of 64 inputs instead of 32.
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
    make_folder(model, target, layout=layout, events=events)
    file = open_nested(target)
    types: dict[str, int] = {}
    for name, place in file.places.items():
        what = "codes" if ".planes." in name else "scales" if ".scales." in name else "F32"
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


def layout_named(text: str) -> Layout:
    """Read a layout such as ``3+1`` or ``4+2+2/64``.

    Raises:
        ConfigError: When it is none.
    """
    match = _TYPE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r} is no layout of nested weights; write bits of each segment such as 3+1 or 4+2+2, and /64 after "
            "them for groups of 64."
        )
    planes = tuple(int(bits) for bits in match["planes"].split("+"))
    return Layout(planes, int(match["group"] or 32))
