"""The result as a file beside the user's own: a smaller model that is a bigger file is no result."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from lissome.core.errors import LissomeError
from lissome.core.events import EventStream
from lissome.cost.counted import Counter
from lissome.cost.llama_cpp import time_files
from lissome.cost.peak import give_back
from lissome.export.gguf import export as export_gguf
from lissome.export.gguf import source_type
from lissome.models.adapters import merged_copy
from lissome.models.model import Model
from lissome.models.paging import park
from lissome.pipeline.compare import against, file_sized
from lissome.pipeline.reports import Figure, Row

_HINT = "speed in llama.cpp is shown when it is installed: pip install 'lissome[llama]'"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """The result in the format of the original's file.

    Attributes:
        sized: Bytes of the result in that format as the figure ``file``; nothing where it cannot be written.
        rows: Both files timed in llama.cpp; none when it is not installed, or the original is no GGUF file.
        notes: Lines for a person.
    """

    sized: dict[str, Figure] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def beside_the_file(base: Model, small: Model, folder: Path, events: EventStream) -> Elsewhere:
    """Export the result to GGUF, and time it in turns with the file that the original came from.

    Args:
        base: The original.
        small: The result.
        folder: Where the file is put for the time of the measurement.
        events: Where progress is reported.
    """
    source = base.source.path
    if source is None or source.suffix != ".gguf":
        return Elsewhere(sized=file_sized(Counter(small).count().disk))  # of a folder: as the result is saved
    kind = source_type(base) or "F16"  # the original's own type: a second rounding to another one costs quality
    file = folder / f"result-{kind}.gguf"
    about = f"size of the file: {base.name} as it was given, the result exported to GGUF {kind}"
    try:
        report = export_gguf(merged_copy(small), file, type=kind, pad=True, events=events)
        park(small)
        give_back()  # the copy, before another program takes its own
        sized, notes = file_sized(file.stat().st_size), (about, *report.notes)
        if importlib.util.find_spec("llama_cpp") is None:
            return Elsewhere(sized=sized, notes=(*notes, _HINT))
        try:
            rows = _timed({f"{base.name}, your file": source, f"result, {kind}": file})
        except LissomeError as error:
            return Elsewhere(sized=sized, notes=(*notes, f"not measured in llama.cpp: {error}"))
    except LissomeError as error:
        return Elsewhere(notes=(f"the result as a GGUF file was not measured: {error}",))
    finally:
        file.unlink(missing_ok=True)
    return Elsewhere(sized=sized, rows=rows, notes=notes)


def _timed(files: dict[str, Path]) -> tuple[Row, ...]:
    timed = time_files(files)
    figures = [{metric.name: Figure(metric=metric) for metric in metrics} for metrics in timed.values()]
    return tuple(
        Row(name=f"llama.cpp: {name}", figures=one if index == 0 else against(one, figures[0]))
        for index, (name, one) in enumerate(zip(timed, figures, strict=True))
    )
