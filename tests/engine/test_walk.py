"""Block-by-block forwards equal whole ones, kept or spilled, and score exactly what a whole forward scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import NumericsError
from lissome.engine.walk import Walk
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.testing.toys import TRANSFORMERS, toy_model


def _windows(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 61, (count, length), generator=torch.Generator().manual_seed(seed))


def _reference(model: Model, windows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model.module(input_ids=windows).logits[:, :-1].double()
    rows = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    return rows.view(len(windows), -1).mean(1)


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_walk_equals_a_whole_forward(family: str, batch_tokens: int) -> None:
    model, windows = toy_model(family), _windows(5, 17)
    walk = Walk(model, windows, batch_tokens=batch_tokens)
    expected = _reference(model, windows)
    torch.testing.assert_close(walk.plain(), expected, rtol=1e-5, atol=0)
    assert torch.equal(walk.fill(), walk.plain())


@settings(max_examples=10, deadline=None)
@given(block=st.integers(0, 3), kind=st.sampled_from(["attention", "mlp"]), count=st.integers(1, 4))
def test_scores_from_the_changed_block_are_those_of_a_whole_forward(block: int, kind: str, count: int) -> None:
    model, windows = toy_model("gemma3"), _windows(count, 9)
    walk = Walk(model, windows)
    walk.fill()
    with masked(model, {f"layers.{block}.{kind}": 0}):
        assert torch.equal(walk.score(block), walk.plain())


def test_refilling_from_a_block_follows_the_change() -> None:
    model, windows = toy_model("llama"), _windows(3, 9)
    walk = Walk(model, windows)
    walk.fill()
    with masked(model, {"layers.1.mlp": 0}):
        walk.fill(1)
        assert torch.equal(walk.score(3), walk.plain())


def test_spilled_states_give_the_same_scores(tmp_path: Path) -> None:
    model, windows = toy_model("qwen3"), _windows(4, 9)
    kept, spilled = Walk(model, windows), Walk(model, windows, folder=tmp_path, memory_limit=0)
    assert torch.equal(kept.fill(), spilled.fill())
    assert torch.equal(kept.score(2), spilled.score(2))
    states = 4 + 1  # at every entrance, and behind the last block
    assert (tmp_path / "hidden.bin").stat().st_size == states * 4 * 9 * 24 * 4


def test_visit_sees_every_block_in_order() -> None:
    model, windows = toy_model("llama"), _windows(2, 9)
    seen: list[int] = []
    last: dict[int, torch.Tensor] = {}

    def watch(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if index:
            assert torch.equal(before, last[index - 1])
        seen.append(index)
        last[index] = after

    Walk(model, windows).visit(watch)
    assert seen == [0, 1, 2, 3]


def test_a_loss_that_is_not_finite_is_named() -> None:
    model = toy_model("llama")
    model.module.get_parameter("model.norm.weight").data[0] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        Walk(model, _windows(1, 9)).plain()
