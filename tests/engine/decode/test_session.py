"""Texts are a pure function of weights, prompt, schedule and seed, whatever the cache had before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lissome.core.errors import ConfigError, DataError, NumericsError
from lissome.engine.decode import Decoder, Sampling, Session
from lissome.engine.decode.session import choose
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from tests.export.toys import model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

PROMPT = np.random.default_rng(0).integers(0, 320, 20).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(model_of("llama"), tmp_path_factory.mktemp("nested") / "toy.safetensors")


def session(path: Path, cells: int = 64, **more: Any) -> Session:
    return Session(Decoder.open(path, cells=cells), **more)


def test_the_most_likely_token_each_time(path: Path) -> None:
    found = list(session(path).generate(PROMPT, 8))
    decoder, ids = Decoder.open(path), list(PROMPT)
    for _ in range(8):
        decoder.seq_rm(0)
        ids.append(int(decoder.forward(ids, range(len(ids)))[0].argmax()))
    assert found == ids[20:]


def test_a_prefix_is_computed_once(path: Path) -> None:
    one = session(path)
    first = list(one.generate(PROMPT, 8))
    assert one.computed == 27
    assert list(one.generate(PROMPT, 8)) == first
    assert one.computed == 27 + 8
    other = [*PROMPT[:10], 1, 2, 3]
    assert list(one.generate(other, 5)) == list(session(path).generate(other, 5))
    assert one.computed == 27 + 8 + 3 + 4


def test_bits_are_a_function_of_the_position(path: Path) -> None:
    def falling(at: int) -> int:
        return 4 if at < 23 else 3

    one = session(path)
    list(one.generate(PROMPT, 9, schedule=lambda _: 3))
    found = list(one.generate(PROMPT, 9, schedule=falling))
    assert found == list(session(path).generate(PROMPT, 9, schedule=falling))
    decoder, ids = Decoder.open(path), list(PROMPT)
    decoder.forward(ids[:-1], range(19))
    for at in range(19, 28):
        ids.append(int(decoder.forward([ids[at]], [at], 0, falling(at))[0].argmax()))
    assert found == ids[20:]


def test_seeds(path: Path) -> None:
    def text(seed: int, **more: Any) -> list[int]:
        return list(session(path).generate(PROMPT, 12, sampling=Sampling(temperature=1.5, seed=seed, **more)))

    assert text(1) == text(1)
    assert len({tuple(text(seed)) for seed in range(5)}) == 5
    greedy = list(session(path).generate(PROMPT, 12))
    assert text(1, top_k=1) == greedy
    assert text(1, top_p=1e-9) == greedy
    one = session(path)
    short = list(one.generate(PROMPT, 5, sampling=Sampling(temperature=1.5, seed=1)))
    rest = list(one.generate([*PROMPT, *short], 7, sampling=Sampling(temperature=1.5, seed=1)))
    assert short + rest == text(1)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    count = 4000

    def shares(**settings: float) -> list[float]:
        drawn = Counter(choose(logits, Sampling(temperature=1, **settings), at) for at in range(count))  # type: ignore[arg-type]
        return [drawn[token] / count for token in range(4)]

    assert np.allclose(shares(), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    assert np.allclose(shares(top_p=0.7), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    assert np.allclose(shares(top_k=3), [5 / 9, 2.5 / 9, 1.5 / 9, 0], atol=0.03)
    wide = np.zeros(50_000, np.float32)
    assert len({choose(wide, Sampling(temperature=1), at) for at in range(50)}) > 45


def test_stop_and_most(path: Path) -> None:
    found = list(session(path).generate(PROMPT, 8))
    at = next(at for at in range(8) if found[at] not in found[:at] and at > 0)
    assert list(session(path).generate(PROMPT, 8, stop={found[at]})) == found[:at]
    assert list(session(path).generate(PROMPT, 0)) == []


def test_a_full_cache_ends_the_text_or_slides(path: Path) -> None:
    free = list(session(path).generate(PROMPT, 30))
    assert list(session(path, 24).generate(PROMPT, 30)) == free[:5]
    sliding = session(path, 24, overflow="slide")
    found = list(sliding.generate(PROMPT, 30))
    assert found[:5] == free[:5]
    assert len(found) == 30
    assert sliding.decoder.seq_first(0) == 0
    assert sliding.decoder.seq_last(0) == 20 + 28
    assert list(sliding.generate(PROMPT, 5)) == free[:5]


def test_refusals(path: Path) -> None:
    with pytest.raises(DataError, match="1 to 64 tokens, got 0"):
        session(path).feed([], lambda _: 4)
    with pytest.raises(DataError, match="got 65"):
        session(path).feed([1] * 65, lambda _: 4)
    with pytest.raises(NumericsError):
        choose(np.full(5, np.nan, np.float32), Sampling(), 0)
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"seed": -1}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError):
            Sampling(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep must be"):
        session(path, keep=32)
