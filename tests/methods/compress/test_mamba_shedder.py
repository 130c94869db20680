"""Mamba-Shedder: what each target takes away, the paper's stages, numbers and budgets, the cliff, recovery."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lissome.core.errors import BudgetUnmetError, ConfigError
from lissome.core.events import Event
from lissome.core.method import Outcome
from lissome.cost.counted import Counter
from lissome.engine.walk import Walk
from lissome.methods.compress.mamba_shedder import MambaShedder
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.testing.conformance import TOLERANCE, difference, logits, stepwise
from lissome.testing.jobs import RandomText, toy_context
from lissome.testing.toys import STATES, toy_model

pytestmark = pytest.mark.long

PURE = ("mamba", "mamba2")


def _run(model: Model, folder: Path, budget: str = "block_params=70%", *, heard: Any = None, **options: Any) -> Outcome:
    context = toy_context(model, folder, budget, heard=heard)
    plain = {"precision": "float32", "recover_steps": 0, "cliff": None}
    return MambaShedder(MambaShedder.Config(**{**plain, **options})).run(model, context)


def _kinds(outcome: Outcome) -> list[str]:
    return [point.change.split()[0].rsplit(".", 1)[-1] for point in outcome.curve[1:]]


@pytest.mark.parametrize("family", STATES)
def test_a_budget_is_met_and_the_result_is_the_masked_model(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    whole = Counter(model).count()
    outcome = _run(model, tmp_path)
    small: Model = outcome.value
    assert Counter(small).count().block_params <= 0.7 * whole.block_params
    space, ids = Space.from_json(outcome.space), RandomText().calibration[:2]
    with masked(model, outcome.curve[-1].subnet, space=space):
        assert difference(logits(model.module, ids), logits(small.module, ids)) <= TOLERANCE
    loss = Walk(small, RandomText().calibration).plain().mean().exp()
    assert outcome.curve[-1].quality["ppl"] == pytest.approx(float(loss), rel=1e-5)
    assert "ended" not in outcome.details


@pytest.mark.parametrize("family", PURE)
def test_a_number_of_blocks_goes_with_their_norms_and_states(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    outcome = _run(model, tmp_path, "", steps=2)
    assert _kinds(outcome) == ["mixer"] * 2
    small: Model = outcome.value
    assert len(small.anatomy.blocks) == 2 and small.module.config.num_hidden_layers == 2
    assert Counter(small).count().cache_bytes == Counter(model).count().cache_bytes // 2


@pytest.mark.parametrize("family", PURE)
def test_a_number_of_scans_leaves_nothing_dead_behind(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    outcome = _run(model, tmp_path, "", steps=3, targets=("ssm",))
    assert _kinds(outcome) == ["ssm"] * 3
    dead = {"x_proj", "dt_proj", "A_log", "D", "dt_bias"}
    for branch in outcome.value.anatomy.branches:
        mixer = outcome.value.module.get_submodule(branch.path)
        left = {name.partition(".")[0] for name, _ in mixer.named_parameters()}
        size = mixer.out_proj.weight.shape[1]
        assert mixer.conv1d.weight.shape[0] == size or branch.by_name["ssm"].size
        assert left.isdisjoint(dead) or branch.by_name["ssm"].size
        assert mixer.in_proj.weight.shape[0] == 2 * size or branch.by_name["ssm"].size
    assert sum(branch.by_name["ssm"].size for branch in outcome.value.anatomy.branches) == 1


def test_each_step_is_the_least_harmful_one(tmp_path: Path) -> None:
    model = toy_model("mamba2")
    outcome = _run(model, tmp_path, "", steps=2, targets=("blocks", "ssm"), lazy=False)
    space = Space.from_json(outcome.space)
    names = [axis for axis in space.full if axis.endswith((".mixer", ".ssm"))]
    for before, point in pairwise(outcome.curve):
        losses = []
        for name in names:
            if before.subnet[name]:
                with masked(model, {**before.subnet, name: 0}, space=space):
                    losses.append(float(Walk(model, RandomText().calibration).plain().mean().exp()))
        assert point.quality["ppl"] == pytest.approx(min(losses), rel=1e-6)


def test_hybrids_go_through_the_stages_of_the_paper(tmp_path: Path) -> None:
    kinds = _kinds(_run(toy_model("bamba"), tmp_path / "count", "", steps=(2, 3, 1), width_step=8))
    assert [kind in ("mixer", "attention", "mlp") for kind in kinds[:2]] == [True] * 2
    assert kinds[2:] == ["width"] * 3 + ["ssm"]
    stage = {"mixer": 0, "attention": 0, "mlp": 0, "width": 1, "ssm": 2}
    shares = [stage[kind] for kind in _kinds(_run(toy_model("bamba"), tmp_path / "share", split="40:55:5"))]
    assert shares == sorted(shares) and set(shares) >= {0, 1}


def test_targets_are_all_that_goes(tmp_path: Path) -> None:
    assert set(_kinds(_run(toy_model("bamba"), tmp_path / "mlp", targets=("mlp", "width")))) <= {"mlp", "width"}
    # the last stage that there is goes all the way
    stages = _kinds(_run(toy_model("bamba"), tmp_path / "two", split="30:0:70", targets=("blocks", "mlp")))
    assert set(stages) <= {"mixer", "mlp"}
    assert set(_kinds(_run(toy_model("mamba"), tmp_path / "pure", "block_params=80%", split="0:50:50"))) == {"ssm"}


@pytest.mark.parametrize("family", PURE)
def test_the_cliff_ends_it_and_says_so(family: str, tmp_path: Path) -> None:
    model, said = toy_model(family), []

    def heard(event: Event) -> None:
        if event.kind == "message":
            said.append(event.message)

    free = _run(model, tmp_path / "free", "", steps=3)
    rises = [after.quality["ppl"] / before.quality["ppl"] - 1 for before, after in pairwise(free.curve)]
    worst = max(range(3), key=rises.__getitem__)
    cliff = (max([0.0, *rises[:worst]]) + rises[worst]) / 2
    outcome = _run(model, tmp_path / "cliff", "", steps=3, cliff=cliff, heard=heard)
    assert [point.change for point in outcome.curve] == [point.change for point in free.curve[: worst + 1]]
    assert said == [outcome.details["ended"]]
    assert f"stopped at the cliff after {worst} removals" in said[0] and f"by {rises[worst]:.0%}" in said[0]


def test_a_budget_beyond_the_cliff_keeps_what_was_accepted(tmp_path: Path) -> None:
    model = toy_model("mamba2")
    outcome = _run(model, tmp_path, "block_params=40%", cliff=0.0)
    assert "cliff" in outcome.details["ended"] and "the budget is not met (block_params" in outcome.details["ended"]
    assert Counter(outcome.value).count().block_params == outcome.curve[-1].figures["block_params"]


def test_when_nothing_is_left_it_is_one_line(tmp_path: Path) -> None:
    outcome = _run(toy_model("mamba"), tmp_path / "steps", "", steps=9)
    assert outcome.details["ended"] == "mixer: nothing is left to remove after 3 removals"
    with pytest.raises(BudgetUnmetError, match="no move is left") as caught:
        _run(toy_model("mamba"), tmp_path / "budget", "block_params=40%", targets=("ssm",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("mamba", {"targets": ("mlp",)}, "targets=mlp: this mamba has none; it has blocks, ssm"),
        ("mamba2", {"steps": (1, 2, 1)}, "nothing of width to remove in this mamba2, which has blocks, ssm"),
    ],
)
def test_what_a_model_lacks_is_said(family: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _run(toy_model(family), tmp_path, "", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 2, "split": "1:1:1"}, "set one of them"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("heads",)}, "blocks, ssm, attention"),
        ({"split": "1:2"}, "44:52:4"),
        ({"steps": (1, 2)}, "list of 3"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MambaShedder.Config(**options)


@pytest.mark.parametrize("text", ["steps=3,20,18", "steps=14", "targets=blocks,ssm", "cliff=none", "split=44:52:4"])
def test_settings_survive_toml(text: str) -> None:
    config = MambaShedder.Config.from_assignments([text])
    assert MambaShedder.Config.from_toml(config.to_toml()) == config != MambaShedder.Config()


@pytest.mark.parametrize("family", STATES)
def test_recovery_lowers_the_loss_and_keeps_the_shapes(family: str, tmp_path: Path) -> None:
    plain = _run(toy_model(family), tmp_path / "plain", "block_params=60%")
    healed = _run(toy_model(family), tmp_path / "healed", "block_params=60%", recover_steps=15, recover_lr=5e-3)
    before, after = (Walk(outcome.value, RandomText().recovery).plain().mean() for outcome in (plain, healed))
    assert after < before
    shapes = [{name: value.shape for name, value in one.value.module.state_dict().items()} for one in (plain, healed)]
    assert shapes[0] == shapes[1]
    changed = {
        name.rpartition(".")[0].rpartition(".")[2] if name.endswith((".weight", ".bias")) else name.rpartition(".")[2]
        for (name, old), new in zip(
            plain.value.module.state_dict().items(), healed.value.module.state_dict().values(), strict=True
        )
        if not torch.equal(old, new)
    }
    assert {"in_proj", "out_proj", "conv1d"} <= changed, "adapters, and what they do not reach"
    assert not {"embeddings", "embed_tokens", "lm_head"} & changed


class _StopError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("family", STATES)
def test_a_stopped_run_continues_to_the_same_weights(family: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 3, "targets": ("blocks", "ssm"), "recover_steps": 4}

    def stop(event: Event) -> None:
        if event.kind == "advance" and event.stage.startswith("remove") and event.step > 60:
            raise _StopError

    whole = _run(toy_model(family), tmp_path / "whole", "", **options)
    with pytest.raises(_StopError):
        _run(toy_model(family), tmp_path / "part", "", heard=stop, **options)
    again = _run(toy_model(family), tmp_path / "part", "", **options)
    assert [point.change for point in again.curve] == [point.change for point in whole.curve]
    pairs = zip(whole.value.module.state_dict().values(), again.value.module.state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.parametrize("family", STATES)
def test_extraction_is_exact_and_decodes_step_by_step(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    outcome = _run(model, tmp_path, "", steps=3, targets=("blocks", "ssm"))
    small: Model = extract(model, outcome.curve[-1].subnet, space=Space.from_json(outcome.space))
    ids = RandomText().calibration[:2]
    with torch.no_grad():
        piecewise = stepwise(small.module, {"input_ids": ids}, prompt=7)
    assert difference(piecewise, logits(small.module, ids)) <= TOLERANCE
