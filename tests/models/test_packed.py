"""One call replaces the linear layers of any model, and it computes what it did."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissome.core.errors import ConfigError
from lissome.models.adapters import adapters, add_lora
from lissome.models.packed import pack_linears
from lissome.ops.kernels.linear import SparseLinear
from lissome.testing.conformance import outputs
from lissome.testing.toys import FAMILIES, toy_inputs, toy_model, toy_module


def pruned(module: nn.Module, share: float = 0.5) -> nn.Module:
    """Set a share of every linear layer's weights to zero."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D":
            weight: Any = part.weight
            weight.data[torch.rand(weight.shape, generator=generator) < share] = 0
    return module.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = toy_model(family)
    module = pruned(model.module)
    inputs = toy_inputs(model)
    before = outputs(module, inputs).detach()
    done = pack_linears(module)
    packed = [part for part in module.modules() if isinstance(part, SparseLinear)]
    assert packed
    assert len(packed) == sum(one.form is not None for one in done)
    assert all(one.why for one in done if one.form is None)
    assert (outputs(module, inputs) - before).norm() <= 0.05 * before.norm()


def test_the_head_becomes_int8_and_embeddings_stay() -> None:
    module = pruned(toy_module("llama"), 0.0)
    tied = module.get_input_embeddings().weight
    done = {one.name: one for one in pack_linears(module)}
    head = done.pop("lm_head")
    assert (head.form, head.sparse) == ("int8", False)
    assert all(one.form is None and "not enough" in one.why for one in done.values())
    assert module.get_input_embeddings().weight is tied
    assert isinstance(module.get_output_embeddings(), SparseLinear)


def test_forms_by_request() -> None:
    module = pruned(toy_module("llama"))
    done = {one.name: one for one in pack_linears(module, weights="int8", head="keep", skip=["o_proj"])}
    assert done["lm_head"].form is None
    assert done["model.layers.0.self_attn.o_proj"].why == "as asked"
    assert {one.form for name, one in done.items() if "mlp" in name} == {"int8"}
    dense = pruned(toy_module("llama"), 0.0)
    assert {(one.form, one.sparse) for one in pack_linears(dense, head="bf16", dense=True)} == {("bf16", False)}
    for name in ("weights", "head"):
        with pytest.raises(ConfigError, match=f"{name} must be one of bf16, int8, keep"):
            pack_linears(module, **{name: "int4"})


def test_generation_is_that_of_the_rounded_weights() -> None:
    """Greedy tokens with packed bf16 weights equal those with the same weights rounded to bf16."""
    model = toy_model("qwen2")
    module: Any = pruned(model.module)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data = part.weight.data.bfloat16().float()
    prompt = toy_inputs(model)["input_ids"][:1, :6]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = module.generate(prompt, **options)
    pack_linears(module, head="bf16")
    assert torch.equal(module.generate(prompt, **options), expected)


class _Net(nn.Module):
    """A small CNN whose head is held under two names, and an attention that reads weights itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(128, 10)
        self.parts = nn.ModuleDict({"again": self.head})
        self.mixer = nn.MultiheadAttention(10, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts["again"](self.features(x)).unsqueeze(1)
        return self.mixer(y, y, y)[0]


def test_the_head_of_a_cnn() -> None:
    torch.manual_seed(0)
    net, x = pruned(_Net()), torch.randn(4, 3, 12, 12)
    before = net(x).detach()
    done = pack_linears(net)
    assert [one.name for one in done] == ["head"]
    assert net.head is net.parts["again"]
    assert isinstance(net.head, SparseLinear)
    assert not isinstance(net.mixer.out_proj, SparseLinear)
    assert (net(x) - before).norm() < 0.01 * before.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_of_torch_calls_its_packed_layers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0)
    net, x = pruned(nn.TransformerEncoder(layer, 2).eval()).to(dtype), torch.randn(2, 5, 32, dtype=dtype)
    calls: list[nn.Module] = []
    forward = SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: calls.append(self) or forward(self, x))
    with torch.inference_mode():
        before = net(x)
        assert [one.form for one in pack_linears(net)] == ["bf16"] * 4
        assert (net(x) - before).norm() < 0.02 * before.norm()
    assert len(calls) == 4


def test_layers_that_are_left_say_why() -> None:
    net = pruned(nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 8)))
    with warnings.catch_warnings(action="ignore"):  # torch says that there is nothing to initialise
        net[1] = nn.Linear(8, 0)
    seen: list[int] = []
    net[2].register_forward_pre_hook(lambda *_: seen.append(1))
    done = {one.name: one for one in pack_linears(net)}
    assert done["0"].form == "bf16"
    assert (done["1"].form, done["1"].why) == (None, "it is empty")
    assert "hooks" in done["2"].why
    net[2](net[0](torch.zeros(1, 8)))
    assert seen == [1]


def test_layers_with_adapters_keep_them() -> None:
    model, ids = toy_model("llama"), torch.arange(3, 14)[None]
    add_lora(model, rank=4, kinds=("down_proj",))
    for adapter in adapters(model.module).values():
        adapter.B.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model.module(ids).logits
        done = {one.name: one for one in pack_linears(model.module, dense=True, head="keep")}
        assert (model.module(ids).logits - before).norm() < 0.02 * before.norm()
    left = {name for name, one in done.items() if "a forward of its own" in one.why}
    assert left == set(adapters(model.module)) == {name for name in done if name.endswith("down_proj")}


def test_a_model_elsewhere_is_refused_as_a_whole() -> None:
    net = nn.Sequential(pruned(nn.Linear(8, 8)), nn.Linear(8, 8, device="meta"))
    with pytest.raises(ConfigError, match="1 is on meta"):
        pack_linears(net)
    assert isinstance(net[0], nn.Linear)


def test_a_single_layer_is_no_model() -> None:
    with pytest.raises(ConfigError, match=r"SparseLinear\.of"):
        pack_linears(nn.Linear(3, 3))


def test_nothing_is_held_twice() -> None:
    """Each dense weight is freed before the next layer is packed."""
    module = nn.Sequential(*(pruned(nn.Linear(64, 64)) for _ in range(4)))
    alive = [weakref.ref(layer.weight) for layer in module]
    seen: list[int] = []
    make = SparseLinear.of

    def counting(layer: nn.Module, *arguments: Any, **options: Any) -> SparseLinear:
        gc.collect()
        seen.append(sum(one() is not None for one in alive))
        return make(layer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseLinear, "of", counting)
        pack_linears(module)
    assert seen == [4, 3, 2, 1]
