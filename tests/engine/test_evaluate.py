"""Scores on text: the protocol of SparseGPT, pairing with a baseline, and errors instead of NaN."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

from lissome.core.errors import DataError, NumericsError, UnknownNameError
from lissome.core.events import Event, EventStream
from lissome.data.text import WindowPlan, text_splits
from lissome.engine.evaluate import evaluate
from lissome.engine.forward import last_states
from lissome.engine.scoring import perplexity, score_text
from lissome.models.model import Model
from lissome.testing.tokenizers import toy_tokenizer
from lissome.testing.toys import DECODERS, TRANSFORMERS, toy_model

WINDOWS = torch.randint(61, (5, 17), generator=torch.Generator().manual_seed(0))


def with_tokenizer(**options: int) -> Model:
    return replace(toy_model("llama", **options), tokenizer=toy_tokenizer())


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_losses_are_those_of_the_whole_logits(family: str) -> None:
    model = toy_model(family)
    with torch.no_grad():
        logits = model.module(input_ids=WINDOWS).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), WINDOWS[:, 1:].flatten(), reduction="none").view(5, 16)
    torch.testing.assert_close(score_text(model, WINDOWS).nll, expected, rtol=1e-5, atol=1e-5)


def test_divergence_and_agreement_are_those_of_the_whole_logits() -> None:
    model, baseline = toy_model(seed=1), toy_model(seed=0)
    with torch.no_grad():
        mine, theirs = (m.module(input_ids=WINDOWS).logits[:, :-1].log_softmax(-1) for m in (model, baseline))
    scores = score_text(model, WINDOWS, baseline=baseline)
    torch.testing.assert_close(
        scores.kl, kl_div(mine, theirs, log_target=True, reduction="none").sum(-1), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(scores.agrees, mine.argmax(-1) == theirs.argmax(-1))
    torch.testing.assert_close(scores.nll, score_text(model, WINDOWS).nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.baseline_nll, score_text(baseline, WINDOWS).nll, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 999))
def test_sparsegpt_and_exact_mean_agree_on_equal_windows(lengths: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    equal = [3 * torch.rand(lengths[0], generator=draw) for _ in lengths]
    assert perplexity(equal) == pytest.approx(perplexity(equal, "tokens"))
    losses = [3 * torch.rand(length, generator=draw) for length in lengths]
    over = sum(float(w.double().mean()) * (len(w) + 1) for w in losses) / sum(len(w) + 1 for w in losses)
    assert perplexity(losses) == pytest.approx(math.exp(over))
    assert perplexity(losses, "tokens") == pytest.approx(math.exp(float(torch.cat(losses).double().mean())))


def test_a_model_equals_itself_exactly() -> None:
    model = with_tokenizer()
    report = evaluate(model, baseline=model, text=WINDOWS)
    assert report.metric("ppl") == report.metric("ppl", "baseline")
    assert report.metric("log_ppl", "differences").value == 0
    assert report.metric("ppl_ratio", "differences").high == 1
    assert report.metric("kl", "differences").value == 0
    assert report.metric("agreement", "differences").value == 1
    assert evaluate(model, baseline=model, text=WINDOWS).to_json() == report.to_json()


def test_differences_are_taken_window_by_window() -> None:
    model, baseline = toy_model(seed=1), toy_model(seed=0)
    report = evaluate(model, baseline=baseline, text=WINDOWS)
    mine, theirs = (torch.tensor(report.window_nll[name]) for name in ("model", "baseline"))
    change = report.metric("log_ppl", "differences")
    assert change.value == pytest.approx(float((mine - theirs).mean()), abs=1e-6)
    assert change.low is not None
    assert change.high is not None
    assert change.low <= change.value <= change.high
    assert change.n == 5
    ratio = report.metric("ppl").value / report.metric("ppl", "baseline").value
    assert report.metric("ppl_ratio", "differences").value == pytest.approx(ratio, rel=1e-5)


def test_the_report_is_json_with_its_provenance() -> None:
    report = evaluate(with_tokenizer(), text=WINDOWS, seed=3).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["provenance"]["text"]["shape"] == [5, 17]
    assert len(report["provenance"]["text"]["windows_sha256"]) == 64
    assert report["provenance"]["seed"] == 3
    assert "torch" in report["provenance"]["versions"]


def test_text_may_be_splits_a_file_or_the_shipped_text(tmp_path: Path) -> None:
    model = with_tokenizer(max_position_embeddings=600)
    file = tmp_path / "notes.txt"
    file.write_text("all work and no play. " * 60)
    splits = text_splits(model, file, WindowPlan(length=16, calibration=2, selection=2, test=3))
    assert evaluate(model, text=splits).metric("ppl").n == 3
    assert evaluate(model, text=file).metric("ppl").n == 2
    with pytest.raises(DataError, match="no test windows"):
        evaluate(model, text=splits.for_methods())
    with pytest.raises(DataError, match=r"windows must be a LongTensor\[n, T\]"):
        evaluate(model, text=torch.zeros(3, 1, dtype=torch.long))


def test_one_window_has_no_spread() -> None:
    metric = evaluate(toy_model(), text=WINDOWS[:1]).metric("ppl")
    assert metric.se is None
    assert metric.low is None


def test_nan_is_an_error_that_names_model_and_window() -> None:
    model = toy_model()
    with torch.no_grad():
        model.module.get_submodule("model.layers.2.mlp.down_proj").weight[0, 0] = math.nan
    with pytest.raises(NumericsError, match="toy-llama on window 0 is NaN"):
        evaluate(model, text=WINDOWS)
    with pytest.raises(NumericsError, match="toy-llama on window 0"):
        evaluate(toy_model(), baseline=model, text=WINDOWS)


def test_a_wrecked_model_still_has_a_number() -> None:
    assert perplexity([torch.tensor([5000.0, 9000.0])]) == pytest.approx(math.exp(700))


def test_models_of_different_tokenizers_are_not_compared() -> None:
    with pytest.raises(DataError, match="different tokenizers"):
        evaluate(toy_model(), baseline=toy_model(vocab_size=67), text=WINDOWS)
    other = with_tokenizer()
    other.tokenizer.add_tokens(["new"])
    with pytest.raises(DataError, match="different tokenizers"):
        evaluate(with_tokenizer(), baseline=other, text=WINDOWS)


def test_a_task_of_no_name_is_refused_before_any_work() -> None:
    events: list[Event] = []
    with pytest.raises(UnknownNameError, match="did you mean 'piqa'"):
        evaluate(with_tokenizer(), text=WINDOWS, tasks=("pipa",), events=EventStream(events.append))
    assert events == []


def test_progress_counts_windows() -> None:
    events: list[Event] = []
    evaluate(toy_model(), text=WINDOWS, events=EventStream(events.append))
    assert (events[0].stage, events[0].total) == ("evaluate", 5)
    assert events[-2].step == 5
    assert events[-2].metrics["ppl"] > 1


def test_logits_are_never_whole() -> None:
    model = toy_model(max_position_embeddings=600)
    windows = torch.randint(61, (2, 400), generator=torch.Generator().manual_seed(0))
    largest = 0

    def note(_module: object, _inputs: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel() // output.shape[-1])

    handle = model.module.lm_head.register_forward_hook(note)
    score_text(model, windows)
    handle.remove()
    assert largest <= 128


@pytest.mark.parametrize("family", DECODERS)
def test_a_head_caps_logits_where_the_forward_does(family: str) -> None:
    model = toy_model(family)
    model.module.config.final_logit_softcapping = 0.5  # a field that most families keep unread
    logits = model.anatomy.head(last_states(model, WINDOWS))
    torch.testing.assert_close(logits, model.module(input_ids=WINDOWS).logits)


def test_last_states_leave_no_hook_behind() -> None:
    model = toy_model()
    hidden = last_states(model, WINDOWS)
    torch.testing.assert_close(model.anatomy.head(hidden), model.module(input_ids=WINDOWS).logits)
    block = model.module.get_submodule(model.anatomy.blocks[-1])
    assert not block._forward_hooks
