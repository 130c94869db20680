"""Ways to make a hybrid smaller: all parts at once, the paper's stages, or its transformer part alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.mamba_shedder.removing import context, run
from benchmarks.mamba_shedder.texts import Texts
from benchmarks.multipruner.measuring import Counted, at_targets
from lissome.core.method import Method
from lissome.methods.compress.mamba_shedder import MambaShedder
from lissome.methods.compress.multipruner import MultiPruner
from lissome.models.model import Model

SHARES = (0.9, 0.8)
"""Of the block parameters that are kept."""

ARMS: dict[str, dict[str, Any]] = {
    "auto": {"split": "auto"},
    "stages": {"split": "60:30:10"},
    "blocks": {"targets": ["blocks", "attention", "mlp"]},
    "transformer": {"split": "auto", "heads": "none"},
}
"""Settings by arm; the last is MultiPruner, which knows no mixers."""

_COMMON: dict[str, Any] = {"recover_steps": 0, "precision": "float32"}


def removed(model: Model, arm: str, data: Texts, seed: int, folder: Path) -> dict[str, list[float]]:
    """Run an arm down to the smallest share; losses of every test window at the shares, read off its curve."""
    space, subnets, _ = run(_method(arm), model, context(model, data, folder, budget=_budget(), seed=seed))
    counted = Counted(model)
    curve = [(counted.share(subnet), subnet) for subnet in subnets]
    found = at_targets(model, space, curve, data.test, SHARES)
    return {str(share): found[f"{share:g}"]["nll"] for share in SHARES}


def _method(arm: str) -> Method:
    if arm == "transformer":
        return MultiPruner(MultiPruner.Config.from_mapping({**_COMMON, **ARMS[arm]}))
    return MambaShedder(MambaShedder.Config.from_mapping({**_COMMON, "cliff": None, **ARMS[arm]}))


def _budget() -> str:
    return f"block_params<={100 * min(SHARES):g}%"
