"""The claim on the engine: its arms on a toy, its judgement on made-up times."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._frame import Store
from benchmarks._numbers import file_name
from benchmarks.decode import judging, linears, run, table
from benchmarks.decode.arms import Own, Torch, likeliest
from benchmarks.decode.measuring import closeness, losses, race
from benchmarks.decode.names import BITS, LLAMA, SPARSE, TORCH, llama, nested
from lissome.engine.decode import Decoder
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.testing.conformance import dequantised
from tests.export.toys import model_of

compiled = pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")
MODEL, SECOND = run.MODELS


@compiled
def test_arms_say_the_same(tmp_path: Path) -> None:
    """The engine and transformers on the same numbers: losses, divergence, and times in every round."""
    path = make(model_of("llama"), tmp_path / "toy.safetensors")
    model = dequantised(model_of("llama"), open_nested(path), 4)
    own = Own(Decoder.open(path, activations="f32", kv="f32", cells=64, threads=1), 4)
    theirs = Torch(model.module, own.cell)
    windows = np.random.default_rng(0).integers(0, own.tokens, (2, 40))
    assert np.allclose(losses(own, windows), losses(theirs, windows), atol=1e-4)
    close = closeness(own, theirs, windows)
    assert abs(close["kl"]) < 1e-6
    assert close["agreement"] > 0.95
    assert np.allclose(close["arm"], losses(own, windows))
    assert np.allclose(close["other"], losses(theirs, windows))
    cell = race({"own": own, "torch": theirs}, rounds=2, threads=1, prompt=8, new=3)
    assert {len(times) for arm in cell["arms"].values() for times in (arm["prefill"], arm["step"])} == {2}
    rows = judging.timed(cell)["rows"]
    assert all(row["decode"]["value"] > 0 and row["share"] > 0 for row in rows.values())
    assert cell["arms"]["torch"]["weights"] == sum(one.nbytes for one in model.module.parameters())


@compiled
def test_layers_alone() -> None:
    cell = linears.race(rounds=2, threads=1, size=64, layers=2)
    assert cell["bytes"]["3"] < cell["bytes"]["4"]
    assert cell["bytes"]["4"] == 2 * (64 * 64 // 2 + 64 * 2 * 4)
    assert {len(times) for times in cell["seconds"].values()} == {2}


def test_the_likeliest_token_and_its_margin() -> None:
    token, margin = likeliest(np.array([0.5, 3.0, -1.0, 2.75], np.float32))
    assert (token, margin) == (1, 0.25)


def made_up(*, own: float = 1.0, greedy: int = 50) -> dict[str, Any]:
    """Cells in which every arm takes as long as its bytes say, times a factor for ours."""
    sizes = {nested(4): 90.0, nested(3): 74.0, "torch fp32": 540.0, "torch bf16": 270.0}
    sizes |= {llama(kind): 200.0 + 10 * at for at, kind in enumerate(LLAMA)}
    sizes |= {"wanda: engine dense bf16": 270.0, "wanda: engine sparse bf16": 160.0, "wanda: engine sparse int8": 100.0}
    sizes |= {"wanda: torch fp32": 540.0, "wanda: torch bf16": 271.0, "wanda: transformers, sparse bf16": 200.0}

    def arm(name: str) -> dict[str, Any]:
        time = sizes[name] / 4e4 * (own if "nested" in name or "engine" in name else 1)
        weights = 1e6 * (96 if name.startswith("llama") else sizes[name])
        return {
            "prefill": [100 * time, 101 * time, 99 * time], "step": [time, 1.01 * time, 0.99 * time],
            "bytes": 1e6 * sizes[name], "weights": weights, "note": "",
        }  # fmt: skip

    def cell(names: Any) -> dict[str, Any]:
        return {
            "arms": {name: arm(name) for name in names},
            "bandwidth": {name: [4e10, 4e10, 4e10] for name in names},
            "kernels": "avx512",
            "prompt": 16,
        }

    ppl = {nested(4): 20.1, nested(3): 60.0, llama("Q4_0"): 22.0, "torch fp32": 19.9}
    cells: dict[str, Any] = {}
    for model in run.MODELS:
        arms = [*map(nested, BITS), *map(llama, LLAMA), *TORCH]
        for threads in (1, 2):
            cells |= {f"{model}-{kind}-{threads}": cell(arms) for kind in run.WORK[model]}
        for name in arms:
            nll = [math.log(ppl.get(name, 20.0)) + shift for shift in (-0.1, 0, 0.1)]
            cells[f"{model}-ppl-{file_name(name)}"] = {"nll": nll}
        cells[f"{model}-modes"] = {"arm": [3.001, 3.0], "other": [3.0, 3.0], "kl": 0.001, "agreement": 0.99}
        cells[f"{model}-greedy"] = {"prompts": 50, "equal": greedy, "margins": [1e-4] * (50 - greedy)}
    for threads in (1, 2):
        cells[f"linears-{threads}"] = {
            "seconds": {"3": [0.8, 0.81, 0.79], "4": [1.0, 1.01, 0.99]}, "bytes": {"3": 8e9, "4": 1e10},
            "bandwidth": {"3": [1e10] * 3, "4": [1e10] * 3},
        }  # fmt: skip
        cells[f"{MODEL}-wanda-{threads}"] = cell([*SPARSE, nested(4)])
    cells[f"{MODEL}-wanda-ppl"] = {"nll": {name: [4.0, 4.1] for name in SPARSE}}
    return cells


def judged(**changes: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    result, found = judging.judge(made_up(**changes), run.MODELS, (1, 2))
    stored = {**result, "llama_cpp": "AVX512 = 1", "environments": [], "inequalities": [vars(one) for one in found]}
    return stored, {one.name: one.ok for one in found}


def test_the_judgement() -> None:
    result, found = judged()
    assert all(found.values()), [name for name, ok in found.items() if not ok]
    assert sum(SECOND in name for name in found) == 2 + 3
    assert any("llama.cpp Q4_1, the fastest of equal or better" in name for name in found)
    text = table.page([result])
    assert "`AVX512 = 1`" in text
    assert "| nested 4 bits | 444 [440, 449]" in text
    assert "| wanda: engine sparse bf16 |" in text
    assert "50 of 50" in text
    assert f"{MODEL} on one thread" in table.summary([result])


def test_openvino_has_its_perplexity_where_it_is_installed() -> None:
    cells = made_up()
    cells[f"{MODEL}-ppl-{file_name('openvino int4')}"] = {"nll": [3.0, 3.1]}
    assert judging.perplexities(cells, MODEL)["openvino int4"].value == pytest.approx(math.exp(3.05))


def test_what_is_slow_or_wrong_fails() -> None:
    slow = judged(own=2.0)[1]
    assert not any(ok for name, ok in slow.items() if "same file" in name and MODEL in name)
    assert not any(ok for name, ok in slow.items() if "dense PyTorch" in name)
    assert [name for name, ok in judged(greedy=40)[1].items() if not ok] == [
        f"{model}: greedy texts equal to those of transformers" for model in run.MODELS
    ]
    fast = judged(own=0.5)[1]
    assert [ok for name, ok in fast.items() if name.startswith("share of the bandwidth")] == [False]


def test_without_kernels_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(native, "module", lambda: None)
    assert run.run(True, Store(tmp_path, scratch=tmp_path)) == []
    assert "skipped" in capsys.readouterr().out
