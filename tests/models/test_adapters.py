"""Adapters: identity when added, exact when merged, and a folder that stock peft opens."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lissome.core.errors import ArtifactError, ConfigError, NumericsError
from lissome.models.adapters import adaptable, add_lora, load_adapters, merge_lora, save_adapters
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.testing.toys import TRANSFORMERS, toy_model

IDS = torch.arange(3, 25).view(2, 11)


@torch.no_grad()
def logits(model: Model) -> Tensor:
    return model.module(input_ids=IDS).logits


def cut_model(family: str) -> Model:
    """A toy with per-layer widths and removed branches."""
    model = toy_model(family)
    space = model.anatomy.space(finest=True)
    subnet = dict(space.sample(random.Random(3)))
    subnet |= {"layers.0.attention": 0, "layers.1.mlp": 0, "layers.2.attention": 1, "layers.3.mlp": 1}
    subnet |= {"layers.2.mlp": 1, "layers.2.mlp.width": 17, "layers.3.mlp.width": 23}
    return extract(model, subnet)


def shaken(model: Model, **settings: int) -> Model:
    """The model with adapters that do something."""
    add_lora(model, **settings)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_added_is_identity_and_merged_is_equal(family: str) -> None:
    model = cut_model(family)
    before, names = logits(model), [name for name, _ in model.module.named_parameters()]
    add_lora(model, rank=3)
    assert torch.equal(logits(model), before)
    trained = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    merge_lora(model)
    shaken(model, rank=3)
    unmerged = logits(model)
    assert float((unmerged - before).abs().max()) > 1e-2
    merge_lora(model)
    assert [name for name, _ in model.module.named_parameters()] == names
    assert float((logits(model) - unmerged).abs().max()) <= 1e-5 * float(unmerged.abs().max())
    assert torch.equal(logits(model.derived(copy.deepcopy(model.module))), logits(model))


def test_same_seed_same_adapters() -> None:
    states = []
    for seed in (0, 0, 1):
        model = toy_model()
        torch.rand(1)  # the global generator must not matter
        add_lora(model, seed=seed)
        states.append(model.module.state_dict()["model.layers.0.mlp.up_proj.lora_A.default.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_kinds_choose_layers() -> None:
    model = toy_model()
    assert len(adaptable(model)) == 4 * 7
    assert adaptable(model, ["up_proj"]) == tuple(f"model.layers.{index}.mlp.up_proj" for index in range(4))
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        adaptable(model, ["q_porj"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_stock_peft_opens_the_folder(family: str, tmp_path: Path) -> None:
    model = shaken(cut_model(family), rank=4, alpha=12)
    expected = logits(model)
    save_adapters(model, tmp_path / "adapters")
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    stock = PeftModel.from_pretrained(cut_model(family).module, tmp_path / "adapters")
    with torch.no_grad():
        assert torch.allclose(stock(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-6)
    ours = cut_model(family)
    load_adapters(ours, tmp_path / "adapters")
    assert torch.equal(logits(ours), expected)
    assert any(parameter.requires_grad for parameter in ours.module.parameters())
    merge_lora(ours)


def test_refusals(tmp_path: Path) -> None:
    model = shaken(toy_model())
    with pytest.raises(ConfigError, match="already"):
        add_lora(model)
    save_adapters(model, tmp_path / "a")
    with pytest.raises(ArtifactError, match="do not fit"):
        load_adapters(cut_model("llama"), tmp_path / "a")
    with pytest.raises(ConfigError, match="no adapters"):
        save_adapters(toy_model(), tmp_path / "b")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ArtifactError, match="not a readable adapter folder"):
        load_adapters(toy_model(), tmp_path / "a")
    with pytest.raises(ArtifactError, match="not a readable adapter folder"):
        load_adapters(toy_model(), tmp_path / "nothing")
    broken = shaken(toy_model())
    broken.module.get_parameter("model.layers.3.mlp.up_proj.lora_A.default.weight").data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.3\.mlp\.up_proj"):
        merge_lora(broken)
