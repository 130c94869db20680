"""The Fisher diagonal is the sum of squared gradients, and makes low precisions of a trained model better."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lissome.core.errors import DataError
from lissome.engine.decode.fisher import fisher
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make
from lissome.testing.toys import toy_model


def sequences(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (12,), generator=generator) for _ in range(count)]


def test_it_is_the_sum_of_squared_gradients() -> None:
    model = toy_model("llama", tie_word_embeddings=True)
    before = {name: weight.requires_grad for name, weight in model.module.named_parameters()}
    found = fisher(model, sequences(3))
    wanted = {name: torch.zeros_like(weight) for name, weight in model.module.named_parameters() if weight.dim() == 2}
    for ids in sequences(3):
        model.module.zero_grad()
        model.module(input_ids=ids[None], labels=ids[None]).loss.backward()
        for name in wanted:
            wanted[name] += model.module.get_parameter(name).grad.square()
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-12) for name in wanted)
    assert {name: weight.requires_grad for name, weight in model.module.named_parameters()} == before


def test_it_goes_into_the_file(tmp_path: Path) -> None:
    model = toy_model("llama")
    counts, name = fisher(model, sequences(2)), "model.layers.0.mlp.down_proj.weight"
    plain, weighted = (
        open_nested(make(model, tmp_path / "p")),
        open_nested(make(model, tmp_path / "w", importance=counts)),
    )
    weight = model.module.get_parameter(name).detach()

    def error(values: object) -> float:
        return float(((torch.from_numpy(values).float() - weight).square() * counts[name]).sum())  # type: ignore[arg-type]

    assert error(weighted.weight("layers.0.mlp.down", 3)) < error(plain.weight("layers.0.mlp.down", 3))


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="no calibration text"):
        fisher(toy_model("llama"), [])
