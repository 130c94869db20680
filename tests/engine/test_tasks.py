"""Choice tasks: the harness sees the same log-likelihoods as a plain forward and as its own HFLM."""

import os
import random
from dataclasses import replace

import pytest
import torch

from lissome.core.errors import AssetError, DataError, NumericsError
from lissome.core.events import Event, EventStream
from lissome.data.choice import Question, find_task
from lissome.data.local import data_dir
from lissome.engine.evaluate import evaluate
from lissome.engine.tasks import answer, loglikelihoods
from lissome.models.model import Model
from lissome.testing.tokenizers import toy_tokenizer
from lissome.testing.toys import toy_model

pytest.importorskip("lm_eval", reason="the eval extra is not installed")


def toy(bos: bool = False, seed: int = 0) -> Model:
    return replace(toy_model("llama", seed=seed), tokenizer=toy_tokenizer(bos=bos))


def words(rng: random.Random, size: int) -> str:
    return "x" + "".join(rng.choice("abcdefgh ") for _ in range(size)) + "y"


def ordinary(count: int = 10, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)
    questions = []
    for index in range(count):
        context = words(rng, rng.randint(5, 40))
        options = tuple(words(rng, rng.randint(0, 7)) for _ in range(3))
        questions.append(Question(index, (context,) * 3, options, rng.randrange(3)))
    return questions


def partial(count: int = 10) -> list[Question]:
    rng = random.Random(7)
    return [
        Question(index, (words(rng, 12), words(rng, 9)), (words(rng, 8),) * 2, rng.randrange(2))
        for index in range(count)
    ]


def direct(model: Model, context: str, option: str) -> float:
    """Score one option with the whole logits of one unpadded forward."""
    ids = model.tokenizer(context + " " + option)["input_ids"]
    size = len(model.tokenizer(" " + option, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        scores = model.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(scores[k - 1, ids[k]] for k in range(len(ids) - size, len(ids))))


def best(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("questions", [ordinary(), partial()], ids=["ordinary", "partial"])
def test_answers_are_those_of_plain_forwards(bos: bool, questions: list[Question]) -> None:
    model = toy(bos)
    answers = answer(model, "toy", questions)
    assert answers.indices == tuple(question.index for question in questions)
    for question, acc, acc_norm in zip(questions, answers.acc, answers.acc_norm, strict=True):
        scores = [direct(model, c, o) for c, o in zip(question.contexts, question.options, strict=True)]
        assert acc == (best(scores) == question.gold)
        if not question.partial:
            sizes = [len(option) for option in question.options]
            normed = [score / size for score, size in zip(scores, sizes, strict=True)]
            assert acc_norm == (best(normed) == question.gold)


@pytest.mark.parametrize("bos", [False, True])
def test_log_likelihoods_are_those_of_the_harness_own_model(bos: bool) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = toy(bos)
    pairs = [(q.contexts[0], f" {option}") for q in ordinary() for option in q.options]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    theirs = HFLM(
        pretrained=model.module, tokenizer=model.tokenizer, backend="causal", device="cpu", batch_size=4, max_length=128
    )
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    encoded = [theirs._encode_pair(*pair) for pair in pairs]
    for (mine, greedy), (wanted, wanted_greedy) in zip(loglikelihoods(model, encoded, 128), expected, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-3)
        assert greedy == wanted_greedy


def test_long_contexts_lose_their_beginning() -> None:
    model = toy()
    context, option = list(range(4, 30)), [5, 6, 7]
    (score, _), (short, _) = loglikelihoods(model, [(context, option), (context[-8:], option)], max_length=10)
    assert score == pytest.approx(short)


def test_options_of_one_token_share_a_forward() -> None:
    model = toy()
    runs = []
    handle = model.module.model.layers[0].register_forward_hook(lambda _m, i, _o: runs.append(len(i[0])))
    results = loglikelihoods(model, [([4, 5, 6], [7]), ([4, 5, 6], [8]), ([4, 5], [6, 9])], max_length=64)
    handle.remove()
    assert sum(runs) == 1
    assert len({score for score, _ in results}) == 3


def test_an_answer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="an answer has 9 tokens, but toy-llama reads 8 at most"):
        loglikelihoods(toy(), [([1], [2] * 8), ([1], [2] * 9)], 8)
    assert len(loglikelihoods(toy(), [([1], [2] * 8)], 8)) == 1


def test_nan_is_an_error() -> None:
    model = toy()
    with torch.no_grad():
        model.module.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(NumericsError):
        loglikelihoods(model, [([4, 5], [6])], max_length=64)


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(DataError, match="no questions"):
        answer(toy(), "toy", [])
    with pytest.raises(DataError, match="tokenizer"):
        answer(toy_model(), "toy", ordinary())
    with pytest.raises(DataError, match="mixes questions"):
        answer(toy(), "toy", [*ordinary(2), *partial(2)])


def test_progress_and_silence(capfd: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    answer(toy(), "toy", ordinary(), events=EventStream(events.append))
    assert (events[0].stage, events[0].total) == ("task toy", 30)
    assert events[-1].step == 30
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("LISSOME_DATA", str(tmp_path_factory.mktemp("empty")))


def test_a_task_without_data_says_where_it_looked(no_data: None) -> None:
    with pytest.raises(AssetError, match=r"choice/boolq.jsonl is not in .*; set LISSOME_DATA"):
        evaluate(toy(), text=None, tasks=("boolq",))


def test_a_report_pairs_the_answers_of_both_models() -> None:
    name = "openbookqa"
    if not (data_dir() / find_task(name).file).is_file():
        pytest.skip("the choice data is not in LISSOME_DATA")
    model, baseline = toy(seed=1), toy()
    report = evaluate(model, baseline=baseline, text=None, tasks=(name,), limit=20, seed=1)
    facts = report.answers[name]
    assert len(facts["indices"]) == 20
    gap = (sum(facts["model.acc"]) - sum(facts["baseline.acc"])) / 20
    assert report.metric(f"{name}.acc", "differences").value == pytest.approx(gap)
    assert 0 <= facts["mcnemar_p.acc"] <= 1
    assert report.provenance["tasks"][name]["chance"] == 0.25
    assert report.metric(f"{name}.acc").n == 20
    assert os.environ["HF_HUB_OFFLINE"] == "1"
