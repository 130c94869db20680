"""How many tokens a model reads: as many as it says, and not one more."""

from __future__ import annotations

import pytest
import torch

from lissome.models.model import Model
from lissome.models.positions import most_positions
from lissome.testing.toys import toy_model


def roberta() -> Model:
    from transformers import RobertaConfig, RobertaModel

    known = toy_model("bert").module.config
    sizes = {name: getattr(known, name) for name in ("vocab_size", "hidden_size", "num_attention_heads")}
    config = RobertaConfig(**sizes, num_hidden_layers=1, intermediate_size=40, max_position_embeddings=20)
    return toy_model("bert").derived(RobertaModel(config).eval())


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "roberta"])
def test_a_model_reads_as_many_tokens_as_it_has_positions_for(family: str) -> None:
    model = roberta() if family == "roberta" else toy_model(family)
    most = most_positions(model)
    assert most is not None
    ids = torch.full((1, most + 1), 5)
    model.module(input_ids=ids[:, :-1])
    with pytest.raises((IndexError, RuntimeError)):
        model.module(input_ids=ids)


def test_positions_that_are_computed_have_no_end() -> None:
    assert most_positions(toy_model("llama")) is None
