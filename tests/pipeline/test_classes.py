"""An encoder learns the classes of labelled texts through the same job: names kept, reopened with equal outputs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lissome
from lissome import pipeline
from lissome.core.errors import ConfigError, DataError, LissomeError, OrderError
from lissome.core.events import Event, EventStream
from lissome.core.manifest import read_manifest
from lissome.engine.recover import fingerprint
from lissome.models.adapters import adapters
from lissome.models.integers import grids
from lissome.models.labels import labels_of, with_labels
from lissome.models.model import Model
from lissome.models.sparse import masks, sparsity
from lissome.pipeline.reports import FitReport
from lissome.report.facts import read_page
from lissome.report.page import render
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

pytestmark = pytest.mark.long

QUICK = ("windows=4", "ranks=6,4,2", "steps=40", "lr=0.01", "alpha=12", "columns=8")
WORDS = {"animals": ["fox", "dog", "hen", "cow"], "colours": ["red", "blue", "pink", "grey"]}


def rows(count: int = 40) -> list[dict[str, str]]:
    return [
        {"text": f"{words[k % 4]} {words[(k // 4) % 4]} {k}", "label": label}
        for label, words in WORDS.items()
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy BERT without a head, with its tokenizer, and labelled texts beside it as CSV and JSON lines."""
    folder = tmp_path_factory.mktemp("toy")
    replace(toy_model("bert", vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer()).save(folder / "bert")
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows())))
    with (folder / "texts.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["label", "id", "text"])
        table.writeheader()
        table.writerows({**row, "id": str(index)} for index, row in enumerate(rows()))
    return folder


def fit(toy: Path, out: Path, *settings: str, data: str = "texts.csv", **options: object) -> FitReport:
    return lissome.fit(toy / "bert", method="shears", data=toy / data, settings=(*QUICK, *settings), out=out, **options)


Fitted = Callable[..., tuple[Path, FitReport]]


@pytest.fixture(scope="module")
def fitted(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit once per settings; tests look at the folder and leave it alone."""
    known: dict[tuple[str, ...], tuple[Path, FitReport]] = {}

    def get(*settings: str) -> tuple[Path, FitReport]:
        if settings not in known:
            out = tmp_path_factory.mktemp("fitted") / "out"
            known[settings] = out, fit(toy, out, *settings)
        return known[settings]

    return get


def logits(model: Model, *texts: str) -> torch.Tensor:
    found = model.tokenizer(list(texts), return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.module(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).logits


_FRESH = """
import sys, torch, lissome
model = lissome.load(sys.argv[1])
ids = torch.arange(4, 24).view(2, 10)
print(model.module.config.id2label[1], model.module(input_ids=ids).logits.double().sum().item().hex())
"""


@pytest.mark.parametrize("form", ["plain", "masked", "quantised"])
def test_adapters_and_head_are_learnt_on_the_sparse_base(form: str, toy: Path, fitted: Fitted) -> None:
    out, report = fitted(f"adapter={form}")
    small = lissome.load(out)
    assert labels_of(small) == ("animals", "colours")
    assert small.module.config.label2id == {"animals": 0, "colours": 1}
    assert sparsity(small.module)["sparse layers"] == pytest.approx(0.5, abs=0.02)
    assert len(masks(small.module)) == 4 * 6
    assert bool(adapters(small.module)) == (form == "plain")
    assert bool(grids(small.module)) == (form == "quantised")
    accuracy = report.rows[1].figures["accuracy"].metric
    assert accuracy.value > 0.9
    assert accuracy.n == 16, "a fifth of the texts"
    assert "accuracy" not in report.rows[0].figures, "its head has learnt nothing"
    assert "accuracy on 16 texts; always saying 'animals' is right in 50.0%" in report.notes
    assert any(note.startswith("latency is of one forward of 128 tokens") for note in report.notes)
    assert "ppl" not in report.rows[1].figures
    assert "accuracy" in render(read_page(out))
    tags = read_manifest(out).tags
    assert "sparse" in tags and not {"dense", "untrained"} & set(tags)
    ids = torch.arange(4, 24).view(2, 10)
    expected = small.module(input_ids=ids).logits.double().sum().item().hex()
    fresh = subprocess.run([sys.executable, "-c", _FRESH, str(out)], capture_output=True, text=True, check=True)
    assert fresh.stdout.split() == ["colours", expected]


def test_eval_scores_a_labelled_file(toy: Path, fitted: Fitted, tmp_path: Path) -> None:
    out, _ = fitted("adapter=masked")
    (row,) = lissome.evaluate(out, data=toy / "texts.jsonl").rows
    small = lissome.load(out)
    guesses = logits(small, *(one["text"] for one in rows())).argmax(-1)
    right = [labels_of(small)[guess] == one["label"] for guess, one in zip(guesses.tolist(), rows(), strict=True)]
    assert row.figures["accuracy"].metric.value == pytest.approx(sum(right) / len(right))
    assert row.figures["accuracy"].metric.n == 80
    paired = lissome.evaluate(out, fitted("adapter=plain")[0], data=toy / "texts.csv")
    assert paired.rows[1].figures["accuracy"].metric.value == row.figures["accuracy"].metric.value
    (tmp_path / "one.csv").write_text("text,label\nred blue,colours\n")
    lissome.evaluate(out, data=tmp_path / "one.csv")  # to be scored, one class is enough
    other = with_labels(lissome.load(toy / "bert"), ("a", "b")).save(tmp_path / "other")
    for target, data, words in (
        (out, None, "give labelled texts with --data"),
        (toy / "bert", toy / "texts.csv", "no named classes"),
    ):
        with pytest.raises(ConfigError, match=words):
            lissome.evaluate(target, data=data)
    with pytest.raises(ConfigError, match=r"other classes \(a, b\) than .* \(animals, colours\)"):
        lissome.evaluate(out, other, data=toy / "texts.csv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("plain.txt", "all work and no play", r"plain\.txt:1: not JSON"),
        ("no.csv", "a,b\n1,2\n", r"no\.csv:1: no columns text and label, but 'a', 'b'"),
        ("no.jsonl", '{"text": "a"}', r"no\.jsonl:1: no usable label"),
        ("void.csv", "text,label\nred,x\n  ,y\n", r"void\.csv:3: no usable text"),
        ("void.jsonl", '{"text": "", "label": "x"}', r"void\.jsonl:1: no usable text"),
        ("bare.csv", "text,label\nred\n", r"bare\.csv:2: no usable label"),
        ("one.csv", "text,label\nred,x\nblue,x\n", "2 texts of 1 class; at least two classes"),
        ("empty.csv", "", r"empty\.csv:1: no columns text and label"),
        ("head.csv", "text,label\n", "0 texts"),
        ("quote.csv", 'text,label\n"red,x\n', r"quote\.csv:\d: not CSV"),
        ("few.csv", "text,label\nred,x\nfox,y\n", "too few for the part"),
        ("missing.csv", None, "cannot be read"),
    ],
)
def test_files_that_teach_nothing_are_one_line(
    name: str, content: str | None, words: str, toy: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        lissome.fit(toy / "bert", method="shears", data=tmp_path / name, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_label_unseen_in_training(fitted: Fitted, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("text,label\nred blue,colours\nfox,animal\n")
    with pytest.raises(DataError, match=r"new\.csv:3: unknown label 'animal'; did you mean 'animals'\?") as caught:
        lissome.evaluate(fitted("adapter=masked")[0], data=tmp_path / "new.csv")
    assert "\n" not in str(caught.value)


def test_a_model_with_classes_keeps_its_head(toy: Path, tmp_path: Path) -> None:
    taught = with_labels(lissome.load(toy / "bert"), ("colours", "animals"), seed=3)
    taught.save(tmp_path / "taught")
    kept = taught.module.classifier.weight.detach().clone()
    report = lissome.fit(
        tmp_path / "taught", method="shears", data=toy / "texts.csv", out=tmp_path / "out",
        settings=("windows=4", "adapter=none"),
    )  # fmt: skip
    small = lissome.load(tmp_path / "out")
    assert torch.equal(small.module.classifier.weight, kept)
    assert labels_of(small) == ("colours", "animals"), "in the model's order, not the file's"
    assert "accuracy" in report.rows[0].figures, "the original has a head to be judged by"
    (tmp_path / "x.csv").write_text("text,label\na,x\nb,y\n")
    with pytest.raises(DataError, match="unknown label 'x'"):
        lissome.fit(tmp_path / "taught", method="shears", data=tmp_path / "x.csv", out=tmp_path / "no")


def test_what_cannot_be_learnt_is_refused_before_any_work(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs: list[tuple[type[LissomeError], str, dict[str, object]]] = [
        (DataError, "is an encoder: what it is to learn are labelled texts, or questions", {"data": None}),
        (ConfigError, "adapter=none and steps=0 train nothing", {"settings": ("adapter=none",)}),
        (ConfigError, "adapter=none and steps=0 train nothing", {"settings": ("steps=0",)}),
        (OrderError, "multipruner needs a model that is decoder.*use shears", {"method": "multipruner"}),
    ]
    for kind, words, changes in jobs:
        options = {"method": "shears", "data": toy / "texts.csv", **changes}
        with pytest.raises(kind, match=words):
            lissome.fit(toy / "bert", out=out, **options)
        with pytest.raises(kind, match=words):
            pipeline.plan(toy / "bert", **options)
    assert not out.exists()


def test_plan_predicts_the_file(toy: Path, fitted: Fitted) -> None:
    for form in ("masked", "quantised"):
        settings = (*QUICK, f"adapter={form}")
        planned = pipeline.plan(toy / "bert", method="shears", data=toy / "texts.csv", settings=settings)
        written = (fitted(f"adapter={form}")[0] / "model.safetensors").stat().st_size
        assert planned.predicted["disk"] == pytest.approx(written, rel=0.05)
        assert planned.seconds is not None


@pytest.mark.parametrize("choose", ["climb", "log"])
def test_ranks_are_chosen_by_the_classes(choose: str, fitted: Fitted) -> None:
    out, _ = fitted(f"choose={choose}", "evaluations=4")
    losses = [point.quality["loss"] for point in read_page(out).curve]
    assert len(losses) >= 1
    assert read_manifest(out).subnet == dict(min(read_page(out).curve, key=lambda one: one.quality["loss"]).subnet)
    with_ranks = pipeline.extract_step(out, 0, out.parent / f"first-{choose}")
    assert labels_of(lissome.load(with_ranks)) == ("animals", "colours")


class StopError(Exception):
    """Stands for a crash."""


def test_stopped_and_continued_gives_the_same_hash(toy: Path, fitted: Fitted, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.stage == "train" and event.kind == "advance" and event.step == 25:
            raise StopError

    with pytest.raises(StopError):
        fit(toy, tmp_path / "parts", "adapter=masked", events=EventStream(stop))
    assert fit(toy, tmp_path / "parts", "adapter=masked").sha256 == fitted("adapter=masked")[1].sha256
    same = fit(toy, tmp_path / "json", "adapter=masked", data="texts.jsonl")
    assert same.sha256 == fitted("adapter=masked")[1].sha256, "CSV and JSON lines say the same"


@pytest.mark.parametrize("family", ["bert", "bert-tokens", "bert-labels"])
def test_a_new_head_leaves_the_encoder_alone(family: str) -> None:
    model = replace(toy_model(family, vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())
    before = fingerprint(model.module)
    ready = with_labels(model, ("a", "b", "c"), seed=1)
    assert fingerprint(model.module) == before
    assert logits(ready, "red fox").shape == (1, 3)
    again, other = with_labels(model, ("a", "b", "c"), seed=1), with_labels(model, ("a", "b", "c"), seed=2)
    assert torch.equal(logits(ready, "red fox"), logits(again, "red fox"))
    assert not torch.equal(logits(ready, "red fox"), logits(other, "red fox"))
    base, theirs = ready.module.base_model, model.module.base_model
    assert base.encoder is theirs.encoder
    assert base.embeddings is theirs.embeddings
    assert labels_of(model) == (), "LABEL_0 is no name"
