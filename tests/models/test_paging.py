"""Weights in files: given back, read again, never lost."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from lissome.models.binding import extract, reorder
from lissome.models.load import load_model
from lissome.models.paging import page_out, park, spill
from lissome.testing.conformance import difference, logits
from lissome.testing.toys import toy_model

_IDS = torch.tensor([[5, 9, 2, 40, 7]])
_BACKWARDS = {"layers.0.mlp.width": torch.arange(39, -1, -1)}


def test_parked_weights_are_those_of_the_file(tmp_path: Path) -> None:
    toy_model("llama").save(tmp_path / "toy")
    model = load_model(tmp_path / "toy")
    before = logits(model.module, _IDS)
    reorder(model, _BACKWARDS)
    park(model)
    stored = load_model(tmp_path / "toy").module.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.module.state_dict().items())
    assert difference(logits(model.module, _IDS), before) < 1e-6


def test_a_model_without_files_is_not_parked() -> None:
    model = toy_model("llama")
    reorder(model, _BACKWARDS)
    before = [value.clone() for value in model.module.state_dict().values()]
    park(model)
    assert all(torch.equal(*pair) for pair in zip(before, model.module.state_dict().values(), strict=True))


def test_a_cut_model_is_not_parked_into_the_files_of_the_original(tmp_path: Path) -> None:
    toy_model("llama").save(tmp_path / "toy")
    whole = load_model(tmp_path / "toy")
    small = extract(whole, {**whole.space().full, "layers.0.attention": 0, "layers.0.mlp": 0})
    before = logits(small.module, _IDS)
    park(small)  # its first block has the name of the original's first, and the weights of its second
    assert torch.equal(logits(small.module, _IDS), before)


@pytest.mark.parametrize("seed", range(3))
def test_spilled_weights_are_the_same_and_can_be_changed(seed: int, tmp_path: Path) -> None:
    whole = toy_model("gemma3")
    small = extract(whole, whole.space().sample(Random(seed)))
    before = {name: value.clone() for name, value in small.module.state_dict().items()}
    spilled = spill(small, tmp_path / "weights.safetensors")
    content = (tmp_path / "weights.safetensors").read_bytes()
    page_out(spilled.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in spilled.module.state_dict().items())
    assert spilled.module.lm_head.weight is spilled.module.model.embed_tokens.weight, "tied weights stay tied"
    changed = next(iter(spilled.module.parameters()))
    changed.data.add_(1.0)
    page_out([changed])
    assert torch.equal(changed, before[next(iter(before))] + 1.0), "what was written is not dropped"
    assert (tmp_path / "weights.safetensors").read_bytes() == content, "and does not reach the file"


def test_memory_that_belongs_to_no_file_keeps_its_values() -> None:
    tensor = torch.arange(100_000.0)
    page_out([tensor, torch.empty(0)])
    assert torch.equal(tensor, torch.arange(100_000.0))
