"""What is particular to a family of transformers: layouts, norms that stay, caches of two sides, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lissome.core.errors import ArtifactError, OrderError, SubnetError, UnsupportedModelError
from lissome.cost.counted import Counter
from lissome.cost.table import latency_table
from lissome.engine.evaluate import evaluate
from lissome.engine.walk import Walk
from lissome.models.anatomy import Cut, Dim, anatomy_of, span
from lissome.models.binding import extract, masked
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.stated import stated_sizes
from lissome.pipeline.verbs import inspect, plan
from lissome.pipeline.writing import generate
from lissome.testing import conformance
from lissome.testing.toys import FAMILIES, toy_inputs, toy_model, toy_module


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_state_their_own_sizes(family: str) -> None:
    whole = toy_model(family)
    small = extract(whole, whole.space(width=1).sample(Random(4), keep=0.9))
    for name, layer in small.module.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter):
            for attribute, value in stated_sizes(layer, tuple(weight.shape)).items():
                assert getattr(layer, attribute) == value, f"{name}.{attribute}"


def test_a_depthwise_convolution_has_a_group_per_channel() -> None:
    wanted = {"out_channels": 5, "in_channels": 5, "groups": 5}
    assert stated_sizes(nn.Conv1d(8, 8, 4, groups=8), (5, 1, 4)) == wanted
    assert stated_sizes(nn.Conv1d(8, 6, 4), (5, 7, 4)) == {"out_channels": 5, "in_channels": 7, "groups": 1}
    assert stated_sizes(nn.Bilinear(2, 2, 3), (3, 2, 2)) == {}


def test_a_dim_keeps_at_least_what_it_must() -> None:
    cuts = (Cut("weight", 0, span(0, 10, 1)),)
    assert Dim("width", 10, cuts, least=1).choices(4) == (2, 6, 10)
    assert Dim("width", 10, cuts, least=5).choices(4) == (6, 10)
    assert Dim("width", 10, cuts, least=0).choices(4) == (0, 2, 6, 10)
    assert Dim("ssm", 1, cuts, least=0).choices(1) == (0, 1)
    assert Dim("width", 3, cuts).choices(8) == (3,)


def test_reading_cuts_are_those_that_multiply_a_unit() -> None:
    """What a family says of its layouts, against the gradients: a unit that is read by nothing changes nothing."""
    for family in ("gpt2", "opt", "bert", "vit", "whisper"):
        model = toy_model(family)
        for branch in model.anatomy.branches[:3]:
            for dim in branch.dims:
                kept = {branch.axis(dim.name): 1}
                small = conformance.zeroed(model, kept)
                inputs = toy_inputs(model)
                cut = conformance.outputs(extract(model, kept).module, inputs)
                assert conformance.difference(conformance.outputs(small, inputs), cut) < conformance.TOLERANCE
                assert not torch.equal(conformance.outputs(model.module, inputs), cut)


@pytest.mark.parametrize("family", ["bert", "bert-tokens", "opt-postnorm"])
def test_norms_after_the_sum_outlive_their_branches(family: str, tmp_path: Path) -> None:
    model = toy_model(family)
    gone = {branch.name: 0 for branch in model.anatomy.branches if branch.block == 1}
    small, inputs = extract(model, gone), toy_inputs(model)
    assert len(small.anatomy.blocks) == len(model.anatomy.blocks)
    assert small.anatomy.layers()[1] == {}
    counts, norms = Counter(model).count(gone), 4 * 2 * 2 * 24  # four blocks, two norms, weight and bias
    assert counts.block_params == norms + sum(
        row.params for row in Counter(model).table(gone) if row.name in model.anatomy.by_name
    )
    states: list[torch.Tensor] = []
    block = small.module.get_submodule(small.anatomy.blocks[1])
    block.register_forward_hook(lambda _, args, output: states.extend((args[0], output)))
    conformance.outputs(small.module, inputs)
    norm, last = [layer for layer in block.modules() if isinstance(layer, nn.LayerNorm)]
    assert torch.allclose(last(norm(states[0])), states[1], atol=1e-6), "a removed branch leaves norm(x)"
    conformance.check_saved(small, tmp_path / "small", inputs)


def _cached_bytes(cache: Any) -> list[int]:
    layers = [layer for side in (cache.self_attention_cache, cache.cross_attention_cache) for layer in side.layers]
    return [0 if layer.keys is None else layer.keys.nbytes + layer.values.nbytes for layer in layers]


@pytest.mark.parametrize("keep", [1.0, 0.6, 0.3])
def test_whisper_caches_what_is_left(keep: float) -> None:
    model = toy_model("whisper")
    subnet = model.space(width=3).sample(Random(3), keep=keep)
    small, inputs = extract(model, subnet), toy_inputs(model, 0, 1, 5)
    with torch.no_grad():
        cache = small.module(**inputs, use_cache=True).past_key_values
    assert sum(_cached_bytes(cache)) == Counter(model, length=5).count(subnet).cache_bytes
    assert cache.get_seq_length() == 5


def test_whisper_counts_tokens_without_its_first_self_attention() -> None:
    model = toy_model("whisper")
    gone = {name: 0 for name in model.anatomy.by_name if name.startswith("decoder.") and name.endswith(".attention")}
    small, inputs = extract(model, gone), toy_inputs(model, 2, 2, 6)
    with torch.no_grad():
        cache = small.module(**inputs, use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.crop(-2)
    assert cache.get_seq_length() == 4
    assert _cached_bytes(cache)[:3] == [0, 0, 0]


@pytest.mark.filterwarnings("ignore")  # transformers warns of its own generation settings
@pytest.mark.parametrize("family", ["gpt2", "opt", "whisper"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_by_the_cache_is_that_without(family: str, beams: int) -> None:
    model = toy_model(family)
    small = extract(model, model.space(width=1).sample(Random(2), keep=0.6))
    inputs = toy_inputs(small, 1, 2, 4)
    written = [
        small.module.generate(**inputs, max_new_tokens=6, num_beams=beams, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize(
    ("family", "cut", "auto"),
    [
        ("gpt2", {"mlp.width": 16}, "AutoModelForCausalLM"),
        ("opt", {"mlp.width": 16}, "AutoModelForCausalLM"),
        ("bert-labels", {"mlp.width": 16}, "AutoModelForSequenceClassification"),
        ("vit-labels", {"mlp.width": 16, "attention.groups": 3}, "AutoModelForImageClassification"),
    ],
)
def test_uniform_cuts_are_stock_folders(family: str, cut: dict[str, int], auto: str, tmp_path: Path) -> None:
    model = toy_model(family)
    subnet = {f"layers.{index}.{name}": size for index in range(4) for name, size in cut.items()}
    if family != "bert-labels":
        subnet |= {"layers.1.attention": 0, "layers.1.mlp": 0}
    small, inputs = extract(model, subnet), toy_inputs(model)
    small.save(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["model_type"] == small.anatomy.architecture
    stock = getattr(transformers, auto).from_pretrained(tmp_path / "small")
    assert torch.equal(conformance.outputs(stock, inputs), conformance.outputs(small.module, inputs))


def test_a_width_that_gpt2_has_by_default_is_stated_too(tmp_path: Path) -> None:
    model = toy_model("gpt2", n_inner=160)
    small = extract(model, {f"layers.{index}.mlp.width": 96 for index in range(4)})
    small.save(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["model_type"], fields["n_inner"]) == ("gpt2", 96)


def test_uniform_whispers_are_stock_folders(tmp_path: Path) -> None:
    model = toy_model("whisper")
    subnet = {f"{name}.width": 16 for name, branch in model.anatomy.by_name.items() if branch.kind == "mlp"}
    subnet |= {name: 0 for name in model.anatomy.by_name if name.startswith("decoder.1.")}
    small, inputs = extract(model, subnet), toy_inputs(model)
    small.save(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["decoder_layers"] == 2
    stock = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "small")
    assert torch.equal(conformance.outputs(stock, inputs), conformance.outputs(small.module, inputs))


def test_something_of_each_side_stays() -> None:
    space = toy_model("whisper").space()
    for gone in (".cross_attention", "encoder."):
        with pytest.raises(SubnetError, match="must be kept"):
            space.check({**space.full, **{name: 0 for name in space.full if gone in name and space.full[name] == 1}})
    model = toy_model("vit")
    with pytest.raises(SubnetError, match="must be kept"), masked(model, dict.fromkeys(model.anatomy.by_name, 0)):
        pass


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by the number"),
        ("gpt2", {"add_cross_attention": True}, "causal language model alone"),
        ("bert", {"is_decoder": True}, "writes text"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(family: str, changes: dict[str, bool], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        anatomy_of(toy_module(family, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shared", ["layer", "weight", "weight of one block"])
def test_layers_that_share_a_tensor_are_refused_by_its_name(shared: str) -> None:
    module: Any = toy_module("llama")
    blocks = module.model.layers
    if shared == "layer":
        blocks[1] = blocks[0]
    else:
        blocks[1].mlp.up_proj.weight = (blocks[0].mlp.up_proj if shared == "weight" else blocks[1].mlp.gate_proj).weight
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.1\..*weight is the tensor of another layer too; give each"
    ):
        anatomy_of(module)


def test_a_part_of_a_model_is_refused() -> None:
    modules: list[Any] = [toy_module(family) for family in ("gpt2", "opt", "whisper")]
    for part in (modules[0].transformer, modules[1].model, modules[2].model.encoder):
        with pytest.raises(UnsupportedModelError, match="was not understood"):
            anatomy_of(part)


def test_tags_say_what_a_model_is() -> None:
    assert toy_model("gpt2").anatomy.tags == {"gpt2", "causal-lm", "text", "decoder", "attention", "mlp"}
    assert toy_model("bert-tokens").anatomy.tags == {"bert", "encoder", "text", "attention", "mlp"}
    assert toy_model("whisper").anatomy.tags == {"whisper", "seq2seq", "attention", "cross_attention", "mlp"}
    assert "decoder" not in toy_model("vit").anatomy.tags


def test_a_model_without_its_head_opens_too(tmp_path: Path) -> None:
    import lissome.models.auto  # noqa: F401

    model = toy_model("bert-tokens")
    small = extract(model, model.space(width=1).sample(Random(1)))
    small.save(tmp_path / "small")
    body = transformers.AutoModel.from_pretrained(tmp_path / "small")
    assert type(body).__name__ == "BertModel"
    inputs = toy_inputs(model)
    with torch.no_grad():
        wanted = small.module.base_model(**inputs).last_hidden_state
    assert torch.equal(conformance.outputs(body, inputs), wanted)
    with pytest.raises(Exception, match="AutoModelForCausalLM does not open"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(load_model(tmp_path / "small").module).__name__ == "BertForMaskedLM"


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_bare_encoder_without_a_pooler_opens_again(family: str, tmp_path: Path) -> None:
    """No configuration says that there is none; the stored tensors do."""
    whole = toy_module(family)
    model = Model(type(whole)(whole.config, add_pooling_layer=False).eval())
    inputs = toy_inputs(model)
    for index, one in enumerate((model, extract(model, {"layers.0.mlp.width": 17}))):
        conformance.check_saved(one, tmp_path / str(index), inputs)
        kind = json.loads((tmp_path / str(index) / "config.json").read_text())["model_type"]
        assert kind == ("lissome" if index else family)
    file = tmp_path / "0" / "model.safetensors"
    save_file({**load_file(file), "pooler.dense.bias": torch.zeros(24)}, file)
    with pytest.raises(ArtifactError, match=r"1 missing \(first pooler\.dense\.weight\)"):
        load_model(tmp_path / "0")


@pytest.mark.parametrize("family", ["bert", "vit", "whisper"])
@pytest.mark.parametrize(
    ("purpose", "use"),
    [
        ("a walk", lambda model: Walk(model, torch.ones(1, 4, dtype=torch.long))),
        ("scoring text", lambda model: evaluate(model, text=torch.ones(1, 4, dtype=torch.long))),
        ("a latency table", latency_table),
        ("continuing a prompt", lambda model: generate(model, "Once")),
    ],
)
def test_what_needs_a_language_model_says_so(family: str, purpose: str, use: Callable[[Model], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{purpose}.* needs a causal language model, but this") as caught:
        use(toy_model(family))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["bert", "vit-labels", "whisper"])
def test_a_plan_for_pruning_says_what_it_needs(family: str) -> None:
    with pytest.raises(OrderError, match="multipruner needs a model that is decoder"):
        plan(toy_model(family), budget="params=80%")


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_can_be_inspected(family: str) -> None:
    model = toy_model(family)
    report = inspect(model)
    assert report.facts["task"] == model.anatomy.task
    assert report.facts["layers"] == model.anatomy.layers()
    assert report.figures["params"] == sum(value.numel() for value in model.module.parameters())


@pytest.mark.parametrize(
    "architectures", [["Trainer"], ["os"], ["LlamaForCausalLM"], ["BertPreTrainedModel"], "Bert", [{}], [[]], 7, [None]]
)
@pytest.mark.parametrize("uneven", [False, True])
def test_only_classes_of_the_model_type_are_built(architectures: Any, uneven: bool, tmp_path: Path) -> None:
    model = toy_model("bert-tokens")
    cut = {"layers.0.mlp.width": 7} if uneven else {}
    folder = extract(model, cut).save(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (config["base"] if uneven else config)["architectures"] = architectures
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="is not a class of transformers for model type bert") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_names_no_class_is_a_language_model(tmp_path: Path) -> None:
    model = toy_model("opt")
    folder = model.save(tmp_path / "whole")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    inputs = toy_inputs(model)
    assert torch.equal(
        conformance.outputs(load_model(folder).module, inputs), conformance.outputs(model.module, inputs)
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba2"])
def test_what_is_remembered_in_inference_mode_serves_training(family: str) -> None:
    model = toy_model(family)
    for subnet in (model.space().sample(Random(seed)) for seed in range(4)):
        with torch.inference_mode():
            extract(model, subnet)
        with masked(model, subnet):
            model.module(input_ids=torch.arange(8).unsqueeze(0)).logits.sum().backward()
