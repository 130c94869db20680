"""What is said of a super-network: of batch norms only where it has some."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from lissome.core.manifest import Base, Manifest
from lissome.report import sections, supernets
from lissome.report.facts import PageData
from tests.report import samples


@pytest.mark.parametrize("has", [True, False])
def test_statistics_of_batch_norms_are_spoken_of_where_there_are_some(has: bool) -> None:
    fields = {
        "points": [point.to_json() for point in samples.curve()[:2]], "model": "net", "axes": 2, "log10_subnets": 1.2,
        "seconds": 3.0, "out": Path("S"), "batch_norms": has,
    }  # fmt: skip
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(*supernets.supernet(fields))
    assert "quality: on the examples to choose by" in capture.get()
    assert ("with batch norm statistics of its own" in capture.get()) is has
    data = PageData(
        manifest=Manifest(name="S", base=Base(name="net", architecture="toy")), curve=samples.curve(), batch_norms=has
    )
    assert "Quality is that on the examples to choose by" in sections.sizes(data)
    assert ("with statistics of batch norms of its own" in sections.sizes(data)) is has
