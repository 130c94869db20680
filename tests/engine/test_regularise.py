"""Hidden words and dropped activations: what changes in training, and that nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ConfigError
from lissome.engine.classify import Encoded
from lissome.engine.hooks import Task
from lissome.engine.regularise import Hidden, dropping, hiding
from lissome.models.model import Model
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_inputs, toy_model

PAD, BEGIN, END, MASK = range(4)


def texts(count: int = 40, length: int = 50) -> Encoded:
    """Texts between two special tokens, of unlike lengths."""
    ids = torch.randint(4, TOY_VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], lengths = BEGIN, torch.arange(count) % (length - 10) + 10
    ids[torch.arange(count), lengths - 1] = END
    mask = (torch.arange(length) < lengths[:, None]).long()
    return Encoded(ids.masked_fill(mask == 0, PAD), mask, torch.arange(count) % 2)


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = toy_tokenizer()
    tokenizer.mask_token = "<unk>"
    return replace(toy_model("bert", vocab_size=TOY_VOCABULARY), tokenizer=tokenizer)


@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 2**32))
def test_words_are_hidden_and_nothing_else(share: float, seed: int) -> None:
    data = texts()
    hidden = Hidden(data, share, MASK, torch.tensor([PAD, BEGIN, END]))
    torch.manual_seed(seed)
    rows = [hidden[at] for at in range(len(hidden))]
    ids = torch.stack([row[0] for row in rows])
    covered, words = ids != data.ids, (data.mask == 1) & (data.ids != BEGIN) & (data.ids != END)
    assert bool((ids[covered] == MASK).all()) and not bool((covered & ~words).any())
    assert abs(float(covered.sum() / words.sum()) - share) < 0.12
    assert torch.equal(torch.stack([row[1] for row in rows]), data.mask)
    assert torch.equal(torch.stack([row[2] for row in rows]), data.labels)
    assert torch.equal(hidden.lengths, data.lengths)


def test_each_look_hides_others_and_follows_the_seed() -> None:
    hidden = Hidden(texts(), 0.5, MASK, torch.tensor([PAD, BEGIN, END]))
    seen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seen.append(hidden[7][0])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_what_cannot_be_hidden_is_refused(model: Model) -> None:
    task = Task(module=model.module, loss=lambda *_: torch.zeros(1), data=texts())
    assert hiding(task, model, 0.0) is task
    assert isinstance(hiding(task, model, 0.2).data, Hidden)
    with pytest.raises(ConfigError, match="labelled texts alone"):
        hiding(replace(task, data=[1, 2]), model, 0.2)
    with pytest.raises(ConfigError, match="has no token that hides a word"):
        hiding(task, replace(model, tokenizer=toy_tokenizer()), 0.2)


@pytest.mark.parametrize("family", ["bert", "llama", "opt", "phi3", "whisper"])
def test_without_dropout_training_is_as_evaluation(family: str) -> None:
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout", "resid_pdrop")
    toy = toy_model(family, **dict.fromkeys(names, 0.5))
    inputs = toy_inputs(toy)
    expected = toy.module(**inputs)[0]
    toy.module.train()
    with dropping(toy.module, 0.0):
        torch.testing.assert_close(toy.module(**inputs)[0], expected)
    for share in (None, 0.3):
        with dropping(toy.module, share):
            assert not torch.allclose(toy.module(**inputs)[0], expected)
