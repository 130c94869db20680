"""The claim on sparse kernels: its arms on small layers, its judgement on made-up times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._frame import Store
from benchmarks.sparamx import attention, measuring, run, table
from benchmarks.sparamx.names import (
    CSR,
    DENSE,
    DENSE_CACHE,
    SHARES,
    SPARSE_CACHES,
    TORCH,
    sparse,
)
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from tests.export.toys import model_of

compiled = pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")


@compiled
def test_all_arms_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = measuring.all_arms(64, 1)
    x = torch.linspace(-1, 1, 64).view(1, 64)
    expected = torch.nn.functional.linear(x, measuring.weight(64, 0.5))
    for name in (*(sparse(kind, 0.5) for kind in DENSE), *TORCH, CSR):
        y = arms[name].layers[0](x.to(arms[name].x.dtype)).detach().float().reshape(1, 64)
        assert (y - expected).norm() < 0.02 * expected.norm(), name
    assert len(arms) == len(DENSE) + 2 * len(SHARES) + 2 + len(TORCH) + 1
    assert arms[sparse("bf16", 0.9)].nbytes < arms[sparse("bf16", 0.5)].nbytes < arms[DENSE["bf16"]].nbytes


@compiled
def test_a_race_times_every_arm_in_every_round() -> None:
    arms = {name: arm for name, arm in measuring.all_arms(64, 2).items() if name != CSR}
    cell = measuring.race(arms, rounds=3, threads=1, repeat=2)
    assert {len(times) for kind in ("seconds", "bandwidth") for times in cell[kind].values()} == {3}
    assert all(min(times) > 0 for times in cell["seconds"].values())
    assert set(run.rows(cell)) == set(arms)


def made_up(faster: float = 1.0) -> dict[str, Any]:
    """Times at a tenth of a second for 1 GB of dense weights, sparse ones as their bytes say, times a factor."""
    bits = {"bf16": (16, 2), "int8": (8, 1), "bf16, fp32 inputs": (16, 2)}
    size: dict[str, float] = {}
    for kind, (dense, item) in bits.items():
        size[DENSE[kind]] = dense
        size |= {sparse(kind, share): 8 * item * (1 - share) + 1 for share in SHARES}
    size |= dict(zip(TORCH, (32.0, 16.0, 8.0), strict=True)) | {CSR: 48.0}
    seconds = {name: width / 160 / (faster if "sparse" in name else 1) for name, width in size.items()}
    seconds |= dict.fromkeys(TORCH, 0.2)
    return {
        "seconds": {name: [time, 1.01 * time, 0.99 * time] for name, time in seconds.items()},
        "bytes": {name: 1e9 * width / 16 for name, width in size.items()},
        "bandwidth": {name: [1e10, 1.01e10, 0.99e10] for name in size},
        "kernels": "avx2",
    }


def test_the_judgement(tmp_path: Path) -> None:
    cells = {name: made_up() for name in ("linears-1", "linears-2", "cached-512")}
    result, found = run.judge(cells)
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]
    assert len(found) == 2 * 8
    assert found[8].name.startswith("2 threads: bf16 sparse 50%")
    row = result["tables"]["linears-1"][sparse("bf16", 0.5)]
    assert row["faster"]["value"] == pytest.approx(16 / 9)
    assert row["share"] == pytest.approx(1, rel=0.05)
    assert [one.ok for one in run.judge({"linears-1": made_up(0.8)})[1]][:4] == [False, True, False, True]
    assert not run.judge({"linears-1": made_up(1.5)})[1][-1].ok
    stored = [{**result, "inequalities": [vars(one) for one in found], "environments": []}]
    assert "| bf16 sparse 80% | 262 | 26.25 | 100% of 10.0 GB/s | 3.81" in table.page(stored)
    assert "threads: 2" in table.page(stored)
    assert "50% of zeros: 1.78 and 1.60 ×" in table.summary(stored)


@compiled
def test_attention_on_a_toy(tmp_path: Path) -> None:
    path = make(model_of("llama"), tmp_path / "toy.safetensors")
    ids = [(3 + 7 * at) % 300 for at in range(192)]
    cell = attention.race(path, ids, rounds=2, threads=1)
    assert {len(times) for arm in cell["arms"].values() for times in (arm["long"], arm["short"])} == {2}
    sizes = [cell["arms"][name]["bytes"] for name in (DENSE_CACHE, *SPARSE_CACHES)]
    assert sizes[1] > sizes[2] > sizes[3]
    nll = attention.quality(path, [ids, ids[::-1]], 1)["nll"]
    assert all(len(values) == 2 for values in nll.values())
    assert nll[DENSE_CACHE] != nll[SPARSE_CACHES[0]]


def test_the_judgement_of_attention() -> None:
    def cell(faster: float) -> dict[str, Any]:
        arms = {DENSE_CACHE: 1.0, **dict.fromkeys(SPARSE_CACHES, 1 / faster)}
        return {
            "arms": {
                name: {"long": [3 + share, 3.03 + share], "short": [3, 3.03], "bytes": 1e9 * share}
                for name, share in arms.items()
            },
            "bandwidth": {name: [1e9, 1e9] for name in arms}, "tokens": 4096, "kernels": "avx2",
        }  # fmt: skip

    def judged(faster: float, more: float) -> tuple[dict[str, Any], list[bool]]:
        nll = {DENSE_CACHE: [3.0, 3.2], **{name: [3.0 + more, 3.2 + more] for name in SPARSE_CACHES}}
        result, found = attention.judge(
            {
                "attention-1": cell(faster),
                "attention-2": cell(faster),
                "attention-ppl": {"nll": nll},
                "cached-512": made_up(),
            }
        )
        return result, [one.ok for one in found]

    result, held = judged(1.2, 0.005)
    assert held == [True] * 4
    row = result["attention"]["attention-2"]["rows"][SPARSE_CACHES[1]]
    assert row["faster"]["value"] == pytest.approx(1.2)
    assert row["share"] == pytest.approx(1)
    assert judged(1.1, 0.011)[1] == [False] * 4
    kernels = run.judge({name: made_up() for name in ("linears-1", "cached-512")})[0]
    text = table.page([{**kernels, **result, "inequalities": [], "environments": []}])
    assert "Attention after 4096 tokens of smollm2-135m, threads: 2" in text
    assert "| int8:0.3,0.4 | 833 | 833.33 | 100% of 1.0 GB/s | 1.20 [1.20, 1.20] |" in text


def test_without_kernels_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(native, "module", lambda: None)
    assert run.run(True, Store(tmp_path, scratch=tmp_path)) == []
    assert "skipped" in capsys.readouterr().out
