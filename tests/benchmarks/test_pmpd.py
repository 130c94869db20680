"""The claim on falling bits: its parts on a toy, its judgement on made-up divergences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._frame import Store
from benchmarks.pmpd import judging, measuring, run, table
from benchmarks.pmpd.names import SCHEDULERS, Case
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from tests.export.toys import model_of

CASE = Case("toy", "3+1", 4, 3)
PROMPTS = np.random.default_rng(0).integers(0, 320, (12, 9)).tolist()


@pytest.mark.long
@pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")
def test_parts_on_a_toy(tmp_path: Path) -> None:
    path = make(model_of("llama"), tmp_path / "toy.safetensors")
    curve = measuring.curve(CASE, path, PROMPTS[10:], 13)
    assert curve["high first"]["0.00"] == curve["low first"]["0.00"]
    assert all(curve[way][share]["bits"] == curve["high first"][share]["bits"] for way in curve for share in curve[way])
    assert curve["high first"]["0.50"]["kl"] != curve["low first"]["0.50"]["kl"]
    made = measuring.schedulers(CASE, path, PROMPTS[:10], PROMPTS[10:], tokens=13, seeds=(0, 1))
    assert {name.rpartition("-")[0] for name in made["by"]} == set(SCHEDULERS)
    assert len(made["by"]) == 6
    assert all(3 <= bits <= 4 for one in made["by"].values() for bits in one["bits"])
    assert sum(made["prior"]) == pytest.approx(1)
    speed = measuring.speed(CASE, path, PROMPTS[:2], tokens=6, rounds=2, threads=1)
    assert {len(times) for times in speed["seconds"].values()} == {2}
    assert len(speed["deciding"]) == 6
    cells = {"toy-4to3-curve": curve, "toy-4to3-schedulers": made, "toy-4to3-speed-1": speed}
    result, found = judging.judge(cells, [CASE], [1])
    assert len(found) == 1 + 5 + sum(np.mean(made["by"][f"learnt-{seed}"]["bits"]) > 3 for seed in (0, 1)) + 2
    assert result["cases"]["toy-4to3"]["points"]


def made_up(*, early: float = 0.5, deciding: float = 1e-4) -> dict[str, Any]:
    """Half of the divergence of low bits in their first half, times a factor for high bits first."""
    shares = ("0.00", "0.25", "0.33", "0.50", "0.67", "0.75")
    spread = np.array([0.9, 1.0, 1.1])

    def at(share: str, factor: float) -> dict[str, Any]:
        return {"bits": 3 + float(share), "kl": (spread * (1 - float(share)) * factor).tolist(), "agreement": 0.9}

    curve = {
        "high first": {share: at(share, 1.0 if share == "0.00" else early) for share in shares},
        "low first": {share: at(share, 1.0) for share in shares},
    }
    by = {f"learnt-{seed}": {"bits": [3.5] * 3, "kl": [0.2] * 3} for seed in (0, 1)}
    by |= {f"{word}-0": {"bits": [3.5] * 3, "kl": [0.6] * 3} for word in list(SCHEDULERS)[1:]}
    made = {"limit": 0.1, "prior": [0.25] * 4, "static": 32, "by": by}
    speed = {
        "seconds": {"4 bits": [1.0, 1.01], "3 bits": [0.8, 0.81], "half": [0.9, 0.91]},
        "deciding": [deciding] * 6, "bytes": {"4 bits": 9e7, "3 bits": 7e7, "half": 8e7}, "steps": 95,
    }  # fmt: skip
    speed["bandwidth"] = {name: [4e10, 4e10] for name in speed["bytes"]}
    return {"toy-4to3-curve": curve, "toy-4to3-schedulers": made, "toy-4to3-speed-1": speed}


def test_the_judgement() -> None:
    result, found = judging.judge(made_up(), [CASE], [1])
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]
    assert len(found) == 1 + 5 + 2 + 2
    points = {point["name"]: point for point in result["cases"]["toy-4to3"]["points"]}
    assert points["high first, 50% high"]["chord"] == pytest.approx(0.5)
    assert points["high first, 50% high"]["kl"]["value"] == pytest.approx(0.25)
    assert points["learnt, seed 1"]["above"]["value"] == pytest.approx(0.3)
    assert points["random"]["above"]["value"] == pytest.approx(-0.1)
    facts = {"tokens": 96, "prompts": 3, "learnt_from": 9, "prompt": 32, "text": "made up", "environments": []}
    stored = [{**facts, **result, "inequalities": [vars(one) for one in found]}]
    assert "| high first, 50% high | 3.50 | 0.2500" in table.page(stored)
    assert "- confidence: a threshold" in table.page(stored)
    assert "0.250 or " in table.summary(stored) and "(toy, 4 and 3 bits)" in table.summary(stored)
    late = judging.judge(made_up(early=1.1), [CASE], [1])[1]
    assert [one.ok for one in late[:6]] == [False] * 6
    dear = judging.judge(made_up(deciding=0.1), [CASE], [1])[1]
    assert [one.ok for one in dear[-2:]] == [False, True]


def test_without_kernels_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(native, "module", lambda: None)
    assert run.run(True, Store(tmp_path, scratch=tmp_path)) == []
    assert "skipped" in capsys.readouterr().out
