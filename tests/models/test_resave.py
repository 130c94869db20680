"""`save_pretrained` of transformers on cut models: what it writes opens again and computes the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

from lissome.core.errors import ConfigError
from lissome.models.auto import AUTOS
from lissome.models.binding import extract
from lissome.models.labels import with_answers, with_labels
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing.toys import toy_inputs, toy_model

FAMILIES = ("llama", "gpt2", "bert-tokens", "mamba2", "gemma3", "vit-labels", "whisper")
OPENERS = {auto.__name__: auto for auto in AUTOS}


def small(family: str) -> Model:
    whole = toy_model(family)
    return extract(whole, whole.space().sample(Random(4)))


def output(module: Any, model: Model) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(**toy_inputs(model))[0]
    return found


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_opens_again(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = small(family)
    wanted = output(model.module, model)
    model.save(tmp_path / "ours")
    opened = load_model(tmp_path / "ours").module
    for name, module in {"cut": model.module, "read": opened, "copied": copy.deepcopy(opened)}.items():
        module.save_pretrained(tmp_path / name, **options)  # type: ignore[operator]
        assert torch.equal(output(load_model(tmp_path / name).module, model), wanted)
        assert "_name_or_path" not in (tmp_path / name / "config.json").read_text()


def test_the_classes_of_transformers_do_it_too(tmp_path: Path) -> None:
    model = small("llama")
    model.save(tmp_path / "ours")
    module = OPENERS["AutoModelForCausalLM"].from_pretrained(tmp_path / "ours")
    module.save_pretrained(tmp_path / "theirs")
    again = OPENERS["AutoModelForCausalLM"].from_pretrained(tmp_path / "theirs")
    assert torch.equal(output(again, model), output(model.module, model))


def test_a_head_that_finds_answers_opens_by_its_class(tmp_path: Path) -> None:
    model = with_answers(small("bert"))
    model.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "lissome", "blocks are uneven"
    opened = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "ours")
    assert torch.equal(output(opened, model), output(model.module, model))


def test_a_copy_saves_its_own_weights(tmp_path: Path) -> None:
    model = small("llama")
    other: Any = copy.deepcopy(model.module)
    other.lm_head.weight.data.zero_()
    other.save_pretrained(tmp_path)
    assert not output(load_model(tmp_path).module, model).any()


def test_new_heads_keep_it(tmp_path: Path) -> None:
    labelled: Any = with_labels(small("bert"), ("no", "yes")).module
    labelled.save_pretrained(tmp_path)
    assert torch.equal(output(load_model(tmp_path).module, small("bert")), output(labelled, small("bert")))


def test_what_a_stock_configuration_says_stays_stock(tmp_path: Path) -> None:
    whole = toy_model("llama")
    space = whole.space()
    widths = {f"layers.{index}.mlp.width": space.by_name[f"layers.{index}.mlp.width"].choices[0] for index in range(4)}
    even: Any = extract(whole, space.full.replace(widths), space=space).module
    even.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    module: Any = small("llama").module
    with pytest.raises(ConfigError, match="upload the folder"):
        module.save_pretrained(tmp_path / "a", push_to_hub=True)
    with pytest.raises(ConfigError, match="save the whole model"):
        module.model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
