"""What every claim uses: typed inequalities, and a store that computes each expensive cell once.

A claim is a folder ``benchmarks/<name>/`` with ``run.py``, which has ``run(quick: bool, store: Store) ->
list[Inequality]``, and ``table.py``, which turns its stored results into Markdown. Nothing else knows it by name.

A cell is one measurement (one model, method and seed), stored as one JSON file that is named by a hash of all its
settings: a run that was interrupted goes on where it stopped, and a setting that changes makes a new cell.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import importlib.util
import json
import operator
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from lissome.core.files import cache_dir, read_json, write_json

Relation = Literal["<", "<=", ">", ">=", "=="]
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
CELLS = "cells"
"""Folder of cells beside published results."""
_PACKAGES = ("lissome", "torch", "transformers", "peft", "flwr", "lm-eval", "torch-pruning")


@dataclass(frozen=True)
class Inequality:
    """One sentence of a claim, with the numbers that decide it.

    Attributes:
        name: What is compared, e.g. ``"smollm2-135m at 90 %: auto below ShortGPT (ppl)"``.
        left: The number on the left.
        right: The number on the right.
        relation: What must hold between them.
        ok: Whether it does.
        detail: Interval, n, or whatever else a reader needs.
    """

    name: str
    left: float
    right: float
    relation: Relation
    ok: bool
    detail: str = ""

    @classmethod
    def of(cls, name: str, left: float, relation: Relation, right: float, detail: str = "") -> Inequality:
        """Compare two numbers; NaN satisfies nothing."""
        return cls(name, left, right, relation, _HOLDS[relation](left, right), detail)

    def __str__(self) -> str:
        mark = "holds" if self.ok else "FAILS"
        return f"{mark}  {self.name}: {self.left:.4g} {self.relation} {self.right:.4g}  {self.detail}".rstrip()


def environment() -> dict[str, Any]:
    """Return what a number depends on besides its settings: hardware, threads, versions."""
    import torch

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:  # an extra that is not installed, or a checkout that runs from its source folder
            continue
    return {
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": found,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Store:
    """Cells and results of one claim.

    Args:
        folder: Where results go, cells below it in ``cells/``.
        scratch: Where work in progress may lie (checkpoints); never part of the results.
        quick: Whether this is the quick variant, whose results are stored apart (cells are shared).
        pattern: Compute only cells whose name fits this shell pattern; the claim is then not judged.
        fresh: Compute cells again although they are stored.
    """

    def __init__(
        self, folder: Path, *, scratch: Path, quick: bool = False, pattern: str | None = None, fresh: bool = False
    ) -> None:
        self.folder, self.pattern, self.quick = folder, pattern, quick
        self._scratch, self._fresh = scratch, fresh
        self._environments: list[dict[str, Any]] = []
        self._files: dict[str, str] = {}

    def wants(self, name: str) -> bool:
        """Whether a cell of this name is to be computed in this run."""
        return self.pattern is None or fnmatch.fnmatchcase(name, self.pattern)

    def measured(self, cells: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> dict[str, dict[str, Any]]:
        """Return the results of the cells that this run is to compute; each comes with its name and what gets it."""
        return {name: compute() for name, compute in cells if self.wants(name)}

    def cell(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the result of one measurement, computing it the first time.

        Args:
            name: Readable start of its file's name.
            settings: Everything that the result depends on (JSON-able).
            compute: Measures; returns a JSON-able mapping.
        """
        self._files[name] = file = f"{name}-{key_of(settings)}.json"
        path = self.folder / CELLS / file
        if path.exists() and not self._fresh:
            stored = read_json(path)
        else:
            print(f"{time.strftime('%H:%M:%S')}  {name} …", flush=True)
            wall, cpu = time.perf_counter(), time.process_time()
            result = dict(compute())
            spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            stored = {"name": name, "settings": dict(settings), "environment": environment(), **spent, "result": result}
            write_json(path, stored)
            took = f"{spent['seconds']:.0f} s, {spent['cpu_seconds']:.0f} s of processor time"
            print(f"{time.strftime('%H:%M:%S')}  {name}: {took}", flush=True)
        if stored["environment"] not in self._environments:
            self._environments.append(stored["environment"])
        return dict(stored["result"])

    def scratch(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Return a folder for work in progress that belongs to these settings; it survives a kill."""
        folder = self._scratch / f"{name}-{key_of(settings)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(self, name: str, result: Mapping[str, Any], *, cells: Iterable[str] = ()) -> Path:
        """Write a result that tables are made from, with the environments that its cells were measured in.

        Args:
            name: Of its file.
            result: What it says, JSON-able.
            cells: Names of cells that belong to it: their files are named, and `published` reads them.
        """
        path = self.folder / f"{name}{'-quick' if self.quick else ''}.json"
        named = {"cells": {cell: self._files[cell] for cell in cells}} if cells else {}
        write_json(path, {"quick": self.quick, "environments": self._environments, **result, **named})
        return path

    def unused(self) -> list[str]:
        """Return files of cells that no setting asked for in this run, such as those of settings that changed since."""
        return sorted({path.name for path in (self.folder / CELLS).glob("*.json")} - set(self._files.values()))


def published(path: Path) -> dict[str, Any]:
    """Read what `Store.publish` wrote, with the results of its cells by name.

    Raises:
        FileNotFoundError: When a cell that it names is missing.
    """
    found = read_json(path)
    for name, file in found.get("cells", {}).items():
        found["cells"][name] = read_json(path.parent / CELLS / file)["result"]
    return found


def key_of(settings: Mapping[str, Any]) -> str:
    """Return a short hash of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def claims(root: Path) -> dict[str, Path]:
    """Return the folders of all claims by name."""
    return {path.parent.name: path.parent for path in sorted(root.glob("benchmarks/[!_]*/run.py"))}


def part(folder: Path, name: str) -> Any:
    """Import ``run`` or ``table`` of a claim: from the package, or by its path when it lies elsewhere (in a test)."""
    if folder == Path(__file__).parent / folder.name:
        return importlib.import_module(f"benchmarks.{folder.name}.{name}")
    spec = importlib.util.spec_from_file_location(f"_claim_{folder.name}_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_claim(root: Path, name: str, *, quick: bool, pattern: str | None = None, fresh: bool = False) -> bool:
    """Run one claim, print its inequalities and return whether all hold (vacuously when only cells were wanted)."""
    folder = claims(root)[name]
    scratch = cache_dir() / "benchmarks" / name
    store = Store(folder / "results", scratch=scratch, quick=quick, pattern=pattern, fresh=fresh)
    found: list[Inequality] = part(folder, "run").run(quick, store)
    for inequality in found:
        print(inequality)
    broken = sum(not inequality.ok for inequality in found)
    if found and not quick and (unused := store.unused()):
        print(f"{name}: {len(unused)} stored cells belong to no setting any more: {', '.join(unused)}")
    if pattern is not None:
        print(f"{name}: only cells like {pattern!r} were computed; nothing was judged")
    else:
        print(f"{name}: {len(found) - broken} of {len(found)} inequalities hold")
    return not broken
