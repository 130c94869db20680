"""What a plan says is what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lissome
from lissome.cost.sparsity import SLOW
from lissome.models.sparse import set_mask


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


@pytest.mark.parametrize("marked", [True, False])
def test_a_plan_says_what_zeros_do_not_do(toy_folder: Path, toy_text: Path, tmp_path: Path, marked: bool) -> None:
    """Of a sparse artifact, and of anybody's folder with many zeros."""
    model = lissome.load(toy_folder)
    for name in (name for branch in model.anatomy.branches for name in branch.linears):
        layer = model.module.get_submodule(name)
        layer.weight.data[:, ::2] = 0
        if marked:
            set_mask(layer, layer.weight != 0)
    folder = model.save(tmp_path / "zeros")
    given: dict[str, Any] = {"method": "multipruner", "budget": "block_params=60%", "data": toy_text}
    (note,) = [note for note in lissome.plan(folder, **given).notes if "zeros" in note]
    assert SLOW in note
    assert f"50.0% of {'sparse layers' if marked else 'the blocks'}" in note
    assert not [note for note in lissome.plan(toy_folder, **given).notes if "zeros" in note]
    planned = lissome.plan(folder, method="shears", settings=["by=given"], data=toy_text)
    assert [note for note in planned.notes if "zeros" in note] == [SLOW], "it says so itself"
