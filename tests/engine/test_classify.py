"""Classes of texts: parts that share nothing, padding that changes nothing, a head that learns with adapters."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import DataError, UnsupportedModelError
from lissome.data.labelled import Labelled, read_labelled
from lissome.engine.classify import Classifier, Encoded, classification, correct, encode
from lissome.engine.sparsify import sparsify
from lissome.engine.supernet import Paths, heuristic
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters import Design, Masked, add_adapters, merge_lora, rank_space
from lissome.models.binding import masked
from lissome.models.model import Model
from lissome.models.sparse import masks
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

WORDS = {"animals": ["fox", "dog", "hen", "cow"], "colours": ["red", "blue", "pink", "grey"]}


def write(path: Path, count: int = 60) -> Path:
    records = [
        {"text": f"{words[k % 4]} {words[(k // 4) % 4]} {k}", "label": label}
        for label, words in WORDS.items()
        for k in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def encoder(family: str = "bert") -> Model:
    return replace(toy_model(family, vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())


def test_reading(tmp_path: Path) -> None:
    data = read_labelled(write(tmp_path / "a.jsonl"))
    assert data.classes == ("animals", "colours")
    assert len(data) == 120
    assert data.labels[0] == 0
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_labelled(tmp_path / "b.jsonl.gz").sha256 == data.sha256
    (tmp_path / "c.jsonl").write_text(
        '{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}\n{"text": "a", "label": 0}'
    )
    small = read_labelled(tmp_path / "c.jsonl")
    assert (small.texts, small.labels, small.classes) == (("a", "b"), (1, 0), ("0", "1"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no json", "not JSON"), ("[1]", "no usable"), ('{"text": "a"}', "no usable"),
        ('{"text": " ", "label": "x"}', "no usable"), ('{"text": "a", "label": true}', "no usable"),
        ('{"text": "a", "label": 1.5}', "no usable"), ('{"text": "\\ud800", "label": "x"}', "half a character"),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_used(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine", "label": "x"}\n' + line)
    with pytest.raises(DataError, match=rf"bad\.jsonl:2.*{words}") as caught:
        read_labelled(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_labelled(tmp_path / "nothing.jsonl")
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "x"}')
    with pytest.raises(DataError, match="two classes"):
        read_labelled(tmp_path / "one.jsonl")
    (tmp_path / "packed.csv.gz").write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"broken bits")
    with pytest.raises(DataError, match="cannot be read"):
        read_labelled(tmp_path / "packed.csv.gz")


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(4, 40), min_size=2, max_size=4),
    seed=st.integers(0, 10**6),
    train_share=st.sampled_from([0.5, 0.6]),
)
def test_parts_share_nothing_and_have_the_same_mixture(counts: list[int], seed: int, train_share: float) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    data = Labelled("toy", tuple(map(str, range(len(labels)))), tuple(labels), tuple(map(str, range(len(counts)))))
    parts = data.parts({"train": train_share, "validation": 0.25}, seed=seed)
    assert not set(parts["train"].texts) & set(parts["validation"].texts)
    assert data.parts({"train": train_share, "validation": 0.25}, seed=seed) == parts
    for label, count in enumerate(counts):
        assert abs(parts["train"].labels.count(label) - train_share * count) <= 1
        assert abs(parts["validation"].labels.count(label) - 0.25 * count) <= 1
    with pytest.raises(DataError, match="sum to at most 1"):
        data.parts({"a": 0.8, "b": 0.8})


def test_padding_and_batches_change_nothing(tmp_path: Path) -> None:
    model, data = encoder(), read_labelled(write(tmp_path / "a.jsonl"))
    encoded = encode(model, data)
    assert encoded.ids.shape == encoded.mask.shape
    classifier = Classifier(model, 2, seed=1).eval()
    wide = Encoded(*(torch.nn.functional.pad(one, (0, 7)) for one in (encoded.ids, encoded.mask)), encoded.labels)
    with torch.no_grad():
        together = classifier(wide.ids, wide.mask)
        alone = torch.cat([classifier(*(one.unsqueeze(0) for one in wide[index][:2])) for index in range(9)])
    torch.testing.assert_close(together[:9], alone, rtol=1e-4, atol=1e-5)
    assert correct(classifier, wide).shape == (120,)
    assert len(encode(model, data, length=4).ids[0]) == 4


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_sparse_model_learns_classes_with_elastic_masked_adapters(family: str, tmp_path: Path) -> None:
    model = encoder(family)
    parts = read_labelled(write(tmp_path / "a.jsonl")).parts({"train": 0.6, "test": 0.4})
    learning, held_out = (encode(model, part, length=24) for part in parts.values())
    sparsify(model, learning.batches())
    zeros = {name: mask.bits for name, mask in masks(model.module).items()}
    add_adapters(model, Design(ranks=(6, 4, 2), alpha=12, make=Masked))
    classifier, space = Classifier(model, 2), rank_space(model)
    paths = Paths(model, space)
    task = classification(classifier, learning)
    config = TrainConfig(steps=60, lr=1e-2, batch=16, precision="fp32")
    train(replace(task, loss=paths.noted(task.loss)), config, seed=0, hooks=paths)
    with masked(model, heuristic(space), space=space):
        accuracy = float(correct(classifier, held_out).float().mean())
    assert accuracy > 0.9
    assert len(paths.log.losses) == 60
    expected = correct(classifier, held_out)
    merge_lora(model)
    assert torch.equal(correct(classifier, held_out), expected)
    assert all(torch.equal(mask.bits, zeros[name]) for name, mask in masks(model.module).items())


def test_refusals(tmp_path: Path) -> None:
    data = read_labelled(write(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="tokenizer"):
        encode(toy_model("bert"), data)
    with pytest.raises(UnsupportedModelError, match="does not read text"):
        Classifier(toy_model("vit"), 2)


@pytest.mark.parametrize(("precision", "tokens", "fused"), [("bf16", 9, False), ("fp32", 9, True), ("bf16", 129, True)])
def test_short_texts_in_half_precision_train_without_the_fused_attention(
    precision: str, tokens: int, fused: bool
) -> None:
    model, seen = toy_model("bert", max_position_embeddings=160), []
    classifier = Classifier(model, 2)
    classifier.base.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    ids = torch.randint(5, 61, (4, tokens), generator=torch.Generator().manual_seed(0))
    data = Encoded(ids, torch.ones_like(ids), torch.tensor([0, 1, 0, 1]))
    config = TrainConfig.from_mapping({"steps": 2, "batch": 2, "precision": precision})
    train(classification(classifier, data), config, seed=0)
    assert seen == [fused, fused]
    assert torch.backends.cuda.flash_sdp_enabled(), "only inside the pass"
