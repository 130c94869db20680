"""The result in llama.cpp beside the user's own file: a smaller model that is a bigger file is no result."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lissome.core.errors import LissomeError
from lissome.core.events import EventStream
from lissome.cost.llama_cpp import time_files
from lissome.export.gguf import export as export_gguf
from lissome.export.gguf import source_type
from lissome.models.adapters import merged_copy
from lissome.models.model import Model
from lissome.pipeline.compare import against
from lissome.pipeline.reports import Figure, Row

_HINT = "sizes and speed in llama.cpp are shown when it is installed: pip install 'lissome[llama]'"


def llama_cpp_rows(
    base: Model, small: Model, folder: Path, events: EventStream
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Export the result to GGUF and time it in turns with the file that the original came from.

    Args:
        base: The original.
        small: The result.
        folder: Where the file is put for the time of the measurement.
        events: Where progress is reported.

    Returns:
        Rows (none when llama.cpp is not installed, or the original is no GGUF file) and notes that say why.
    """
    source = base.source.path
    if source is None or source.suffix != ".gguf":
        return (), ()
    if importlib.util.find_spec("llama_cpp") is None:
        return (), (_HINT,)
    kind = source_type(base) or "F16"  # the original's own type: a second rounding to another one costs quality
    file = folder / f"result-{kind}.gguf"
    try:
        report = export_gguf(merged_copy(small), file, type=kind, pad=True, events=events)
        timed = time_files({f"{base.name}, your file": source, f"result, {kind}": file})
    except LissomeError as error:
        return (), (f"not measured in llama.cpp: {error}",)
    finally:
        file.unlink(missing_ok=True)
    figures = [{metric.name: Figure(metric=metric) for metric in metrics} for metrics in timed.values()]
    rows = (
        Row(name=f"llama.cpp: {name}", figures=one if index == 0 else against(one, figures[0]))
        for index, (name, one) in enumerate(zip(timed, figures, strict=True))
    )
    return tuple(rows), report.notes
