"""The claim on FFM: its judgement on made-up numbers, its tables, and arms on a toy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ffm import arms, language, run, table
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model
from tests.benchmarks.federated import toy

_OWN = {"a": {"test": 0.6, "train": 0.7}, "b": {"test": 0.6, "train": 0.7}}
_HEAD = 384 * 384 + 384 + 384 * 12 + 12


def _cell(accuracy: float, training: float) -> dict[str, Any]:
    return {"accuracy": [0.1, accuracy], "training": training, "own": _OWN}


def good() -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    prompt = (arms.TOKENS * arms.WIDTH + _HEAD) * 4 * 2 * 10 * 10
    for seed in run.SEEDS:
        cells |= {
            f"full-{seed}": _cell(0.8, 1000), f"lora-{seed}": _cell(0.78, 40), f"prompt-{seed}": _cell(0.5, prompt),
            f"centralised-{seed}": _cell(0.8, 4), f"zero-shot-{seed}": _cell(0.1, 0),
            f"local-{seed}": {**_cell(0.1, 0), "own": {"a": {"test": 0.4, "train": 0.9}}},
            f"continual-none-{seed}": {"forgetting": 0.5, "average": 0.3},
            f"continual-replay-{seed}": {"forgetting": 0.1, "average": 0.6},
            f"retrieval-{seed}": {"recall": 0.9, "central": 0.9},
            f"pretrain-federated-{seed}": {"loss": 1.5, "accuracy": [None]},
            f"pretrain-centralised-{seed}": {"loss": 1.45, "accuracy": [None]},
            f"pretrain-local-{seed}": {"loss": 5.0, "accuracy": [None], "own": {"a": {"test": 2.0, "train": 1.0}}},
            f"smollm2-federated-{seed}": {"losses": {"a": 2.0}, "accuracy": [None]},
            f"smollm2-zero-shot-{seed}": {"losses": {"a": 2.5}, "accuracy": [None]},
        }  # fmt: skip
    return cells


def test_everything_holds_when_it_does() -> None:
    found = run.judge(good(), 10)
    assert all(one.ok for one in found), [str(one) for one in found if not one.ok]


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("lora", {"accuracy": [0.1, 0.9]}, "centralised"), ("lora", {"accuracy": [0.1, 0.42]}, "local + 3"),
        ("lora", {"training": 60}, "bytes of adapters"), ("prompt", {"training": 7}, "virtual tokens"),
        ("local", {"own": _OWN}, "gap"), ("continual-replay", {"forgetting": 0.6}, "replay"),
        ("retrieval", {"recall": 0.8}, "one index"), ("pretrain-federated", {"loss": 2.1}, "local one"),
        ("pretrain-federated", {"loss": 1.6}, "÷ centralised"),
        ("smollm2-federated", {"losses": {"a": 2.6}}, "SmolLM2"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    cells = {name: {**cell, **changes} if name.rpartition("-")[0] == arm else cell for name, cell in good().items()}
    assert any(words in one.name for one in run.judge(cells, 10) if not one.ok)


def test_tables_say_what_was_measured() -> None:
    facts = {"rounds": 10, "clients": 10, "alpha": 0.3, "languages": 12}
    result = {"facts": facts, "cells": good(), "inequalities": [vars(one) for one in run.judge(good(), 10)]}
    page = table.page([{**result, "environments": []}])
    assert "reach 78.0 % where pooled data reach 80.0 %, with 4.0% of the bytes" in table.summary([result])
    assert "| local | 40.0 | 50.0 | 0.0 |" in page
    assert "| continual-replay | 60.0 | 10.0 |" in page
    assert "| federated | 4.48 |" in page
    assert "| local | 7.39 |" in page


@pytest.mark.long
@pytest.mark.parametrize("arm", ["lora", "local", "zero-shot"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.finetuned(arm, 0, 1, tmp_path / "arm")
    assert len(cell["accuracy"]) == 2
    assert (cell["training"] > 0) == (arm == "lora")
    assert ("own" in cell) == (arm != "zero-shot")


@pytest.mark.long
def test_slices_and_search_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.continual("continual-replay", 0, 4, tmp_path / "slices")
    assert len(cell["matrix"]) == arms.SLICES
    found = arms.retrieval(0, tmp_path / "search")
    assert found["recall"] == found["central"]
    assert found["apart"] < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("arm", ["federated", "local"])
def test_language_arms_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")
    model = replace(toy_model("llama", vocab_size=TOY_VOCABULARY, num_hidden_layers=1), tokenizer=toy_tokenizer())
    model.save(tmp_path / "model")
    rows = [{"text": f"the fox {at} runs. " * 70, "client": "xy"[at % 2]} for at in range(10)]
    monkeypatch.setattr(language, "declarations", lambda folder: language._written(folder / "rows.jsonl", rows))
    cell = language.pretrained(arm, 0, 1, tmp_path / "arm", str(tmp_path / "model"))
    assert cell["loss"] > 0
    assert ("own" in cell) == (arm == "local")
    if arm == "local":
        assert set(cell["own"]) == {"x", "y"}
        assert all(one["test"] < cell["loss"] for one in cell["own"].values()), "they learned something"
    monkeypatch.setattr(language, "pages", lambda folder: language._written(folder / "rows.jsonl", rows))
    found = language.tuned("zero-shot", 0, 1, tmp_path / "tuned", str(tmp_path / "model"))
    assert set(found["losses"]) == {"x", "y"}
