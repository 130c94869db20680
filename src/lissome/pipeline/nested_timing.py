"""The verb `bench` where nested weights take part: every precision is timed, in turns with what else is compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lissome.core.errors import ConfigError, NumericsError
from lissome.core.events import EventStream
from lissome.core.metrics import Metric
from lissome.cost.measured import Request, Target, compare_all
from lissome.cost.peak import peak_memory
from lissome.cost.timed import Timed
from lissome.engine.decode import Decoder, DecoderSettings
from lissome.engine.decode.phases import Phases
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
    own = policy_of(folder)  # a learnt one says something else of every prompt
    ways += [own] if isinstance(own, Phases) and own not in ways else []
    cells = len(ways) * (request.prompt + request.new)
    decoder = Decoder(folder.file, DecoderSettings(cells=cells, threads=torch.get_num_threads()))
    for sequence, phases in enumerate(ways):
        mean = sum(decoder.weight_bytes(phases.bits(step)) for step in range(request.steps)) / request.steps
        read = Metric(name="token_bytes", value=mean, unit="bytes", provenance="counted")
        figures = {**figures_of(sizes(folder)), "token_bytes": Figure(metric=read)}
        yield _Entrant(f"{given} at {phases} bits", figures, _Racer(decoder, sequence, phases))


@dataclass(frozen=True, eq=False)
class _Racer:
    """A sequence of a decoder that answers requests by one schedule."""

    decoder: Decoder
    sequence: int
    phases: Phases

    def timed(self, request: Request) -> Timed:
        return _Requests(self, request)


class _Requests:
    def __init__(self, racer: _Racer, request: Request) -> None:
        if request.batch != 1:
            raise ConfigError(f"the decoder engine is timed with a batch of 1, got {request.batch}.")
        self._racer = racer
        vocabulary = racer.decoder.spec.vocabulary
        self._prompt = np.random.default_rng(0).integers(0, vocabulary, request.prompt).astype(np.int32)
        self._length, self._token = 0, 0

    def prefill(self) -> float:
        """Read the prompt into an emptied sequence; seconds."""
        self._racer.decoder.seq_rm(self._racer.sequence)
        self._length = 0
        return self._forward(self._prompt, self._racer.phases.prefill)

    def step(self) -> float:
        """Add one token; seconds."""
        bits = self._racer.phases.bits(self._length - len(self._prompt))
        return self._forward(np.array([self._token], np.int32), bits)

    def close(self) -> None:
        """The sequence is emptied when the next request begins."""

    def _forward(self, tokens: NDArray[np.int32], bits: int) -> float:
        positions = np.arange(self._length, self._length + len(tokens), dtype=np.int32)
        start = time.perf_counter()
        logits = self._racer.decoder.forward(tokens, positions, self._racer.sequence, bits)[0]
        self._token = int(logits.argmax())
        seconds = time.perf_counter() - start
        self._length += len(tokens)
        if np.isnan(logits[-1]):
            raise NumericsError("what the model gives is NaN; check its weights before timing it.")
        return seconds
