"""What methods that make super-networks share: a head that is new learns faster until it was tuned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lissome.core.method import Context
from lissome.engine.hooks import Hooks
from lissome.engine.objective import FASTER
from lissome.engine.supermethod import Making, SupernetConfig
from lissome.models.labels import head_parameters
from lissome.models.model import Model
from lissome.pipeline.job import data_for
from lissome.testing.examples import worded_texts
from lissome.testing.jobs import toy_context
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

RATE = 1e-3


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Model, Context]:
    """An encoder with a new head, and texts to learn."""
    worded_texts(tmp_path / "words.jsonl", count=90)
    module = toy_module("bert", vocab_size=TOY_VOCABULARY, max_position_embeddings=64)
    model, splits = data_for(Model(module, toy_tokenizer()), tmp_path / "words.jsonl", seed=0, searched=True)
    return model, dataclasses.replace(toy_context(model, tmp_path), data=splits.for_methods())


def moved(making: Making, before: Model) -> tuple[float, float]:
    """How far the first step of AdamW moved the head and the rest, over the learning rate."""
    head = {id(one) for one in head_parameters(making.model)}
    far: dict[bool, float] = {True: 0.0, False: 0.0}
    given = dict(before.module.named_parameters())
    for name, value in making.model.module.named_parameters():
        far[id(value) in head] = max(far[id(value) in head], float((value - given[name]).detach().abs().max()) / RATE)
    return far[True], far[False]


@pytest.mark.parametrize(("new", "optimizer"), [(True, "adamw"), (False, "adamw"), (True, "sgd")])
def test_a_new_head_learns_faster_until_it_was_tuned(
    new: bool, optimizer: str, labelled: tuple[Model, Context]
) -> None:
    model, context = labelled
    config = SupernetConfig.from_mapping({"tune_steps": 1, "tune_lr": RATE, "optimizer": optimizer})
    tags = context.tags | {"untrained"} if new else context.tags - {"untrained"}
    making = Making(model, dataclasses.replace(context, tags=tags), config)
    with making.aside():
        making.tune()
    assert all(
        torch.equal(one, two)
        for one, two in zip(making.model.module.parameters(), model.module.parameters(), strict=True)
    )
    before = making.teacher()
    making.train("first", Hooks(), steps=1, lr=RATE)
    head, rest = moved(making, before)
    if optimizer == "adamw":
        assert rest == pytest.approx(1.0, rel=1e-2)
        assert head == pytest.approx(FASTER if new else 1.0, rel=1e-2)
    else:
        assert 0 < head < 1
    making = Making(model, dataclasses.replace(making.context, folder=context.folder / "again"), config)
    making.tune()
    before = making.teacher()
    making.train("second", Hooks(), steps=1, lr=RATE)
    if optimizer == "adamw":
        assert moved(making, before) == pytest.approx((1.0, 1.0), rel=1e-2)
