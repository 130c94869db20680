"""What is gone of a mixer is really gone: layers, rows, channels, states, bytes; what stays computes what it must."""

# D residual width, C channels, N states, H heads of P channels, G groups

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lissome.core.errors import SubnetError, UnsupportedModelError
from lissome.cost.counted import Counter
from lissome.models.anatomy import anatomy_of
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.ops.scan import ssd_scan_reference
from lissome.testing.conformance import TOLERANCE, difference, generates, logits
from lissome.testing.toys import STATES, toy_ids, toy_model, toy_module

_TOKENS = 11


def _mixer(model: Model, block: int) -> Any:
    return model.module.get_submodule(model.anatomy.by_name[f"layers.{block}.mixer"].path)


def _names(model: Model, path: str) -> set[str]:
    return {name for name, _ in model.module.get_submodule(path).named_parameters()}


def _cache(model: Model, length: int) -> Any:
    with torch.no_grad():
        output = model.module(torch.arange(length)[None] % 61, use_cache=True)
    return output.get("past_key_values", output.get("cache_params"))


def test_a_scan_of_mamba_takes_its_layers_and_state_along() -> None:
    small = extract(toy_model("mamba"), {"layers.1.mixer.ssm": 0})
    gone = {"x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"}
    whole, left = (_names(small, f"backbone.layers.{block}.mixer") for block in (0, 1))
    assert whole - left == gone
    assert not hasattr(_mixer(small, 1), "x_proj")
    states = [layer.recurrent_states[0] for layer in _cache(small, 7).layers]
    assert [state is None for state in states] == [False, True, False, False]


@pytest.mark.parametrize("family", ["mamba2", "bamba"])
def test_a_scan_of_mamba2_takes_its_rows_channels_and_state_along(family: str) -> None:
    model = toy_model(family)
    small = extract(model, {"layers.2.mixer.ssm": 0})
    path = small.anatomy.by_name["layers.2.mixer"].path
    assert _names(model, path) - _names(small, path) == {"A_log", "D", "dt_bias"}
    mixer = _mixer(small, 2)
    assert mixer.in_proj.weight.shape == (2 * 48, 24), "rows of B, C and dt: 2 groups of 5 states each, 6 heads"
    assert mixer.conv1d.weight.shape == (48, 1, 4)
    assert (mixer.conv1d.groups, mixer.in_proj.out_features) == (48, 96)
    layer = _cache(small, 7).layers[2]
    assert layer.recurrent_states[0] is None
    assert layer.conv_states[0].shape == (1, 48, 4)


@pytest.mark.parametrize("family", STATES)
def test_removed_mixers_hold_nothing_while_masked(family: str) -> None:
    model = toy_model(family)
    with masked(model, {"layers.0.mixer": 0}):
        first, *_, last = _cache(model, 7).layers
    assert type(first).__name__ == "DummyLayer"
    assert type(last).__name__ != "DummyLayer"
    assert all(type(layer).__name__ != "DummyLayer" for layer in _cache(model, 7).layers), "the mask is off again"


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("seed", range(4))
def test_any_subnet_generates_as_masked_so_cut(family: str, seed: int) -> None:
    model = toy_model(family)
    subnet = model.space(width=4, channels=5).sample(Random(seed), keep=0.5)
    small, ids = extract(model, subnet), toy_ids(model, seed, 2, 6)
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    with masked(model, subnet):
        inside = model.module.generate(ids, **options)
    assert torch.equal(inside, small.module.generate(ids, **options))


@pytest.mark.parametrize("family", STATES)
def test_masked_models_learn_in_what_is_left(family: str) -> None:
    model, ids = toy_model(family), toy_ids(toy_model(family), 0, 2, 9)
    cut = {"layers.0.mixer.ssm": 0, "layers.2.mixer": 0}
    model.module.train()
    with masked(model, cut):
        model.module(ids, labels=ids, use_cache=False).loss.backward()
    gone = {name for name, places in model.binding.index_map(cut).items() if places is None}
    for name, parameter in model.module.named_parameters():
        if name not in gone and "norm" not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    untrained = {name for name, parameter in model.module.named_parameters() if parameter.grad is None}
    assert untrained <= gone


def _mixed(mixer: Any, hidden: Tensor, heads: int) -> Tensor:
    """Mamba-2 with the first heads of every group, from the paper's equations; hidden [T, D]."""
    h, g, p, n = mixer.num_heads // mixer.n_groups, mixer.n_groups, mixer.head_dim, mixer.ssm_state_size
    z, xbc, dt = (hidden @ mixer.in_proj.weight.T).split([h * g * p, h * g * p + 2 * g * n, h * g], -1)
    weight, past = mixer.conv1d.weight[:, 0], torch.cat([torch.zeros(3, xbc.shape[1]), xbc])
    xbc = F.silu(torch.stack([(past[t : t + 4] * weight.T).sum(0) for t in range(len(hidden))]) + mixer.conv1d.bias)
    x, b, c = xbc.split([h * g * p, g * n, g * n], -1)
    kept = slice(heads)
    x, z = (value.view(-1, g, h, p)[:, :, kept] for value in (x, z))  # [T, G, h, P]
    dt = F.softplus(dt + mixer.dt_bias).view(-1, g, h)[:, :, kept]
    a, d = (value.view(g, h)[:, kept] for value in (-mixer.A_log.exp(), mixer.D))
    y = ssd_scan_reference(
        x.flatten(1, 2)[None], dt.flatten(1)[None], a.flatten(), b.view(1, -1, g, n), c.view(1, -1, g, n)
    )[0][0].view_as(x)
    y = (y + d[..., None] * x) * F.silu(z)
    y = y * (y.square().mean((2, 3), keepdim=True) + mixer.norm.variance_epsilon).rsqrt()
    y = y * mixer.norm.weight.view(g, h, p)[:, kept]
    return y.flatten(1) @ mixer.out_proj.weight.view(-1, g, h, p)[:, :, kept].flatten(1).T


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_heads_of_mamba2_go_from_every_group_and_from_the_norm(heads: int) -> None:
    model = toy_model("mamba2")
    hidden = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = _mixed(_mixer(model, 0), hidden[0], heads)
        with masked(model, {"layers.0.mixer.heads": heads}):
            assert difference(_mixer(model, 0)(hidden)[0], expected) <= TOLERANCE
        small = extract(model, {"layers.0.mixer.heads": heads})
        assert difference(_mixer(small, 0)(hidden)[0], expected) <= TOLERANCE
    assert (_mixer(small, 0).num_heads, _mixer(small, 0).norm.group_size) == (2 * heads, 8 * heads)


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_model_and_its_cache(family: str, dtype: torch.dtype, seed: int) -> None:
    model = Model(toy_model(family).module.to(dtype))
    subnet = model.space(width=1, channels=1).sample(Random(seed), keep=0.6)
    small = extract(model, subnet)
    counts = Counter(model, tokens=_TOKENS, length=_TOKENS).count(subnet)
    own = Counter(small, tokens=_TOKENS, length=_TOKENS).count()
    assert counts.params == sum(value.numel() for value in small.module.parameters())
    assert (counts.params, counts.macs, counts.cache_bytes) == (own.params, own.macs, own.cache_bytes)
    held = 0
    for layer in _cache(small, _TOKENS).layers:
        states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
        values = [getattr(layer, "keys", None), getattr(layer, "values", None), *states]
        held += sum(value.nbytes for value in values if value is not None)
    assert counts.cache_bytes == held


def test_products_of_a_scan_are_those_of_its_recurrence() -> None:
    def macs(family: str, **cut: int) -> int:
        return Counter(toy_model(family), tokens=_TOKENS).count({f"layers.0.mixer.{k}": v for k, v in cut.items()}).macs

    # Mamba-1: x_proj to 3 + 2·4 and dt_proj from 3; per channel four products for each of 4 states, and two
    assert macs("mamba") - macs("mamba", ssm=0) == _TOKENS * 48 * (11 + 3 + 4 * 4 + 2)
    # a channel less: in_proj twice, kernel, x_proj, dt_proj, scan, out_proj
    assert macs("mamba") - macs("mamba", channels=47) == _TOKENS * (24 * 2 + 4 + 11 + 3 + 4 * 4 + 2 + 24)
    # Mamba-2: 2·2·5 rows and convolved channels for B and C, 6 rows for dt; three products for each of 5 states, two
    assert macs("mamba2") - macs("mamba2", ssm=0) == _TOKENS * (24 * 26 + 4 * 20 + 48 * (3 * 5 + 2))


@pytest.mark.parametrize("family", STATES)
def test_uniform_cuts_open_with_transformers_alone(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = toy_model(family)
    size = {"mamba": ("channels", 24)}.get(family, ("heads", 3))
    cut = {branch.axis(size[0]): size[1] for branch in model.anatomy.branches if branch.kind == "mixer"}
    if family == "mamba":
        cut["layers.1.mixer"] = 0
    else:
        model = toy_model(family, **{"mamba2": {"n_groups": 1}, "bamba": {"mamba_n_groups": 1}}[family])
        cut |= {branch.name: 0 for block in (1, 2) for branch in model.anatomy.of_block(block)}
    if family == "bamba":
        cut |= {f"layers.{block}.mlp.width": 8 for block in range(4)} | {"layers.3.attention.queries": 1}
    small = extract(model, cut)
    small.save(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["model_type"] == family
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    ids = toy_ids(model, 0, 2, 9)
    assert difference(logits(stock, ids), logits(small.module, ids)) <= TOLERANCE
    assert stock.config.num_hidden_layers == len(small.anatomy.blocks) == {"mamba": 3}.get(family, 2)


@pytest.mark.parametrize("family", STATES)
def test_a_hybrid_keeps_an_attention_and_a_pure_model_a_mixer(family: str) -> None:
    model = toy_model(family)
    kind = "attention" if family == "bamba" else "mixer"
    gone = {branch.name: 0 for branch in model.anatomy.branches if branch.kind == kind}
    with pytest.raises(SubnetError, match=f"{kind}.* must be kept"):
        extract(model, gone)
    if family == "bamba":
        small = extract(model, {branch.name: 0 for branch in model.anatomy.branches if branch.kind != "attention"})
        assert generates(small)
        assert small.anatomy.layers() == [{"attention": {"groups": 2, "queries": 2}}] * 2


def test_tags_and_dims() -> None:
    pure, hybrid = toy_model("mamba").anatomy, toy_model("bamba").anatomy
    assert pure.tags == {"ssm", "causal-lm", "text", "mixer"}
    assert hybrid.tags == {"hybrid", "causal-lm", "text", "decoder", "mixer", "attention", "mlp"}
    assert hybrid.layers()[1] == {"attention": {"groups": 2, "queries": 2}, "mlp": {"width": 40}}
    assert pure.space(steps={"channels": 20}).by_name["layers.0.mixer.channels"].choices == (8, 28, 48)
    assert pure.space().by_name["layers.0.mixer.ssm"].choices == (0, 1)


@pytest.mark.parametrize("family", STATES)
def test_parts_of_models_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="give the language model"):
        anatomy_of(toy_module(family).base_model)
