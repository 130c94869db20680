"""Runs command lines in this process, on a pipeline that answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lissome import pipeline
from lissome.cli import main as cli
from lissome.core.budget import Term, Verdict
from lissome.core.metrics import Metric
from lissome.export._report import ExportReport, Padding
from lissome.pipeline.reports import (
    Figure,
    FitReport,
    GenerateReport,
    InspectReport,
    PlanReport,
    Row,
    SearchReport,
    TableReport,
)
from tests.report import samples


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(cli, "_quieten_libraries", lambda: None)
    monkeypatch.delenv("LISSOME_PROGRESS", raising=False)

    def call(*words: str) -> Result:
        code = cli.main(words)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def _figure(name: str, value: float, **more: Any) -> Figure:
    return Figure(metric=Metric(name=name, value=value), **more)


ROWS = (
    Row(name="base", figures={"ppl": _figure("ppl", 29.0), "latency": _figure("latency", 1.3)}),
    Row(
        name="small",
        figures={"ppl": _figure("ppl", 31.0, ratio=1.07, ratio_low=1.05, ratio_high=1.09)},
    ),
)


DEVICE = {
    "kind": "cpu", "processor": "p", "threads": 2, "dtype": "float32", "memory": 4e9, "bandwidth": 4e10, "flops": 1e11,
    "torch": "2", "fingerprint": "f", "kernels": "avx2", "kernels_why": "AVX2, FMA",
    "instruction_sets": ["avx2 (usable)", "avx512 (missing here: AVX512F)"],
}  # fmt: skip


POINT = {
    "number": 7, "figures": {"ppl": 31.0, "params": 75e6}, "selection": {"ppl": 32.5}, "test": {"ppl": 33.5},
    "by": "nsga2", "subnet": {"layers.0.mlp": 0},
}  # fmt: skip


def _inspected() -> InspectReport:
    layer = {"attention": {"groups": 3, "queries": 3}, "mlp": {"width": 96}}
    facts = {
        "architecture": "llama", "family": "decoder", "task": "causal-lm", "source": None, "sha256": None,
        "hidden": 64, "vocabulary": 99,
        "embedding_params": 1000, "cache_bytes": 2000, "axes": 5,
        "layers": [{"mlp": {"width": 96}}, layer, layer], "tags": ["dense"],
    }  # fmt: skip
    return InspectReport(name="m", kind="model", facts=facts, figures={"params": 1e6})


@dataclass
class Calls:
    """What the pipeline was asked; `answers` says what it gives back, or raises."""

    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    monkeypatch.chdir(tmp_path)
    calls = Calls()
    table = TableReport(rows=ROWS, seconds=1.0)
    verdict = Verdict(Term.parse("latency<=85%"), 1.1, 1.0)
    calls.answers = {
        "fit": FitReport(rows=ROWS, verdicts=(verdict,), seconds=2.0, out=Path("out"), sha256="ab" * 32),
        "evaluate": table,
        "measure": table,
        "generate": GenerateReport(text="Paris.\nIt is", tokens=3, prefill=10.0, decode=5.0),
        "export": ExportReport(
            format="gguf", path=Path("x.gguf"), bytes=2000, architecture="llama", types={"F16": 1900}, blocks=2,
            padded=(Padding(part="block 1 mlp", change="width 96 -> 128", bytes=64),), notes=("a note",),
        ),
        "extract_step": Path("step"),
        "inspect": _inspected(),
        "inspect_device": InspectReport(name="here", kind="device", facts=DEVICE, figures={}),
        "search": SearchReport(
            out=Path("out"), study="out/study.db", model="m", objectives=("min ppl", "min params"),
            bounds=("params<=80M",), provenance={"params": "counted", "ppl": "measured"},
            evaluated=9, failed={"the loss is NaN.": 1}, front=(POINT,), chosen=POINT,
            original={"ppl": 29.0, "params": 100e6}, whole=None, hypervolume=2.5,
            splits={"search": "4 windows of 256 tokens"}, notes=("a note",), seconds=3.0,
        ),
        "plan": PlanReport(
            model="base", recipe=[{"method": "multipruner", "split": "auto"}], budget="latency<=85%",
            original={"latency": 1.3, "disk": 5e8}, predicted={"latency": 1.1}, reachable={"latency": 0.3},
            provenance={"latency": "predicted", "disk": "counted"}, peak_memory=1e9, memory_parts={"weights": 5e8},
            seconds=90.0, tags=("pruned",),
        ),
    }  # fmt: skip

    def stand_in(name: str) -> Callable[..., Any]:
        def answer(*args: Any, **options: Any) -> Any:
            calls.seen[name] = (args, options)
            sys.stdout.write("a library says something\n")
            if name == "fit":
                samples.artifact(Path(options["out"]))
            given = calls.answers[name]
            if isinstance(given, BaseException):
                raise given
            return given

        return answer

    for name in calls.answers:
        monkeypatch.setattr(pipeline, name, stand_in(name), raising=False)
    return calls
