"""On a real model: greedy tokens are those of transformers, and integers cost little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lissome.core.errors import AssetError
from lissome.data.assets import fetch
from lissome.data.sources import shipped_corpus
from lissome.engine.decode import Decoder, Session
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.testing.conformance import dequantised

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels"),
]

PROMPTS, LENGTH, MARGIN = 50, 32, 1e-3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    try:
        model = load_model(fetch("smollm2-135m"))
    except AssetError as error:
        pytest.skip(f"the model is not here and cannot be fetched: {error}")
    return model, make(model, tmp_path_factory.mktemp("nested") / "smollm2.safetensors")


@torch.no_grad()
def margin_after(model: Model, ids: list[int]) -> float:
    two = model.module(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].topk(2).values
    return float(two[0] - two[1])


def test_greedy_tokens_are_those_of_transformers(made: tuple[Model, Path]) -> None:
    model, path = made
    assert model.tokenizer is not None
    words = shipped_corpus().documents[0].text.split()
    prompts = [model.tokenizer(" ".join(words[8 * at : 8 * at + 12]))["input_ids"] for at in range(PROMPTS)]
    dequantised(model, open_nested(path), 4)
    session = Session(Decoder.open(path, activations="f32", kv="f32", cells=128))
    equal = 0
    for prompt in prompts:
        found = list(session.generate(prompt, LENGTH))
        with torch.no_grad():
            wanted = model.module.generate(  # type: ignore[operator]
                torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None
            )[0, len(prompt) :].tolist()
        at = next((at for at in range(LENGTH) if found[at] != wanted[at]), LENGTH)
        equal += at == LENGTH
        assert at == LENGTH or margin_after(model, [*prompt, *wanted[:at]]) < MARGIN
    assert equal >= 0.95 * PROMPTS


def test_integers_cost_little(made: tuple[Model, Path]) -> None:
    model, path = made
    assert model.tokenizer is not None
    ids = model.tokenizer(shipped_corpus().documents[0].text[:8000])["input_ids"][:1024]

    def perplexity(**settings: str) -> float:
        decoder, losses = Decoder.open(path, cells=512, **settings), []
        for first in (0, 512):
            piece = ids[first : first + 512]
            decoder.seq_rm(0)
            logits = torch.from_numpy(decoder.forward(piece, range(len(piece)), wanted=range(len(piece) - 1)))
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(piece[1:])).item())
        return float(np.exp(np.mean(losses)))

    exact = perplexity(activations="f32", kv="f32")
    assert perplexity() < 1.01 * exact
    assert perplexity(kv="int8") < 1.015 * exact
