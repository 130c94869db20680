"""Adapters: identity when added, exact when merged, elastic without copies, and folders that stock peft opens."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError, NumericsError, SubnetError
from lissome.cost.counted import Counter
from lissome.engine.sparsify import Pruning, sparsify
from lissome.models.adapters import (
    Core,
    Design,
    LowRank,
    Masked,
    Quantised,
    adaptable,
    adapters,
    add_adapters,
    add_lora,
    load_adapters,
    merge_lora,
    merged_copy,
    rank_space,
    remove_lora,
    save_adapters,
)
from lissome.models.adapters.elastic import grouped
from lissome.models.adapters.layers import oriented
from lissome.models.binding import extract, masked, reorder
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.sparse import mask_of, masks, sparsity
from lissome.ops.quant import codes, codes_ref, values
from lissome.testing import conformance
from lissome.testing.toys import TRANSFORMERS, toy_inputs, toy_model, toy_module

pytestmark = pytest.mark.long

IDS = torch.arange(3, 25).view(2, 11)
FAMILIES = (*TRANSFORMERS, "bert", "bert-labels", "vit", "bamba")
_ALORA = {"task_type": "CAUSAL_LM", "alora_invocation_tokens": [5, 6]}
FORMS = {"plain": LowRank, "masked": Masked, "quantised": partial(Quantised, bits=4, columns=8), "core": Core}


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


def shake(model: Model, seed: int = 1) -> Model:
    """Let the model's adapters do something."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(model.module).values():
        changed = adapter.core if isinstance(adapter, Core) else adapter.B
        changed.data = 0.1 * torch.randn(changed.shape, generator=generator)
    return model


def shaken(model: Model, **settings: int) -> Model:
    add_lora(model, **settings)
    return shake(model)


def sparse(family: str = "llama", seed: int = 0) -> Model:
    model = toy_model(family, seed=seed)
    sparsify(model, (), Pruning(by="magnitude", amount=0.5))
    return model


def elastic(model: Model, form: str = "plain", ranks: tuple[int, ...] = (6, 4, 2)) -> Model:
    add_adapters(model, Design(ranks=ranks, alpha=9, make=FORMS[form]), seed=3)
    return shake(model)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_added_is_identity_and_merged_is_equal(family: str) -> None:
    model = cut_model(family)
    before, names = logits(model), [name for name, _ in model.module.named_parameters()]
    add_lora(model, rank=3)
    assert torch.equal(logits(model), before)
    trained = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".adapter." in name for name in trained)
    assert [name for name, _ in model.module.named_parameters() if ".adapter." not in name] == names
    merge_lora(model)
    shaken(model, rank=3)
    unmerged = logits(model)
    assert float((unmerged - before).abs().max()) > 1e-2
    merge_lora(model)
    assert [name for name, _ in model.module.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert float((logits(model) - unmerged).abs().max()) <= 1e-5 * float(unmerged.abs().max())
    assert torch.equal(logits(model.derived(copy.deepcopy(model.module))), logits(model))


def test_same_seed_same_adapters() -> None:
    states = []
    for seed in (0, 0, 1):
        model = toy_model()
        torch.rand(1)  # the global generator must not matter
        add_lora(model, seed=seed)
        states.append(model.module.state_dict()["model.layers.0.mlp.up_proj.adapter.A"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert float(states[0].abs().max()) <= 24**-0.5 < 1.1 * float(states[0].abs().max())


def test_kinds_choose_layers() -> None:
    model = toy_model()
    assert len(adaptable(model)) == 4 * 7
    assert adaptable(model, ["up_proj"]) == tuple(f"model.layers.{index}.mlp.up_proj" for index in range(4))
    assert adaptable(toy_model("bert"), ["intermediate.dense"])[0] == "encoder.layer.0.intermediate.dense"
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        adaptable(model, ["q_porj"])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), form=st.sampled_from(list(FORMS)))
def test_ranks_and_widths_are_cut_together(family: str, seed: int, form: str) -> None:
    """Identity 1 with adapters on, for any ranks, widths and branches; the reference has zeros in merged weights."""
    model = elastic(sparse(family) if form in {"masked", "quantised"} else toy_model(family), form)
    subnet, ranks = model.space(width=1).sample(random.Random(seed)), rank_space(model)

    def reference(whole: Model, subnet: Mapping[str, int]) -> nn.Module:
        cut = extract(whole, {axis.name: subnet[axis.name] for axis in ranks.axes}, space=ranks)
        rest = {name: size for name, size in subnet.items() if name not in ranks.by_name}
        return conformance.zeroed(merged_copy(cut), rest)

    small = conformance.check_subnet(model, subnet, toy_inputs(model, seed), reference=reference)
    for name, adapter in adapters(small.module).items():
        layer = small.module.get_submodule(name)
        assert (adapter.B.shape[0], adapter.A.shape[1]) == tuple(oriented(layer).shape)
        assert adapter.scale == 9 / 6, "the scale is that of the largest rank"
    expected = conformance.outputs(small.module, toy_inputs(small))
    merge_lora(small)
    got = conformance.outputs(small.module, toy_inputs(small))
    assert conformance.difference(got, expected) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("form", ["masked", "quantised"])
def test_masks_and_grids_are_cut_and_sorted_with_their_adapters(family: str, form: str) -> None:
    model, inputs = elastic(sparse(family), form), toy_inputs(toy_model(family))
    dims = {branch.axis(dim.name): dim for branch in model.anatomy.branches for dim in branch.dims if not dim.beside}
    fixed = {axis for axis, dim in dims.items() if dim.ordered and len(dim.allowed) == 1}
    assert fixed == {axis for axis in dims if form == "quantised" and axis.endswith("width")}
    orders = {axis: torch.arange(dim.size).flip(0) for axis, dim in dims.items() if axis not in fixed}
    conformance.check_reorder(model, orders, inputs)
    if fixed:
        with pytest.raises(SubnetError, match="an order of their own"):
            reorder(model, {"layers.0.mlp.width": torch.arange(40).flip(0)})
        return
    small = extract(model, {**model.space().full, "layers.0.mlp.width": 15})
    on = adapters(small.module)
    kept = [mask_of(small.module.get_submodule(name)).unpacked() for name in on]
    held = [adapter.mask for adapter in on.values()]
    assert all(torch.equal(mask.T if family == "gpt2" else mask, mine) for mask, mine in zip(kept, held, strict=True))
    before = conformance.outputs(small.module, inputs)
    merge_lora(small)
    assert conformance.difference(conformance.outputs(small.module, inputs), before) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("form", FORMS)
def test_switching_the_rank_equals_an_adapter_built_with_it(family: str, form: str) -> None:
    """Slices of the same A and B, and the scale of r_max: alpha / r would be another algorithm."""

    def fresh() -> Model:
        return sparse(family) if form in {"masked", "quantised"} else toy_model(family)

    wide, inputs = elastic(fresh(), form), toy_inputs(fresh())
    space = rank_space(wide)
    for rank in (2, 4, 6):
        small = fresh()
        add_adapters(small, Design(ranks=(rank,), alpha=9 * rank / 6, make=FORMS[form]))
        for name, adapter in adapters(small.module).items():
            source = adapters(wide.module)[name]
            adapter.A.data, adapter.B.data = source.A.data[:rank].clone(), source.B.data[:, :rank].clone()
            if isinstance(adapter, Core):
                adapter.core.data = source.core.data[:rank, :rank].clone()
        expected = conformance.outputs(small.module, inputs)
        with masked(wide, dict.fromkeys(space.full, rank), space=space):
            assert torch.equal(conformance.outputs(wide.module, inputs), expected)
        if rank < 6 and form == "plain":
            for adapter in adapters(small.module).values():
                adapter.scale = 9 / rank
            assert not torch.allclose(conformance.outputs(small.module, inputs), expected, atol=1e-3)


def test_switching_copies_nothing_and_trains_what_is_active() -> None:
    model = elastic(toy_model())
    up = adapters(model.module)["model.layers.2.mlp.up_proj"]
    whole = up.A, up.B
    space = rank_space(model)
    with masked(model, space.full.replace({"layers.2.mlp.up_proj.rank": 4}), space=space):
        assert (up.A.data_ptr(), up.B.data_ptr()) == tuple(value.data_ptr() for value in whole)
        assert (up.A.shape[0], up.B.shape[1]) == (4, 4)
        model.module(input_ids=IDS).logits.square().mean().backward()
    assert whole == (up.A, up.B)
    for gradient in (whole[0].grad, whole[1].grad.T):
        assert gradient[:4].abs().sum() > 0
        assert (gradient[4:] == 0).all()
    q = adapters(model.module)["model.layers.2.self_attn.q_proj"]
    assert (q.A.grad[4:] != 0).any(), "the other groups had their full rank"


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_are_axes(family: str) -> None:
    model = elastic(toy_model(family))
    space = rank_space(model)
    assert all(axis.choices == (2, 4, 6) and axis.switch is None for axis in space.axes)
    groups = set(grouped(toy_model(family)).values())
    assert {label for axis in space.axes for label in groups if axis.name.endswith(f"{label}.rank")} == groups
    assert {axis.name for axis in space.axes} < {axis.name for axis in model.space().axes}
    layers = toy_model(family).anatomy.layers()
    assert model.anatomy.layers() == layers, "a configuration does not list ranks"


def test_the_groups_of_the_paper() -> None:
    space = rank_space(elastic(toy_model("llama")))
    first = [axis.name for axis in space.axes if axis.name.startswith("layers.0.")]
    assert first == [
        "layers.0.attention.q_proj+k_proj+v_proj.rank",
        "layers.0.mlp.up_proj.rank",
        "layers.0.mlp.down_proj.rank",
    ]
    assert set(grouped(toy_model("bert")).values()) == {"query+key+value", "intermediate.dense", "output.dense"}
    own = toy_model()
    add_adapters(own, Design(ranks=(4, 2), groups=(("q_proj", "up_proj"), ("down_proj",))))
    names = [axis.name for axis in rank_space(own).axes if axis.name.startswith("layers.1.")]
    assert names == [
        "layers.1.attention.q_proj+up_proj.rank",
        "layers.1.mlp.q_proj+up_proj.rank",
        "layers.1.mlp.down_proj.rank",
    ]


def test_counting_knows_ranks() -> None:
    model = elastic(toy_model())
    space = rank_space(model)
    for subnet in (space.full, space.smallest, space.sample(random.Random(0))):
        small = extract(model, subnet, space=space)
        assert Counter(model).count(subnet).params == sum(value.numel() for value in small.module.parameters())
        assert Counter(model).count(subnet) == Counter(small).count()
    with_adapters, without = (Counter(one, tokens=7).count().macs for one in (model, toy_model()))
    assert with_adapters == without + 7 * sum(one.A.numel() + one.B.numel() for one in adapters(model.module).values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("form", ["masked", "quantised"])
def test_a_mergeable_adapter_keeps_every_zero(family: str, form: str) -> None:
    model = sparse(family)
    shares, before = sparsity(model.module), {name: mask.unpacked() for name, mask in masks(model.module).items()}
    elastic(model, form)
    inputs = toy_inputs(model)
    unmerged = conformance.outputs(model.module, inputs)
    integers = {
        name: (codes(LowRank.merged(adapter, oriented(model.module.get_submodule(name))), adapter.grid), adapter.grid)
        for name, adapter in adapters(model.module).items()
        if isinstance(adapter, Quantised)
    }
    merge_lora(model)
    merged = conformance.outputs(model.module, inputs)
    for name, kept in before.items():
        weight = model.module.get_parameter(name)
        assert (weight[~kept].view(torch.int32) == 0).all(), "zeros before = zeros after, bit for bit"
        if form == "masked":
            assert (weight[kept] != 0).all()
    assert sparsity(model.module) == shares
    for name, (whole, grid) in integers.items():
        assert torch.equal(oriented(model.module.get_submodule(name)), values(whole, grid)), "the integers' values"
    if form == "quantised" and family != "gpt2":  # whose merged Conv1D multiplies in another order
        assert torch.equal(merged, unmerged), "bit for bit what training computed"
    assert conformance.difference(merged, unmerged) <= 1e-5


def test_an_ordinary_merge_loses_the_zeros() -> None:
    model = elastic(sparse())
    name = "model.layers.0.mlp.up_proj"
    merge_lora(model)
    assert float((model.module.get_parameter(f"{name}.weight") == 0).float().mean()) < 0.01
    assert mask_of(model.module.get_submodule(name)) is None, "and says so"
    assert mask_of(model.module.get_submodule("model.layers.0.mlp.gate_proj")) is not None


def test_masked_training_equals_two_products() -> None:
    """With dropout the adapter has an input of its own; without, both ways of computing are the same function."""
    model = elastic(sparse(), "masked")
    expected = logits(model)
    model.module.train()
    for adapter in adapters(model.module).values():
        adapter.dropout = 1e-12
    assert conformance.difference(logits(model), expected) <= 1e-5


def test_quantised_gradients_pass_straight_through() -> None:
    model = elastic(sparse(), "quantised")
    layer = model.module.get_submodule("model.layers.0.mlp.up_proj")
    adapter, x = layer.adapter, torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    target = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    (layer(x) * target).sum().backward()
    got = adapter.A.grad.clone(), adapter.B.grad.clone()
    adapter.zero_grad()
    (x @ (layer.weight + adapter.delta()).T * target).sum().backward()
    for one, other in zip(got, (adapter.A.grad, adapter.B.grad), strict=True):
        torch.testing.assert_close(one, other)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4), groups=st.integers(1, 4), bits=st.integers(2, 8))
def test_grids_hold_zero_exactly(seed: int, rows: int, groups: int, bits: int) -> None:
    from lissome.ops.quant import grid_of, rounded

    weight = torch.randn(rows, 5 * groups, generator=torch.Generator().manual_seed(seed)) + 0.5
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.5] = 0
    grid = grid_of(weight, bits, 5)
    whole = codes(weight, grid)
    assert torch.equal(whole, codes_ref(weight, grid))
    assert int(whole.max()) <= 2**bits - 1
    back = values(whole, grid)
    assert torch.equal(rounded(weight, grid), back)
    assert (back[weight == 0] == 0).all()
    span = grid.scale.repeat_interleave(5, 1)
    assert ((back - weight).abs() <= span * 1.001).all()
    assert torch.equal(codes(back, grid), whole), "what is on the grid stays"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_stock_peft_opens_the_folder(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

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


_FRESH = """
import sys, torch, transformers
from peft import PeftModel
from safetensors.torch import load_file
base = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2]).eval()
model = PeftModel.from_pretrained(base, sys.argv[3]).eval()
given = load_file(sys.argv[4])
expected = given.pop("expected")
with torch.no_grad():
    result = model(**given)
got = result.logits if "logits" in result else result.last_hidden_state
print("error", float((got[:, -expected.shape[1]:] - expected).abs().max() / expected.abs().max()))
assert not any(name.startswith("lissome") for name in sys.modules)
"""


def in_fresh_peft(family: str, folder: Path, inputs: dict[str, Tensor], expected: Tensor, base: Path) -> float:
    """Largest relative difference of what stock transformers and peft compute without lissome."""
    file = folder.parent / "expected.safetensors"
    save_file({**inputs, "expected": expected.contiguous()}, file)
    name = type(toy_model(family).module).__name__
    command = [sys.executable, "-W", "ignore", "-c", _FRESH, name, str(base), str(folder), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize(("family", "form"), [("llama", "plain"), ("gpt2", "plain"), ("bert", "core")])
def test_a_fresh_process_with_stock_peft_computes_the_same(family: str, form: str, tmp_path: Path) -> None:
    """Ranks differ between layers: rank_pattern, and alpha_pattern that keeps alpha / r_max."""
    base = toy_model(family).save(tmp_path / "base")
    model = elastic(toy_model(family), form)
    small = extract(model, rank_space(model).sample(random.Random(5)), space=rank_space(model))
    save_adapters(small, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    ranks = {name: adapter.rank for name, adapter in adapters(small.module).items()}
    assert len(set(ranks.values())) > 1
    assert config["target_modules"] == sorted(ranks), "in one order in every process"
    for name, rank in ranks.items():
        assert config["rank_pattern"].get(name, config["r"]) == rank
        assert config["alpha_pattern"].get(name, config["lora_alpha"]) == pytest.approx(9 * rank / 6)
    inputs = toy_inputs(small)
    expected = conformance.outputs(small.module, inputs)
    assert in_fresh_peft(family, tmp_path / "adapter", inputs, expected, base) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_folders_remember_groups_ranks_and_forms(form: str, tmp_path: Path) -> None:
    def fresh() -> Model:
        return sparse() if form in {"masked", "quantised"} else toy_model()

    model = elastic(fresh(), form)
    save_adapters(model, tmp_path / "super")
    stock = {"adapter_config.json", "adapter_model.safetensors"}
    names = {path.name for path in (tmp_path / "super").iterdir()}
    own = {"lissome.json"} | ({"lissome.safetensors"} if form != "plain" else set())
    assert names == own | (stock if form in {"plain", "core"} else set())
    again = fresh()
    load_adapters(again, tmp_path / "super")
    assert torch.equal(logits(again), logits(model))
    assert rank_space(again) == rank_space(model)
    trained = [[name for name, value in one.module.named_parameters() if value.requires_grad] for one in (model, again)]
    assert trained[0] == trained[1]
    space = rank_space(model)
    with masked(model, space.smallest, space=space), masked(again, space.smallest, space=space):
        assert torch.equal(logits(again), logits(model))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_other_folders_of_peft_are_read(tmp_path: Path) -> None:
    """Written by stock peft: patterns, and the other scale of rsLoRA."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2},
        alpha_pattern={r"layers.1.mlp.up_proj": 5}, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    stock = get_peft_model(toy_model().module, config)
    stock.save_pretrained(tmp_path / "stock")
    ours = toy_model()
    load_adapters(ours, tmp_path / "stock")
    with torch.no_grad():
        expected = stock.eval()(input_ids=IDS).logits
    assert torch.allclose(logits(ours), expected, rtol=1e-5, atol=1e-5)
    dora = get_peft_model(toy_model().module, LoraConfig(target_modules=["q_proj"], use_dora=True))
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(ArtifactError, match="DoRA"):
        load_adapters(toy_model(), tmp_path / "dora")
    config = tmp_path / "stock" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | _ALORA))
    with pytest.raises(ArtifactError, match="behind certain tokens"):
        load_adapters(toy_model(), tmp_path / "stock")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_of_the_head_needs_a_head_of_its_own(tmp_path: Path) -> None:
    """Merged into a weight that is the embedding's too, it would change what tokens are read as."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    stock = get_peft_model(toy_module("llama", tie_word_embeddings=False), config).eval()
    stock.save_pretrained(tmp_path / "head", save_embedding_layers=False)
    ours = toy_model("llama", tie_word_embeddings=False)
    load_adapters(ours, tmp_path / "head")
    merge_lora(ours)
    assert conformance.difference(logits(ours), conformance.outputs(stock, {"input_ids": IDS})) <= 1e-5
    with pytest.raises(ArtifactError, match=r"on lm_head, whose weight another layer has too"):
        load_adapters(toy_model("llama", tie_word_embeddings=True), tmp_path / "head")


def test_half_precision_bases_have_adapters_in_full() -> None:
    model = toy_model()
    model.module.to(torch.bfloat16)
    shaken(model, rank=4)
    assert {parameter.dtype for parameter in model.module.parameters() if parameter.requires_grad} == {torch.float32}
    unmerged = logits(model).float()
    merge_lora(model)
    assert conformance.difference(logits(model).float(), unmerged) < 0.05


def test_a_merged_copy_leaves_the_model_alone() -> None:
    model = shaken(toy_model())
    before, copied = logits(model), merged_copy(model)
    assert not adapters(copied.module)
    assert adapters(model.module)
    assert torch.equal(logits(model), before)
    assert conformance.difference(logits(copied), before) <= 1e-5
    remove_lora(model)
    assert merged_copy(model) is model
    assert torch.equal(logits(model), logits(toy_model()))


@pytest.mark.parametrize("ranks", [(), (4, 8), (8, 8, 4), (4, 0), (-1,)])
def test_ranks_that_make_no_sense(ranks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"distinct, positive and descending.*write") as caught:
        Design(ranks=ranks)
    assert "\n" not in str(caught.value)
    if ranks == (4, 8):
        assert "write 8,4" in str(caught.value)


def test_a_rank_is_at_most_that_of_a_layer_or_a_usual_one() -> None:
    model = toy_model("llama", hidden_size=96, num_attention_heads=4, head_dim=24, intermediate_size=200)
    for rank in (97, 10**18):
        with pytest.raises(ConfigError, match=rf"rank {rank} is more than any layer of .* can use; .* at most 96\."):
            add_lora(model, rank=rank)
        assert not adapters(model.module)
    add_lora(model, rank=96)
    add_lora(toy_model(), rank=64)


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
    broken.module.get_parameter("model.layers.3.mlp.up_proj.adapter.A").data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.3\.mlp\.up_proj"):
        merge_lora(broken)
    with pytest.raises(ConfigError, match="did you mean 'down_proj'"):
        add_adapters(toy_model(), Design(groups=(("donw_proj",),)))
    with pytest.raises(ConfigError, match="keep it in one"):
        add_adapters(toy_model(), Design(groups=(("q_proj", "k_proj"), ("k_proj",))))
    with pytest.raises(ConfigError, match="needs a sparse layer"):
        add_adapters(toy_model(), Design(make=Masked))
    with pytest.raises(ConfigError, match="no dropout"):
        add_adapters(sparse(), Design(make=Quantised, dropout=0.1))
    with pytest.raises(ConfigError, match="bits must be 2 to 8"):
        add_adapters(sparse(), Design(make=partial(Quantised, bits=9)))
    with pytest.raises(ConfigError, match="larger than the layer"):
        add_adapters(toy_model(), Design(ranks=(64,), make=Core))
    untouched = toy_model()
    with pytest.raises(ConfigError):
        add_adapters(untouched, Design(ranks=(64,), make=Core))
    assert not adapters(untouched.module)
    assert all(parameter.requires_grad for parameter in untouched.module.parameters())


def test_damaged_own_descriptions(tmp_path: Path) -> None:
    save_adapters(elastic(toy_model()), tmp_path / "a")
    whole = json.loads((tmp_path / "a" / "lissome.json").read_text())
    name = "model.layers.0.mlp.up_proj"
    for damage in (
        [],
        {**whole, "schema": 99},
        {**whole, "adapters": {**whole["adapters"], name: {**whole["adapters"][name], "form": "pickle"}}},
        {**whole, "adapters": {**whole["adapters"], name: {**whole["adapters"][name], "ranks": []}}},
        {**whole, "adapters": {key: value for key, value in whole["adapters"].items() if key != name}},
    ):
        (tmp_path / "a" / "lissome.json").write_text(json.dumps(damage))
        with pytest.raises(ArtifactError) as caught:
            load_adapters(toy_model(), tmp_path / "a")
        assert "\n" not in str(caught.value)
    (tmp_path / "a" / "lissome.json").write_text(json.dumps(whole))
    save_adapters(elastic(toy_model(), "core"), tmp_path / "b")
    tensors = load_file(tmp_path / "b" / "lissome.safetensors")
    save_file({**tensors, f"{name}.evil": torch.ones(1)}, tmp_path / "b" / "lissome.safetensors")
    with pytest.raises(ArtifactError, match="unknown tensor"):
        load_adapters(toy_model(), tmp_path / "b")


def test_an_adapter_needs_no_lissome_class_to_be_copied() -> None:
    layer = nn.Linear(3, 4)
    model = shaken(toy_model())
    twin = copy.deepcopy(model.module)
    up, other = (one.get_submodule("model.layers.0.mlp.up_proj") for one in (model.module, twin))
    other.adapter.B.data.zero_()
    x = torch.randn(2, 24)
    assert not torch.equal(up(x), other(x)), "the copy has an adapter of its own"
    assert torch.equal(other(x), nn.functional.linear(x, other.weight, other.bias))
    assert type(up) is type(layer)


@pytest.mark.parametrize("form", ["plain", "masked"])
def test_an_artifact_holds_weights_and_adapters_apart(form: str, tmp_path: Path) -> None:
    model = elastic(sparse(), form)
    model.save(tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    assert rank_space(again) == rank_space(model)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("adapter" in name for name in stored)
    written = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.safetensors"))
    assert Counter(model).count().disk == pytest.approx(written, rel=0.02)
    small = extract(again, rank_space(again).smallest, space=rank_space(again))
    small.save(tmp_path / "small")
    assert torch.equal(logits(load_model(tmp_path / "small")), logits(small))
