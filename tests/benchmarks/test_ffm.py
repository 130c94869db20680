"""The claim on FFM: its judgement on made-up numbers, its tables, and arms on a toy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks._federated import SEEDS
from benchmarks.ffm import arms, language, run, sweep, table
from benchmarks.ffm.sweep import SWEEP
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model
from tests.benchmarks.federated import all_hold, cell_of, names_it, result_of, toy

_OWN = {name: {"test": 0.6, "train": 0.7, "told": 0.55, "learned": 10} for name in "ab"}
_LOCAL = {"a": {"test": 0.4, "train": 0.9, "told": 0.8, "learned": 10}}


def good() -> dict[str, dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    prompt = arms.TOKENS * arms.WIDTH * 4 * 2 * 10 * 10
    for seed in SEEDS:
        cells |= {
            f"full-{seed}": cell_of(0.8, spent=(0, 500, 1000), own=_OWN),
            f"lora-{seed}": cell_of(0.78, spent=(0, 20, 40), own=_OWN),
            f"prompt-alone-{seed}": cell_of(0.5, spent=(0, prompt), own=_OWN),
            f"centralised-{seed}": cell_of(0.8, spent=(0, 4)), f"zero-shot-{seed}": cell_of(0.1, spent=(0, 0)),
            f"local-{seed}": cell_of(0.1, spent=(0, 0), own=_LOCAL),
            f"head-{seed}": cell_of(0.6), f"prompt-{seed}": cell_of(0.7),
            f"continual-none-{seed}": {"forgetting": 0.5, "average": 0.3},
            f"continual-joint-{seed}": {"forgetting": 0.05, "average": 0.7},
            f"prompted-search-{seed}": {"prompted": {"none": 2.0, "first": 2.2, "last": 2.1}, "spent": [0, 2**20]},
            f"continual-replay-{seed}": {"forgetting": 0.1, "average": 0.6, "matrix": [[0.5, 0.2], [0.4, 0.8]]},
            f"retrieval-{seed}": {"recall": 0.9, "fewer": 0.7, "central": 0.9},
            f"pretrain-federated-{seed}": {"loss": 1.5, "accuracy": [None]},
            f"pretrain-centralised-{seed}": {"loss": 1.45, "accuracy": [None]},
            f"pretrain-plain-{seed}": {"loss": 1.6, "accuracy": [None]},
            f"pretrain-local-{seed}": {"loss": 5.0, "accuracy": [None], "own": {"a": {"test": 2.0, "train": 1.0}}},
            f"smollm2-federated-{seed}": {"losses": {"a": 2.0}, "accuracy": [None]},
            f"smollm2-zero-shot-{seed}": {"losses": {"a": 2.5}, "accuracy": [None]},
        }  # fmt: skip
    return cells


judge = partial(run.judge, rounds=10)


def test_everything_holds_when_it_does() -> None:
    assert all_hold(judge, good()) == 17


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("lora", {"accuracy": [0.1, 0.9]}, "centralised"), ("lora", {"accuracy": [0.1, 0.42]}, "local + 3"),
        ("lora", {"spent": [0, 60]}, "bytes of adapters"), ("prompt-alone", {"spent": [0, 7]}, "virtual tokens"),
        ("local", {"own": _OWN}, "gap"), ("continual-replay", {"forgetting": 0.6}, "replay"),
        ("retrieval", {"recall": 0.8}, "one index"), ("pretrain-federated", {"loss": 2.1}, "local one"),
        ("pretrain-federated", {"loss": 1.6}, "better centralised"),
        ("pretrain-plain", {"loss": 1.3}, "better centralised"),
        ("smollm2-federated", {"losses": {"a": 2.6}}, "SmolLM2"), ("head", {"accuracy": [0.1, 0.75]}, "≥ the head"),
        ("prompt", {"accuracy": [0.1, 0.79]}, "≤ adapters"),
        ("lora", {"own": {"a": {**_LOCAL["a"], "told": 0.9}}}, "told by losses"),
        ("continual-replay", {"average": 0.2, "forgetting": 0.1}, "all slices"),
        ("continual-joint", {"average": 0.5}, "at hand"),
        ("prompted-search", {"prompted": {"first": 2.0, "last": 2.0}}, "without gradients"),
    ],
)  # fmt: skip
def test_a_broken_sentence_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    names_it(judge, good(), arm, changes, words)


def test_tables_say_what_was_measured() -> None:
    facts = {"rounds": 10, "clients": 10, "alpha": 0.3, "languages": 12, **SWEEP.facts_of(SWEEP.middle())}
    result = result_of(judge, good(), facts)
    page = table.page([result])
    assert "reach 78.0 % where pooled data reach 80.0 %, with 4.0% of the bytes" in table.summary([result])
    assert "| full | 80.0 ± 0.0 | 80.0 ± 0.0 (one round, 12.5 × the bytes) |" in page
    assert "| search | 7.39 | 9.03 | 8.17 | 1.00 |" in page
    assert "| local | 40.0 ± 0.0 | 40.0 ± 0.0 | 65.0 | 50.0 | 80.0 | 0.0 |" in page
    assert "| continual-replay | 60.0 ± 0.0 | 10.0 ± 0.0 |" in page
    assert "| federated | 4.48 |" in page
    assert "| local | 7.39 |" in page
    assert "| continual-replay | 2 | 40.0 | 80.0 |" in page
    assert "| 90.0 ± 0.0 | 70.0 ± 0.0 | 90.0 ± 0.0 |" in page, "search"
    assert "| zero-shot | 12.18 |" in page, "SmolLM2 before"


@pytest.mark.long
@pytest.mark.parametrize("arm", ["lora", "lora-unlike-product", "local", "zero-shot", "prompt-alone"])
def test_an_arm_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.finetuned(arm, 0, 1, 1e-3, tmp_path / "arm")
    assert len(cell["accuracy"]) == 2
    assert (cell["spent"][-1] > 0) == (arm in arms.FINETUNED)
    assert ("own" in cell) == (arm in {"lora", "local"})
    assert all(0 <= one.get("told", 0.5) <= 1 for one in cell.get("own", {}).values())
    assert ("own" not in cell) or sum("told" in one for one in cell["own"].values()) > 5
    if arm == "prompt-alone":
        assert cell["spent"][-1] == arms.TOKENS * 24 * 4 * 2 * 10, "m·d·4·2·|S|·R"


@pytest.mark.long
def test_slices_and_search_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    cell = arms.continual("continual-replay", 0, 4, {"lr": 1e-3}, tmp_path / "slices")
    assert len(cell["matrix"]) == arms.SLICES
    found = arms.retrieval(0, tmp_path / "search")
    assert found["recall"] == found["central"]
    assert 0 <= found["fewer"] <= 1
    assert found["apart"] < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("arm", ["federated", "local", "plain"])
def test_language_arms_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")
    model = replace(toy_model("llama", vocab_size=TOY_VOCABULARY, num_hidden_layers=1), tokenizer=toy_tokenizer())
    model.save(tmp_path / "model")
    rows = [{"text": f"the fox {at} runs. " * 70, "client": "xy"[at % 2]} for at in range(10)]
    monkeypatch.setattr(language, "declarations", lambda folder: language._written(folder / "rows.jsonl", rows))
    cell = language.pretrained(arm, 0, 1, {"lr": 3e-3}, tmp_path / "arm", str(tmp_path / "model"))
    assert cell["loss"] > 0
    assert ("own" in cell) == (arm == "local")
    if arm == "local":
        assert set(cell["own"]) == {"x", "y"}
        assert all(one["test"] < cell["loss"] for one in cell["own"].values()), "they learned something"
    monkeypatch.setattr(language, "pages", lambda folder: language._written(folder / "rows.jsonl", rows))
    found = language.tuned("zero-shot", 0, 1, tmp_path / "tuned", str(tmp_path / "model"))
    assert set(found["losses"]) == {"x", "y"}
    found = language.prompted("search", 0, 2, tmp_path / "prompted", str(tmp_path / "model"))["prompted"]
    assert found["last"] != found["first"]
    assert all(loss > 0 for loss in found.values())


@pytest.mark.long
@pytest.mark.parametrize("arm", ["lora", "local", "continual-ewc"])
def test_settings_are_tried_on_a_toy(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(tmp_path, monkeypatch)
    assert 0 <= sweep.trial(arm, {"lr": 1e-3}, tmp_path / "arm") <= 1


def test_every_arm_has_a_rate_that_was_tried() -> None:
    names = {*arms.FINETUNED, *arms.OTHERS, *arms.PROTECTED, *(language.PREFIX + one for one in language.ARMS)}
    assert {sweep.RATE_OF[name] for name in names} == set(SWEEP.rates)
    assert len({len(rates) for rates in SWEEP.rates.values()}) == 1, "as many trials for all"
    assert all(len(values) >= 3 for knobs in SWEEP.knobs.values() for values in knobs.values())
