"""The script that trains the zoo: its tokenizer, its splits, and a whole run on little text."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lissome.core.errors import NumericsError
from lissome.core.files import sha256_file
from lissome.data.text import Encoder
from lissome.engine.hooks import Batch
from lissome.models.load import load_model
from lissome.models.zoo import load_zoo, zoo
from tools import train_zoo

_TEXT = "the of and to in that it is was for on are with as his they at be this from have or by one had not but"
WORDS = _TEXT.split()


def document(seed: int, length: int = 400) -> str:
    rng = random.Random(seed)
    sentences = [" ".join(rng.choice(WORDS) for _ in range(12)) + "." for _ in range(length // 12)]
    return " ".join(sentences)


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|end|>" not in text))
def test_tokens_are_the_bytes(text: str) -> None:
    ids = Encoder(train_zoo.byte_tokenizer()).encode(text)
    assert bytes(ids) == text.encode()
    assert train_zoo.byte_tokenizer().decode(ids) == text


def test_the_tokenizer_opens_again(tmp_path: Path) -> None:
    train_zoo.byte_tokenizer().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Käse\n\x00")["input_ids"] == list("Käse\n\x00".encode())
    assert again.eos_token_id == train_zoo.END and len(again) == 257


def test_a_text_whose_sentences_are_shuffled_is_the_same_text() -> None:
    texts = [document(seed) for seed in range(6)]
    sentences = texts[2].split(". ")
    random.Random(0).shuffle(sentences)
    copy = ". ".join([*sentences[:20], *document(99).split(". ")[:10]])  # and a third of it is new
    groups = train_zoo.related([*texts, copy])
    assert sorted(sorted(group) for group in groups) == [[0], [1], [2, 6], [3], [4], [5]]


@given(st.integers(0, 5))
def test_documents_are_dealt_out_once_and_alike_in_any_order(seed: int) -> None:
    texts = [document(index, 120) for index in range(60)]
    shuffled = random.Random(seed).sample(texts, len(texts))
    first, second = train_zoo.deal(texts), train_zoo.deal(shuffled)
    assert {name: set(found) for name, found in first.items()} == {name: set(found) for name, found in second.items()}
    assert sorted(text for found in first.values() for text in found) == sorted(texts)
    sizes = {name: sum(map(len, found)) / sum(map(len, texts)) for name, found in first.items()}
    assert 1 / 16 <= sizes["test"] < 0.12 and 1 / 32 <= sizes["choice"] < 0.08


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small corpus in the place of the real one, and recipes of two layers."""
    sources = {}
    for index, source in enumerate(("man", "addresses")):
        path = tmp_path / "data" / f"{source}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps({"text": document(100 * index + seed, 300)}) for seed in range(80)]
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        sources[source] = (path.name, sha256_file(path))
    monkeypatch.setenv("LISSOME_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(train_zoo, "_SOURCES", sources)
    monkeypatch.setattr(train_zoo, "_TEST_WINDOWS", 4)
    for name, recipe in train_zoo.RECIPES.items():
        monkeypatch.setitem(train_zoo.RECIPES, name, replace(recipe, layers=3))
    train_zoo.texts.cache_clear()
    yield tmp_path
    train_zoo.texts.cache_clear()


@pytest.mark.parametrize("name", ["zoo-mamba2", "zoo-hybrid"])
def test_a_model_is_trained_stored_and_found_again(name: str, little: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "6", "--out", str(little / "out"), "--work", str(little / "work")]
    train_zoo.main([name, *options])
    assert "bits per byte (" in capsys.readouterr().out
    known, model = zoo(little / "out")[name], load_zoo(name, dtype=torch.float32, root=little / "out")
    assert set(known.bits_per_byte) == {"man", "addresses", "mean"} and known.bits_per_byte["mean"] < 8.2
    assert train_zoo.bits(model, train_zoo.texts().test["man"]) == pytest.approx(known.bits_per_byte["man"])
    assert model.anatomy.blocks and model.name == name and bytes(model.tokenizer("é")["input_ids"]) == "é".encode()
    before = dict(known.files)
    train_zoo.main([name, *options])  # what is done is not done again, and comes out the same
    assert zoo(little / "out")[name].files == before
    assert set(known.training["tried"]) == {f"{rate:g}" for rate in train_zoo.RATES}


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_zoo.main(["zoo-mambo"])
    assert "no 'zoo-mambo'; known: zoo-mamba" in capsys.readouterr().err


def test_all_of_them_fit_into_ten_megabytes() -> None:
    numbers = [sum(value.numel() for value in recipe.build().parameters()) for recipe in train_zoo.RECIPES.values()]
    assert 2 * sum(numbers) < 9.9e6


@pytest.mark.parametrize("name", sorted(train_zoo.RECIPES))
def test_every_parameter_learns_from_the_first_step_on_even_behind_an_end_token(name: str) -> None:
    module = load_model(replace(train_zoo.RECIPES[name], layers=3).build()).module
    ids = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = train_zoo.END
    train_zoo.next_bytes(module, Batch(ids, torch.arange(2), None, 0)).mean().backward()
    norms = {key: float(value.grad.norm()) for key, value in module.named_parameters() if value.grad is not None}
    assert set(norms) == {key for key, _ in module.named_parameters()}
    assert all(1e-6 < norm < 100 for norm in norms.values()), norms
    # the head is the embedding: ids that no input has get a gradient too
    absent = next(byte for byte in range(256) if byte not in set(ids.flatten().tolist()))
    assert module.get_input_embeddings().weight.grad[[absent, train_zoo.END]].norm(dim=1).min() > 1e-6


def test_a_rate_that_diverges_gives_way_to_the_next(
    little: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_zoo, "RATES", (1e-3, 1e30))
    recipe = train_zoo.RECIPES["zoo-llama"]
    tried = train_zoo.choose(recipe, 60, little / "work")
    assert tried[1e30] is None and tried[1e-3] is not None
    assert train_zoo.choose(recipe, 60, little / "work") == tried
    assert train_zoo.best(recipe, 4, little / "work", {1e30: 1.0, 1e-3: 2.0})[2] == 1e-3
    assert capsys.readouterr().out.count("lower lr") == 2
    with pytest.raises(NumericsError, match="every learning rate of 1e\\+30"):
        train_zoo.best(recipe, 4, little / "work", {1e30: 1.0})
