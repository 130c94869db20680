"""Virtual tokens: callers see as many positions as they gave, caches hold them once, stock peft opens the folder."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lissome.core.errors import ArtifactError, ConfigError, UnsupportedModelError
from lissome.engine.hooks import Task
from lissome.engine.recover import token_loss
from lissome.engine.train import TrainConfig, train
from lissome.models.adapters.prompts import add_prompt, load_prompt, prompt_of, remove_prompt, save_prompt
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.testing.conformance import check_padding, check_subnet, difference, outputs, stepwise
from lissome.testing.networks import network_model
from lissome.testing.toys import STATES, toy_ids, toy_inputs, toy_model

FAMILIES = ("llama", "gemma3", "gpt2", "opt", "bert", "bert-labels")


def prompted(family: str, tokens: int = 3) -> Model:
    model = toy_model(family)
    add_prompt(model, tokens, seed=1)
    prompt = prompt_of(model)
    assert prompt is not None
    prompt.tokens.data += 0.3
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_real_tokens_is_that_text(family: str) -> None:
    """Virtual tokens that are embeddings of ids give what the ids before the text give."""
    model, inputs = toy_model(family), toy_inputs(toy_model(family))
    add_prompt(model, 3, seed=1)
    ids = torch.randint(61, (3,), generator=torch.Generator().manual_seed(1))
    longer = {"input_ids": torch.cat([ids.expand(2, -1), inputs["input_ids"]], 1)}
    expected = outputs(toy_model(family).module, longer)
    scale = getattr(model.module.get_input_embeddings(), "embed_scale", None)
    if scale is not None:  # Gemma multiplies inside of its embedding; virtual tokens stand behind that
        prompt_of(model).tokens.data *= scale
    got = outputs(model.module, inputs)
    assert got.shape[1] == (9 if family != "bert-labels" else 3)
    assert difference(got, expected if family == "bert-labels" else expected[:, 3:]) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", *STATES])
def test_step_by_step_through_the_cache(family: str) -> None:
    model, inputs = prompted(family), toy_inputs(toy_model(family))
    whole = outputs(model.module, inputs)
    assert difference(stepwise(model.module, inputs, prompt=2), whole) <= 1e-5
    check_padding(model, inputs["input_ids"])
    with torch.no_grad():
        written = model.module.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    again = outputs(model.module, {"input_ids": written[:, :-1]})
    assert torch.equal(again[:, 8:].argmax(-1), written[:, 9:])


def test_they_train_and_nothing_else_does() -> None:
    model, ids = toy_model("llama"), toy_ids(toy_model("llama"), 0, 8, 12)
    add_prompt(model, 4)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    config = TrainConfig(steps=20, lr=0.1, batch=8, precision="fp32")
    result = train(Task(module=model.module, loss=token_loss(model), data=ids), config, seed=0)
    assert result.losses[-1] < result.losses[0]
    changed = {name for name, value in model.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.prompt.tokens"}
    remove_prompt(model)
    assert torch.equal(
        outputs(model.module, {"input_ids": ids}), outputs(toy_model("llama").module, {"input_ids": ids})
    )
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("family", ["vit", "vit-labels"])
def test_beside_patches_they_are_further_positions(family: str, tmp_path: Path) -> None:
    """What an image gives is what its embedded patches and the virtual tokens give, put through the blocks by hand."""
    model, inputs = toy_model(family), toy_inputs(toy_model(family))
    add_prompt(model, 3, seed=1)
    prompt = prompt_of(model)
    assert prompt is not None
    prompt.tokens.data += 0.3
    plain: Any = toy_model(family).module
    with torch.no_grad():
        states = plain.base_model.embeddings(inputs["pixel_values"])
        count = states.shape[1]
        states = torch.cat([states, prompt.tokens.expand(len(states), -1, -1)], 1)
        for layer in plain.base_model.layers:
            states = layer(states)
        states = plain.base_model.layernorm(states)[:, :count]
        expected = plain.classifier(states[:, 0]) if family == "vit-labels" else states
    assert difference(outputs(model.module, inputs), expected) <= 1e-5
    assert difference(outputs(copy.deepcopy(model.module), inputs), expected) <= 1e-5
    model.save(tmp_path / "whole")
    again = load_model(tmp_path / "whole")
    assert torch.equal(outputs(again.module, inputs), outputs(model.module, inputs))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_prompt(toy_model("vit", hidden_size=32), tmp_path / "whole" / "prompt")
    found = toy_model(family)
    check_subnet(model, found.space().sample(Random(3)), inputs)
    remove_prompt(model)
    assert torch.equal(outputs(model.module, inputs), outputs(found.module, inputs))
    assert all(parameter.requires_grad for parameter in model.module.parameters())


_FRESH = """
import sys, torch, transformers
from peft import PeftModel
from safetensors.torch import load_file
base = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2]).eval()
model = PeftModel.from_pretrained(base, sys.argv[3]).eval()
given = load_file(sys.argv[4])
expected = given.pop("expected")
with torch.no_grad():
    got = model(**given).logits[:, -expected.shape[1]:]
print("error", float((got - expected).abs().max() / expected.abs().max()))
assert not any(name.startswith("lissome") for name in sys.modules)
"""


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fresh_process_with_stock_peft_computes_the_same(family: str, tmp_path: Path) -> None:
    base = toy_model(family).save(tmp_path / "base")
    model, inputs = prompted(family), toy_inputs(toy_model(family))
    save_prompt(model, tmp_path / "prompt")
    save_file({**inputs, "expected": outputs(model.module, inputs)}, tmp_path / "expected.safetensors")
    arguments = [type(model.module).__name__, base, tmp_path / "prompt", tmp_path / "expected.safetensors"]
    command = [sys.executable, "-W", "ignore", "-c", _FRESH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) <= 1e-5


def test_folders(tmp_path: Path) -> None:
    model, inputs = prompted("llama"), toy_inputs(toy_model("llama"))
    model.save(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_type"] == "llama"
    again = load_model(tmp_path / "whole")
    assert torch.equal(outputs(again.module, inputs), outputs(model.module, inputs))
    alone = toy_model("llama")
    load_prompt(alone, tmp_path / "whole" / "prompt")
    assert torch.equal(outputs(alone.module, inputs), outputs(model.module, inputs))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_prompt(toy_model("llama", hidden_size=32), tmp_path / "whole" / "prompt")
    with pytest.raises(ArtifactError, match="not a readable folder"):
        load_prompt(toy_model("llama"), tmp_path / "nothing")


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="already"):
        add_prompt(prompted("llama"), 3)
    with pytest.raises(ConfigError, match="at least 1"):
        add_prompt(toy_model("llama"), 0)
    with pytest.raises(UnsupportedModelError, match="one row of tokens"):
        add_prompt(toy_model("whisper"), 3)
    with pytest.raises(UnsupportedModelError, match="one row of tokens"):
        add_prompt(network_model("resnet"), 3)
    with pytest.raises(ConfigError, match="no virtual tokens"):
        save_prompt(toy_model("llama"), Path("nowhere"))
