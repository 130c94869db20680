"""The verb `bench` where nested weights take part: every precision is timed, in turns with what else is compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lissome.core.errors import ConfigError
from lissome.core.events import EventStream
from lissome.core.metrics import Metric
from lissome.cost.measured import Request, Target, compare_all
from lissome.cost.peak import peak_memory
from lissome.engine.decode import Decoder, DecoderSettings
from lissome.engine.decode.phases import Phases
from lissome.engine.decode.timing import Racer
from lissome.engine.evaluate import versions
from lissome.models.nested.folder import NestedFolder, nested_folder
from lissome.pipeline.compare import counted_figures, figures_of, file_figure, paired_timings, rows, timing_figures
from lissome.pipeline.decoding import policy_of, sizes
from lissome.pipeline.loading import load
from lissome.pipeline.reports import Figure, TableReport


@dataclass(frozen=True, eq=False)
class _Entrant:
    name: str
    figures: Mapping[str, Figure]
    target: Target


def measure_nested(target: Any, against: Any, *, save_table: Path | None, events: EventStream) -> TableReport:
    """Time nested weights at every precision, the highest first, and by the schedule that lies beside them.

    Args:
        target: Anything `load` reads, or nested weights.
        against: The original to compare with, timed first; likewise.
        save_table: Must be None: latency tables are of models that can be cut.
        events: Where progress is reported.

    Raises:
        ConfigError: When a latency table is wanted.
        LissomeError: When a model cannot be read.
    """
    start, request = time.monotonic(), Request()
    if save_table is not None:
        raise ConfigError("a latency table is made of a model that can be cut; nested weights cannot, give their base.")
    given = [one for one in (against, target) if one is not None]
    with peak_memory() as peak:
        first, *others = [entrant for one in given for entrant in _entrants(one, request, events)]
        timing, compared = compare_all(first.target, [one.target for one in others], request, events=events)
        figures = [{**first.figures, **timing_figures(timing)}]
        figures += [{**one.figures, **paired_timings(pair)[1]} for one, pair in zip(others, compared, strict=True)]
    return TableReport(
        rows=rows([one.name for one in (first, *others)], figures),
        notes=(f"peak memory of the measurement: {peak.above / 2**20:.0f} MiB, models included",),
        versions=versions(),
        seconds=time.monotonic() - start,
    )


def _entrants(given: Any, request: Request, events: EventStream) -> Iterator[_Entrant]:
    place = nested_folder(given)
    if place is None:
        model = load(given, events=events)
        (counted,) = counted_figures(model)
        yield _Entrant(model.name, counted | file_figure(model, counted), model)
        return
    folder = NestedFolder.open(place)
    ways = [Phases(bits, ((bits, None),)) for bits in reversed(folder.file.layout.precisions)]
    own = policy_of(folder)  # a scheduler says something else of every text
    ways += [own] if isinstance(own, Phases) and own not in ways else []
    cells = len(ways) * (request.prompt + request.new)
    decoder = Decoder(folder.file, DecoderSettings(cells=cells, threads=torch.get_num_threads()))
    for sequence, phases in enumerate(ways):
        mean = sum(decoder.weight_bytes(phases.bits(step)) for step in range(request.steps)) / request.steps
        read = Metric(name="token_bytes", value=mean, unit="bytes", provenance="counted")
        figures = {**figures_of(sizes(folder)), "token_bytes": Figure(metric=read)}
        yield _Entrant(f"{given} at {phases} bits", figures, Racer(decoder, sequence, phases))
