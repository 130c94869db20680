"""Hidden tokens: what is hidden, what is judged, and an encoder that learns to guess it in a federation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lissome.core.errors import ConfigError, DataError, UnsupportedModelError
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.client import Worker
from lissome.engine.federate.hidden import Guesser, Hidden, HiddenTokens
from lissome.engine.federate.method import ClientSite, ServerSite
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.public import public_lesson
from lissome.engine.federate.store import ClientStore
from lissome.methods.federate.ffm import FFM
from lissome.models.model import Model
from lissome.testing.tokenizers import toy_tokenizer
from lissome.testing.toys import toy_model
from tests.engine.federate.fleet import federation

MASK, WORDS = 5, 61


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), length=st.integers(2, 40), lead=st.integers(0, 2))
def test_a_share_of_the_tokens_is_hidden_and_asked_for(seed: int, length: int, lead: int) -> None:
    torch.manual_seed(seed)
    windows = torch.randint(6, WORDS, (3, length))
    windows[:, :lead] = 1
    data = HiddenTokens(windows, MASK, (0, 1, 2, MASK), WORDS)
    for at in range(3):
        one = data[at]
        asked = one["targets"] != -100
        assert int(asked.sum()) == min(length - lead, max(1, round(0.15 * length)))
        assert torch.equal(one["targets"][asked], windows[at][asked])
        assert torch.equal(one["ids"][~asked], windows[at][~asked]), "nothing else is changed"
        assert not bool(asked[:lead].any()), "special tokens stay"
    held = data.judging()
    assert all(torch.equal(held[at]["ids"], data.some([at]).judging()[0]["ids"]) for at in range(3))


def test_most_give_way_to_the_mask_some_to_others_and_some_stay() -> None:
    torch.manual_seed(0)
    data = HiddenTokens(torch.full((400, 20), 7), MASK, (), WORDS)
    found = torch.stack([one["ids"][one["targets"] != -100] for one in (data[at] for at in range(400))])
    masked, stayed = ((found == token).float().mean().item() for token in (MASK, 7))
    assert masked == pytest.approx(0.8, abs=0.05)
    assert stayed == pytest.approx(0.1, abs=0.04)
    assert len(found.unique()) > 20


class Knows(nn.Module):
    """Sure of one word at every position."""

    def __init__(self, word: int) -> None:
        super().__init__()
        self.still = nn.Parameter(torch.zeros(()))
        self.word = word

    def forward(self, ids: Tensor) -> Tensor:
        return 50.0 * one_hot(torch.full_like(ids, self.word), WORDS).float()


def test_only_what_is_hidden_is_judged() -> None:
    windows = torch.full((11, 20), 7)
    lesson = Hidden(HiddenTokens(windows, MASK, (), WORDS), HiddenTokens(windows, MASK, (), WORDS), WORDS)
    count, right = lesson.score(Knows(7))
    assert (count, right["accuracy"]) == (11, 1.0)
    assert right["loss"] < 1e-6
    _, wrong = lesson.score(Knows(8))
    assert (wrong["accuracy"], wrong["loss"]) == (0.0, pytest.approx(50.0))
    assert lesson.some([0], []).score(Knows(7)) == (0, {})


def test_scores_come_from_the_head_or_from_the_embedding() -> None:
    ids = torch.randint(6, WORDS, (2, 9))
    with torch.no_grad():
        own, bare, labelled = (toy_model(name) for name in ("bert-tokens", "bert", "bert-labels"))
        assert torch.equal(Guesser(own)(ids), own.module(input_ids=ids).logits)
        for model in (bare, labelled):
            embedding: Any = model.module.get_input_embeddings()  # type: ignore[operator]
            states: Any = model.module.base_model(input_ids=ids)  # type: ignore[operator]
            assert torch.allclose(Guesser(model)(ids), states.last_hidden_state @ embedding.weight.T)
    with pytest.raises(UnsupportedModelError, match="guessing hidden tokens"):
        Guesser(toy_model("llama"))


def spoken(seed: int, count: int = 48) -> Hidden:
    """Windows that count upwards from somewhere: what is hidden follows from its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    rows = 6 + (torch.randint(20, (count, 1), generator=generator) + torch.arange(10)) % 20
    data = HiddenTokens(rows, MASK, (), WORDS)
    return Hidden(data.some(range(count - 12)), data.some(range(count - 12, count)), WORDS)


@pytest.mark.parametrize("name", ["bert", "bert-tokens"])
def test_an_encoder_is_pretrained_in_a_federation(name: str, tmp_path: Path) -> None:
    model = toy_model(name)
    changes: dict[str, Any] = {"recipe": "pretrain", "trains": "all", "fresh": True, "freeze": ()}
    method = FFM(FFM.Config(**changes, lr=0.005, batch=8, epochs=8))
    method.prepare(model, 0)
    site = ServerSite(model=model, lesson=spoken(9), cost=SubnetCost(model), seed=0, folder=tmp_path)
    server, who = method.server(site), {}
    for index, client in enumerate("abc"):
        facts = Profile(name=client, examples=0)
        made = method.client(ClientSite(facts=facts, model=model, lesson=spoken(index), seed=0))
        who[client] = partial(Worker, made, ClientStore(tmp_path / client))
    job = federation(server, who, tmp_path / "s", rounds=4)
    job.run()
    first, last = (job.rounds[at].metrics for at in (0, -1))
    assert last["server/loss"] < first["server/loss"] - 0.3
    assert last["server/accuracy"] > first["server/accuracy"]


def masking(name: str) -> Model:
    tokenizer = toy_tokenizer()
    tokenizer.mask_token = "%"
    return replace(toy_model(name), tokenizer=tokenizer)


def test_public_text_is_hidden_alike(tmp_path: Path) -> None:
    model = masking("bert")
    (tmp_path / "public.txt").write_text("the fox runs over the lazy dog and the hen. " * 30)
    other = HiddenTokens.of(torch.full((2, 8), 3), model)
    found = public_lesson(model, Hidden(other, other, WORDS), str(tmp_path / "public.txt"))
    assert isinstance(found, Hidden)
    assert found.data.windows.shape[1] == 8 and len(found) > 3 and not found.held
    with pytest.raises(ConfigError, match="public texts are among"):
        public_lesson(model, Hidden(other, found.data.some([0]), WORDS), str(tmp_path / "public.txt"))
    with pytest.raises(DataError, match="no mask token"):
        HiddenTokens.of(torch.full((2, 8), 3), replace(model, tokenizer=toy_tokenizer()))
