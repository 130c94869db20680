"""Mixers with another forward: as stock ones wherever those are right; without a scan a gated convolution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissome.models.artifact import load_folder
from lissome.models.load import load_model
from lissome.models.mixers import ChunkedMamba, ScanlessMamba, has_scan, scan_in_chunks, scanless
from lissome.models.model import Model
from lissome.testing.conformance import TOLERANCE, check_padding, difference, stepwise
from lissome.testing.toys import STATES, toy_ids, toy_model, toy_module

_BIASED = {"mamba": {"use_bias": True}, "mamba2": {"use_bias": True}, "bamba": {"mamba_proj_bias": True}}


def _pair(family: str, **changes: Any) -> tuple[nn.Module, nn.Module]:
    stock = toy_module(family, **changes)
    return stock, scan_in_chunks(copy.deepcopy(stock))


def _ids(length: int = 70) -> Tensor:
    return torch.randint(3, 61, (2, length), generator=torch.Generator().manual_seed(0))


def _mixer(module: nn.Module) -> Any:
    return next(part for part in module.modules() if hasattr(part, "A_log") or isinstance(part, ScanlessMamba))


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("biased", [False, True])
def test_outputs_are_those_of_the_stock_mixer(family: str, biased: bool) -> None:
    stock, fast = _pair(family, **_BIASED[family] if biased else {})
    with torch.no_grad():
        assert difference(fast(_ids()).logits, stock(_ids()).logits) <= TOLERANCE
    assert fast.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize("family", STATES)
def test_generation_is_that_of_the_stock_mixer(family: str) -> None:
    stock, fast = _pair(family)
    ids = _ids(9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(fast.generate(ids, **options), stock.generate(ids, **options))


@pytest.mark.parametrize("family", STATES)
def test_a_bias_does_not_enter_from_padding(family: str) -> None:
    model = toy_model(family, **_BIASED[family])
    check_padding(model, toy_ids(model, 0, 2, 9))


@pytest.mark.parametrize("family", STATES)
def test_gradients_are_those_of_the_stock_mixer(family: str) -> None:
    stock, fast = _pair(family)
    for module in (stock.train(), fast.train()):
        module(_ids(), labels=_ids()).loss.backward()
    for one, other in zip(fast.parameters(), stock.parameters(), strict=True):
        assert difference(one.grad, other.grad) <= TOLERANCE


@pytest.mark.parametrize("family", STATES)
def test_half_precision_is_near_the_stock_mixer(family: str) -> None:
    stock, fast = (module.bfloat16() for module in _pair(family))
    with torch.no_grad():
        assert difference(fast(_ids()).logits.float(), stock(_ids()).logits.float()) <= 0.03


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("cut", [1, 2, 7, 33])
def test_a_prompt_in_two_pieces_is_one_prompt(family: str, cut: int) -> None:
    module, ids = toy_model(family).module, _ids(40)
    with torch.no_grad():
        whole = module(ids, use_cache=False).logits
        first = module(ids[:, :cut], use_cache=True)
        cache = {name: first[name] for name in ("past_key_values", "cache_params") if name in first}
        positions = {"position_ids": torch.arange(cut, 40)[None]} if family == "bamba" else {}
        second = module(ids[:, cut:], use_cache=True, **cache, **positions).logits
    assert difference(torch.cat([first.logits, second], 1), whole) <= TOLERANCE


@pytest.mark.parametrize("family", ["mamba2", "bamba"])
def test_limits_of_the_step_size_hold_when_decoding_too(family: str) -> None:
    module, ids = toy_model(family, time_step_limit=(0.05, 0.4)).module, _ids(12)
    with torch.no_grad():
        whole = module(ids, use_cache=False).logits
    assert difference(stepwise(module, {"input_ids": ids}, prompt=3), whole) <= TOLERANCE
    assert difference(toy_model(family).module(ids).logits.detach(), whole) > TOLERANCE, "the limits do nothing here"


def test_without_a_scan_a_mamba_mixer_is_a_gated_convolution() -> None:
    mixer = _mixer(toy_module("mamba"))
    mixer.__class__ = scanless(mixer)
    assert not has_scan(mixer)
    hidden = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x, gate = mixer.in_proj(hidden).chunk(2, -1)
        weight, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
        past = torch.cat([torch.zeros(2, 3, 48), x], 1)
        x = torch.stack([(past[:, t : t + 4] * weight.T).sum(1) for t in range(9)], 1) + bias
        expected = mixer.out_proj(x * torch.sigmoid(x) * gate * torch.sigmoid(gate))
        assert difference(mixer(hidden), expected) <= TOLERANCE


def test_what_is_loaded_scans_in_chunks(tmp_path: Any) -> None:
    stock = toy_module("mamba")
    folder = Model(stock).save(tmp_path / "mamba")
    assert type(_mixer(stock)).__name__ == "MambaMixer", "saving leaves a module alone"
    assert isinstance(_mixer(load_folder(folder).module), ChunkedMamba)
    assert isinstance(_mixer(load_model(stock).module), ChunkedMamba)
    assert has_scan(_mixer(stock))


def test_open_limits_are_written_as_transformers_writes_them(tmp_path: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = toy_model("mamba2")
    folder = model.save(tmp_path / "mamba2")
    assert '"__float__": "Infinity"' in (folder / "config.json").read_text()
    assert list(AutoConfig.from_pretrained(folder).time_step_limit) == [0.0, float("inf")]
    ids = toy_ids(model, 0, 2, 9)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert difference(model.module(ids).logits, logits) <= TOLERANCE
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('{\n      "__float__": "Infinity"\n    }', "Infinity"))
    with torch.no_grad():  # as configurations on the hub have it
        assert torch.equal(load_folder(folder).module(ids).logits, model.module(ids).logits)
