"""What a plan says is what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lissome


@pytest.mark.parametrize("budget", ["block_params=60%", "disk=80%, params<=99%", "macs=90%"])
def test_the_plan_holds_for_what_comes_out(toy_folder: Path, toy_text: Path, tmp_path: Path, budget: str) -> None:
    """What the plan calls a bound is one, and what it calls an estimate is near."""
    settings = ["width_step=2", "recover_steps=0", "split=0:100:0"]
    given: dict[str, Any] = {"budget": budget, "data": toy_text, "settings": settings}
    planned = lissome.plan(toy_folder, **given)
    result = lissome.fit(toy_folder, **given, out=tmp_path / "out").rows[1].figures
    for name, expected in planned.predicted.items():
        if name in result:
            got = result[name].metric.value
            assert got <= expected or name not in planned.at_most
            assert got == pytest.approx(expected, rel=0.05)
