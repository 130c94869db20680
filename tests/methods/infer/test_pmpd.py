"""PMPD from end to end: bits that fall as far as the divergence allows, in an artifact that is written with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lissome
from lissome import pipeline
from lissome.core.errors import AssetError, ConfigError, DataError
from lissome.core.manifest import read_manifest
from lissome.data.assets import fetch
from lissome.engine.decode import Decoder, Session
from lissome.engine.decode.judge import Judge
from lissome.engine.decode.phases import Phases, read_schedule
from lissome.engine.decode.schedulers import FILE, Confidence, read_scheduler, switching
from lissome.engine.decode.session import advance
from lissome.methods.infer.pmpd import Pmpd, search
from lissome.models.load import load_model
from lissome.models.nested.file import NAME, NestedFile, open_nested
from lissome.models.nested.folder import NestedFolder
from lissome.models.nested.make import make
from lissome.ops.kernels import native
from lissome.ops.stats import paired_bootstrap
from tests.export.toys import model_of

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

PROMPTS = np.random.default_rng(0).integers(0, 320, (3, 12)).tolist()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> NestedFile:
    return open_nested(make(model_of("llama"), tmp_path_factory.mktemp("nested") / "toy.safetensors"))


def test_divergence_is_of_the_logits(file: NestedFile) -> None:
    """Against a plain loop: every token alone, both precisions, softmax in float64."""
    judge = Judge(file, PROMPTS, tokens=7, prefill=4, high=4)
    bits = [4, 4, 3, 3, 3, 4]
    kl, same = judge.divergences(bits)
    decoder = Decoder(file)
    for row, (prompt, text) in enumerate(zip(PROMPTS, judge.texts, strict=True)):
        assert text == list(Session(Decoder(file)).generate(prompt, 7))
        found = []
        for own in (bits, [4] * 6):
            decoder.seq_rm(0)
            decoder.forward(prompt, range(12), 0, 4)
            steps = [decoder.forward([text[at]], [12 + at], 0, own[at])[0].astype(np.float64) for at in range(6)]
            found.append(np.stack(steps))
        other, wanted = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in found)
        assert np.allclose(kl[row], (np.exp(wanted) * (wanted - other)).sum(-1), atol=1e-5)
        assert np.array_equal(same[row], wanted.argmax(-1) == other.argmax(-1))
    assert np.allclose(kl[:, :2], 0, atol=1e-6)
    assert (kl[:, 2:5] > 0).all()


def test_several_schedules_at_once_are_each_alone(file: NestedFile) -> None:
    judge = Judge(file, PROMPTS, tokens=7, prefill=4, high=4)
    ways: list[Any] = [[3] * 6, [4] * 6, [[4, 4, 3, 3, 3, 3], [3] * 6, [4] * 6], [3] * 6]
    for (kl, same), way in zip(judge.compared(ways), ways, strict=True):
        alone = Judge(file, PROMPTS, tokens=7, prefill=4, high=4).divergences(way)
        assert np.array_equal(kl, alone[0])
        assert np.array_equal(same, alone[1])
    assert not judge.divergences([4] * 6)[0].any()


def test_the_smallest_switch_within_the_limit(file: NestedFile) -> None:
    options: dict[str, Any] = {"high": 4, "low": 3, "tokens": 9}
    all_ = search(file, PROMPTS, **options, limit=0.0)
    assert [one.switch for one in all_] == [0, 3, 6, 9]
    assert [one.kl for one in all_] == sorted((one.kl for one in all_), reverse=True)
    assert (str(all_[-1].phases), all_[-1].kl, all_[-1].bits) == ("4", 0.0, 4.0)
    assert (str(all_[1].phases), all_[1].bits) == ("4:3,3", (3 * 4 + 5 * 3) / 8)
    for at, one in enumerate(all_[:3]):
        assert search(file, PROMPTS, **options, limit=one.kl)[-1] == all_[at]


def test_a_policy_is_judged_by_what_it_decides(file: NestedFile) -> None:
    """What the judge foresees are the bits of the text that is really written so, as long as that is the same text."""
    judge = Judge(file, PROMPTS, tokens=24, prefill=4, high=4)
    policy = Confidence(4, 4, 3, 24)
    bits = judge.decided(policy)
    assert all(one == sorted(one, reverse=True) for one in bits)
    kl, _ = judge.divergences(bits)
    for row, own in enumerate(bits):
        assert np.array_equal(
            kl[row], Judge(file, PROMPTS[row : row + 1], tokens=24, prefill=4, high=4).divergences(own)[0][0]
        )
        session, steps = Session(Decoder(file)), None
        session.feed(PROMPTS[row], lambda _: 4)
        steps = policy.decide(session)
        for at, token in enumerate(judge.texts[row][:-1]):
            assert steps.bits(at) == own[at]
            if own[at] == 3:
                break  # from here on logits are others
            (logits,) = advance([session], [token], [own[at]])
            steps.see(logits)
    assert str(switching(6, 4, 3, 5, 9)) == "6/4:5,3"


SETTINGS = ("prompt=16", "tokens=9", "texts=2", "kl=1e-9", "fisher=1")


@pytest.mark.long
def test_fit_leaves_an_artifact_that_is_written_by_its_schedule(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = pipeline.plan(toy / "llama", method="pmpd", data=toy / "text.txt", settings=SETTINGS)
    assert "nested" in plan.tags
    report = pipeline.fit(
        toy / "llama", method="pmpd", data=toy / "text.txt", settings=[*SETTINGS[:3], "kl=5"], out=out
    )
    assert any("lissome generate reads it so" in note for note in report.notes)
    assert "ppl" not in report.rows[1].figures  # the model is as it was: nothing is measured twice
    assert {NAME, "schedule.json", "model.safetensors"} <= read_manifest(out).files.keys()
    assert read_schedule(out) == "4/3"
    said = pipeline.generate(out, "the quick", max_new_tokens=8)
    assert said.bits == 3
    assert pipeline.generate(out, "the quick", max_new_tokens=8, schedule="4").bits == 4
    assert pipeline.generate(out, "the quick", max_new_tokens=8, schedule="4:2,3").bits == pytest.approx(23 / 7)
    folder = NestedFolder.open(out)
    ids = folder.text.prompt("the quick")
    schedule = Phases.parse("4/3").after(len(ids))
    session = Session(Decoder(folder.file))
    assert said.text == folder.text.decode(list(session.generate(ids, 8, schedule=schedule, stop=folder.text.ends)))
    assert lissome.load(out).tokenizer is not None  # the model itself is there too, as it was
    moved = lissome.export(out, "nested", tmp_path / "alone")
    assert read_schedule(moved.path) == read_schedule(out)
    assert (moved.path / NAME).read_bytes() == (out / NAME).read_bytes()
    assert pipeline.inspect(moved.path).facts["schedule"] == "4/3"
    rows = pipeline.measure(moved.path).rows
    assert [row.name.removeprefix(f"{moved.path} at ") for row in rows] == ["4 bits", "3 bits", "4/3 bits"]
    read = [row.figures["token_bytes"].metric.value for row in rows]
    assert read[0] > read[1] == read[2]
    other = lissome.export(out, "nested", tmp_path / "other", type="4+2")
    assert read_schedule(other.path) is None


@pytest.mark.long
def test_a_learnt_scheduler(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [*SETTINGS[:3], "kl=0.001", "scheduler=learnt", "prompts=12"]
    pipeline.fit(toy / "llama", method="pmpd", data=toy / "text.txt", settings=settings, out=out)
    fields = json.loads((out / "schedule.json").read_text())
    assert fields["schedule"] == "learnt"
    assert fields["learnt"]["held_out"] == 1
    said = pipeline.generate(out, "the quick", max_new_tokens=8)
    folder, learnt = NestedFolder.open(out), read_scheduler(out / FILE)
    ids = folder.text.prompt("the quick")
    session = Session(Decoder(folder.file))
    session.feed(ids, lambda _: 4)
    phases = learnt.decide(session)
    assert isinstance(phases, Phases)
    assert str(phases) in {"4/3", "4:3,3", "4:6,3", "4"}
    assert said.bits == phases.average(7)
    assert pipeline.generate(out, "the quick", max_new_tokens=8, schedule=str(phases)).text == said.text
    moved = lissome.export(out, "nested", tmp_path / "alone").path
    assert pipeline.generate(moved, "the quick", max_new_tokens=8, schedule="learnt").text == said.text
    assert pipeline.inspect(moved).facts["schedule"] == "learnt"
    assert len(pipeline.measure(moved).rows) == 2


@pytest.mark.long
@pytest.mark.parametrize("word", ["activation", "confidence", "random"])
def test_controls_are_chosen_like_it(word: str, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [*SETTINGS[:3], "kl=0.001", f"scheduler={word}", "prompts=12"]
    pipeline.fit(toy / "llama", method="pmpd", data=toy / "text.txt", settings=settings, out=out)
    fields = json.loads((out / "schedule.json").read_text())
    assert fields["schedule"] == word
    assert 3 <= fields[word]["bits"] <= 4
    said = pipeline.generate(out, "the quick", max_new_tokens=8)
    assert 3 <= said.bits <= 4
    assert pipeline.generate(out, "the quick", max_new_tokens=8, schedule=word).text == said.text
    with pytest.raises(ConfigError, match=f"it has a {word} one"):
        pipeline.generate(out, "the quick", max_new_tokens=8, schedule="learnt")


@pytest.mark.long
def test_the_same_again_and_tight_limits(toy: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in "ab"]
    for out in outs:
        pipeline.fit(toy / "llama", method="pmpd", data=toy / "text.txt", settings=SETTINGS, out=out)
    assert (outs[0] / NAME).read_bytes() == (outs[1] / NAME).read_bytes()
    assert (outs[0] / "schedule.json").read_bytes() == (outs[1] / "schedule.json").read_bytes()
    fields = json.loads((outs[0] / "schedule.json").read_text())
    assert fields["schedule"] == "4"
    assert [one["switch"] for one in fields["tried"]] == [0, 3, 6, 9]


def test_refusals(toy: Path) -> None:
    for wrong in ({"layout": "4"}, {"high": 3}, {"low": 4}, {"high": 5}, {"low": 2}, {"layout": "3,1"}, {"kl": -1.0}):
        with pytest.raises(ConfigError):
            Pmpd.Config(**wrong)  # type: ignore[arg-type]
    assert Pmpd.Config(layout="4+2+2").bits() == (8, 6)
    assert Pmpd.Config(layout="3+1/kmeans").bits() == (4, 3)
    assert Pmpd.Config(layout="4+2+2", high=6, low=4).bits() == (6, 4)
    with pytest.raises(DataError, match="set prompt lower"):
        pipeline.plan(toy / "llama", method="pmpd", data=toy / "text.txt", settings=["prompt=5000"])


def test_a_schedule_is_of_nested_weights_alone(toy: Path) -> None:
    with pytest.raises(ConfigError, match="--to nested"):
        pipeline.generate(toy / "llama", "the", schedule="4")


@pytest.mark.slow
def test_errors_early_cost_more_than_errors_late(tmp_path: Path) -> None:
    """At equal average bits, high bits first diverge less than low bits first; on a model that was trained."""
    try:
        model = load_model(fetch("smollm2-135m"))
    except AssetError as error:
        pytest.skip(f"the model is not here and cannot be fetched: {error}")
    file = open_nested(make(model, tmp_path / "smollm2.safetensors"))
    tokens, texts = 49, 24
    assert model.tokenizer is not None
    words = (Path(__file__).parents[3] / "docs" / "explanation" / "evaluation.md").read_text().split()
    prompts = [model.tokenizer(" ".join(words[9 * at : 9 * at + 20]))["input_ids"][:24] for at in range(texts)]
    judge, half = Judge(file, prompts, tokens=tokens, prefill=4, high=4), (tokens - 1) // 2
    first, _ = judge.divergences([4] * half + [3] * half)
    last, _ = judge.divergences([3] * half + [4] * half)
    interval = paired_bootstrap((first - last).mean(-1))
    assert interval.high < 0
