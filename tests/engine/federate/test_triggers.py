"""Clients that say whether there is a reason to train, public examples at the server, and a pull to what came."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lissome.core.errors import ConfigError, DataError
from lissome.data.images import write_images
from lissome.engine.federate.client import Worker
from lissome.engine.federate.continual import ContinualClient, Trigger
from lissome.engine.federate.lessons import Classes, Pictures, Tokens
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.public import ServerPhase, public_lesson
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.training import global_tensors
from lissome.engine.federate.triggers import Triggered
from lissome.engine.train import TrainConfig
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model
from tests.engine.federate.fleet import (
    QUICK,
    digest,
    encoder,
    federation,
    lesson,
    pictures,
    rows,
    seen,
    subnet_program,
    training_clients,
)

LEARNING = TrainConfig(steps=12, lr=1e-2, batch=8, schedule="constant", precision="fp32")


def shifted(seed: int) -> Classes:
    """Two slices of time: first class 0, then class 2."""
    data = rows(60, seed)
    chosen = [at for label in (0, 2) for at in range(60) if data.labels[at] == label]
    halves = [chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]]
    return Classes(data.some([*halves[0][:12], *halves[1][-12:]]), rows(12, 1000 + seed), 3)


def continual(folder: Path, trigger: Trigger, *, count: int = 2, rounds: int = 6, least: int = 1) -> Federation:
    model = encoder()
    program = Triggered(model, global_tensors(model, lesson(0)), lesson=lesson(77))
    program.least, program.sends = least, trigger == "drift"
    who = {}
    for index in range(count):
        client = ContinualClient(
            facts=Profile(name=f"c{index}", examples=0), base=model, lesson=shifted(index), config=LEARNING, slices=2,
            period=3, trigger=trigger, trigger_samples=10, trigger_drift=0.3,
        )  # fmt: skip
        who[f"c{index}"] = partial(Worker, client, ClientStore(folder / f"c{index}"))
    return federation(program, who, folder / "server", rounds=rounds)


def trained_in(job: Federation) -> list[int]:
    return [one.number for one in job.rounds if one.answered]


def test_new_rows_are_a_reason(tmp_path: Path) -> None:
    job = continual(tmp_path, "samples")
    job.run()
    assert trained_in(job) == [1, 4], "once in each slice"
    assert all(one.ok for one in job.rounds), "a round without a reason is no failure"
    assert [one.metrics["trigger/clients"] for one in job.rounds[1:]] == [2, 0, 0, 2, 0, 0]
    assert job.bytes(action="trigger").payload == 0


def test_a_rising_loss_is_a_reason(tmp_path: Path) -> None:
    job = continual(tmp_path, "drift")
    job.run()
    found = trained_in(job)
    assert found[0] == 1
    assert 4 in found, "the second slice is another one"
    assert not {2, 3} & set(found), "what was learned does not drift"


def test_too_few_reasons_train_nothing(tmp_path: Path) -> None:
    job = continual(tmp_path, "samples", rounds=2, least=3)
    before = digest(job.program.tensors)
    job.run()
    assert not trained_in(job)
    assert digest(job.program.tensors) == before


def test_a_kill_between_the_question_and_the_training_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = continual(tmp_path / "calm", "drift", rounds=4)
    calm.run()
    killed = continual(tmp_path / "killed", "drift", rounds=4)
    conclude = Triggered.conclude

    def fatal(self: Triggered, phase: Any, round: int, *given: Any) -> Any:
        if round == 4 and phase.action == "train":
            raise KeyboardInterrupt
        return conclude(self, phase, round, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Triggered, "conclude", fatal)
        with pytest.raises(KeyboardInterrupt):
            killed.run()
    again = continual(tmp_path / "killed", "drift", rounds=4)
    again.run()
    assert digest(again.program.tensors) == digest(calm.program.tensors)


def test_the_server_learns_from_public_examples_too(tmp_path: Path) -> None:
    def run(folder: Path, own: bool, rounds: int) -> Federation:
        model = encoder()
        program = subnet_program(model, private=("task/*",))
        if own:
            program.own = ServerPhase(lesson=lesson(5, 64), config=LEARNING, seed=1)
        made = training_clients(model, ("a", "b"), folder, private=("task/*",))
        job = federation(program, made, folder / "server", rounds=rounds)
        job.run()
        return job

    alone, taught = run(tmp_path / "alone", False, 2), run(tmp_path / "taught", True, 2)
    assert "train/public" in taught.rounds[-1].metrics
    assert "train/public" not in alone.rounds[-1].metrics
    assert digest(alone.program.tensors) != digest(taught.program.tensors)
    assert digest(run(tmp_path / "again", True, 2).program.tensors) == digest(taught.program.tensors)
    head = taught.program.model.module  # type: ignore[attr-defined]
    assert all(value.requires_grad for value in head.parameters()), "what was held still is trained again"


def test_public_examples_are_of_the_same_kind_and_judge_nobody(tmp_path: Path) -> None:
    model = replace(toy_model("llama", vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())
    (tmp_path / "public.txt").write_text("the fox runs over the lazy dog and the hen. " * 30)
    other = torch.full((2, 8), 3)
    found = public_lesson(model, Tokens(other, other), str(tmp_path / "public.txt"))
    assert isinstance(found, Tokens)
    assert len(found) > 3
    assert found.data.shape[1] == 8
    with pytest.raises(ConfigError, match="public texts are among"):
        public_lesson(model, Tokens(other, found.data[:1]), str(tmp_path / "public.txt"))
    with pytest.raises(DataError, match=r"x\.jsonl"):
        public_lesson(model, Tokens(other, other), str(tmp_path / "x.jsonl"))


def test_public_images_are_others_than_those_that_judge(tmp_path: Path) -> None:
    model = toy_model("vit-labels")
    lesson = seen(model, 0)
    found = public_lesson(model, lesson, str(write_images(pictures(9, seed=7), tmp_path / "public.npz")))
    assert isinstance(found, Pictures)
    assert (len(found), found.held, found.classes) == (9, 0, 3)
    assert found.data.images.labels == pictures(9, seed=7).labels
    with pytest.raises(ConfigError, match="12 public images are among"):
        public_lesson(model, lesson, str(write_images(lesson.held_out.images, tmp_path / "same.npz")))
    with pytest.raises(ConfigError, match="something else"):
        public_lesson(model, object(), "x.npz")  # type: ignore[arg-type]


def test_a_client_is_pulled_to_what_came(tmp_path: Path) -> None:
    moved = []
    for weight in (0.0, 30.0):
        model = encoder()
        program = subnet_program(model)
        before = {name: value.clone() for name, value in program.tensors.items()}
        made = training_clients(model, ("a",), tmp_path / str(weight), config=QUICK, proximal=weight)
        federation(program, made, tmp_path / str(weight) / "server", rounds=1).run()
        moved.append(sum(float((program.tensors[name] - value).square().sum()) for name, value in before.items()))
    assert 0 < moved[1] < 0.9 * moved[0]
