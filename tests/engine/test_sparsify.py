"""Pruning block by block: the zeros asked for, chosen by what a block really reads, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lissome.core.errors import ConfigError, DataError, NumericsError, UnsupportedModelError
from lissome.core.events import Event, EventStream
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.sparsify import Pruning, prunable, read_masks, sparsify
from lissome.engine.stream import Stream, windows_of
from lissome.engine.walk import Walk
from lissome.models.model import Model
from lissome.models.parts import is_conv1d
from lissome.models.sparse import mask_of, masks
from lissome.ops.masks import Pattern, magnitude_ref, wanda_ref, zeros_of
from lissome.testing.conformance import outputs
from lissome.testing.toys import FAMILIES, LANGUAGE, toy_ids, toy_inputs, toy_model

CHAINS = [family for family in FAMILIES if family != "whisper"]


def batches(model: Model, count: int = 3) -> list[dict[str, Tensor]]:
    return [toy_inputs(model, seed, 2, 9) for seed in range(count)]


def fingerprint(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize("family", CHAINS)
def test_a_stream_ends_where_the_model_does(family: str) -> None:
    """Block after block, the states are those that the whole model's own blocks see."""
    model = toy_model(family)
    stream, seen = Stream(model, batches(model)), list[Tensor]()
    last = model.module.get_submodule(model.anatomy.blocks[-1])
    handle = last.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    for batch in batches(model):
        outputs(model.module, batch)
    handle.remove()
    for index in range(len(model.anatomy.blocks)):
        stream.feed(index)
        stream.advance(index)
    for got, expected in zip(stream.states(), seen, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CHAINS)
def test_wanda_prunes_what_the_reference_prunes(family: str) -> None:
    """Norms come from the inputs that a layer gets when the blocks before it are pruned and its own is not yet."""
    model, whole = toy_model(family), toy_model(family)
    sparsify(model, batches(model))
    for index in range(len(whole.anatomy.blocks)):
        names = [name for branch in whole.anatomy.of_block(index) for name in branch.linears if name in prunable(whole)]
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        handles = [
            whole.module.get_submodule(name).register_forward_pre_hook(
                lambda _layer, args, name=name, rows=rows: rows[name].append(args[0].detach().flatten(0, -2))
            )
            for name in names
        ]
        for batch in batches(whole):
            outputs(whole.module, batch)
        for handle in handles:
            handle.remove()
        for name in names:
            layer, pruned = whole.module.get_submodule(name), model.module.get_submodule(name)
            weight = layer.weight.detach().T if is_conv1d(layer) else layer.weight.detach()
            kept = wanda_ref(weight.double(), torch.cat(rows[name]).double().square().sum(0).sqrt(), 0.5)
            kept = kept.T if is_conv1d(layer) else kept
            mask = mask_of(pruned)
            assert mask is not None and torch.equal(mask.unpacked(), kept), name
            assert torch.equal(pruned.weight.detach(), layer.weight.detach() * kept)
            layer.weight.data.mul_(kept)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit", "bamba"])
@pytest.mark.parametrize("by", ["wanda", "magnitude", "sparsegpt"])
def test_the_share_is_met_and_nothing_else_is_touched(family: str, by: str) -> None:
    model = toy_model(family)
    before = fingerprint(model)
    sparsify(model, batches(model), Pruning(amount=0.4, by=by))
    found = masks(model.module)
    assert found.keys() == {f"{name}.weight" for name in prunable(model)}
    for name, mask in found.items():
        shape = tuple(reversed(mask.shape)) if is_conv1d(model.module.get_submodule(name[:-7])) else mask.shape
        assert mask.numel - mask.kept == zeros_of(shape, 0.4, "block" if by == "sparsegpt" else "row"), name
        assert (model.module.get_parameter(name)[~mask.unpacked()] == 0).all()
    for name, value in model.module.state_dict().items():
        assert name in found or torch.equal(value, before[name]), f"{name} was changed"
    assert torch.isfinite(outputs(model.module, toy_inputs(model))).all()


def test_padding_counts_for_nothing() -> None:
    short = toy_model("bert")
    ids = toy_ids(short, 0, 3, 7)
    padded = torch.cat([ids, torch.randint(3, 61, (3, 5))], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(3, 5, dtype=torch.long)], 1)
    long = toy_model("bert")
    sparsify(short, [{"input_ids": ids}])
    sparsify(long, [{"input_ids": padded, "attention_mask": mask}])
    for name, value in masks(short.module).items():
        assert torch.equal(value.bits, masks(long.module)[name].bits), name


def test_batches_do_not_matter_and_wanda_is_better_than_magnitude_on_what_it_saw() -> None:
    """How windows are batched changes nothing; SparseGPT, Wanda, magnitude: in this order near the original."""
    ids = toy_ids(toy_model("llama"), 0, 12, 16)

    def pruned(by: str, tokens: int = 1024) -> Model:
        model = toy_model("llama")
        scale = torch.linspace(0.1, 3, 24)  # features of unlike size, which is what Wanda looks at
        for block in model.anatomy.blocks:
            for norm in ("input_layernorm", "post_attention_layernorm"):
                model.module.get_submodule(f"{block}.{norm}").weight.data.mul_(scale)
        if by != "none":
            sparsify(model, windows_of(ids, tokens), Pruning(by=by))
        return model

    one, other = masks(pruned("wanda").module), masks(pruned("wanda", 16).module)
    assert all(torch.equal(one[name].bits, other[name].bits) for name in one)
    expected = outputs(pruned("none").module, {"input_ids": ids})
    errors = {
        by: float((outputs(pruned(by).module, {"input_ids": ids}) - expected).square().mean())
        for by in ("sparsegpt", "wanda", "magnitude")
    }
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_walk_scores_a_pruned_model(family: str) -> None:
    model = toy_model(family)
    ids = toy_ids(model, 0, 4, 12)
    sparsify(model, windows_of(ids), Pruning(amount=Pattern(2, 4) if family == "llama" else 0.3))
    assert torch.isfinite(Walk(model, ids).plain()).all()


def test_given_masks(tmp_path: Path) -> None:
    model, name = toy_model("llama"), "model.layers.1.mlp.up_proj"
    kept = magnitude_ref(model.module.get_parameter(f"{name}.weight"), 0.6)
    save_file({f"{name}.weight": kept}, tmp_path / "masks.safetensors")
    sparsify(model, (), Pruning(by="given", masks=read_masks(tmp_path / "masks.safetensors")))
    assert list(masks(model.module)) == [f"{name}.weight"]
    assert torch.equal(model.module.get_parameter(f"{name}.weight") != 0, kept)
    again = toy_model("llama")
    again.module.get_parameter(f"{name}.weight").data.mul_(kept)
    sparsify(again, (), Pruning(by="given"))
    assert torch.equal(masks(again.module)[f"{name}.weight"].unpacked(), kept), "the zeros that are there"


def test_given_without_masks_are_those_that_the_model_has() -> None:
    """A mask that is known counts, not which weights are zero by chance."""
    model, name = toy_model("llama"), "model.layers.0.mlp.up_proj"
    sparsify(model, (), Pruning(by="magnitude", amount=0.5))
    weight, before = model.module.get_parameter(f"{name}.weight"), masks(model.module)
    weight.data[before[f"{name}.weight"].unpacked()] = 0
    sparsify(model, (), Pruning(by="given"))
    assert all(torch.equal(mask.bits, before[key].bits) for key, mask in masks(model.module).items())
    foreign = toy_model("llama")
    foreign.module.get_parameter(f"{name}.weight").data[:, ::2] = 0
    sparsify(foreign, (), Pruning(by="given"))
    assert {key: mask.kept for key, mask in masks(foreign.module).items()} == {f"{name}.weight": 40 * 12}


def test_progress_is_told_block_by_block() -> None:
    events: list[Event] = []
    model = toy_model("llama")
    sparsify(model, (), Pruning(by="magnitude"), events=EventStream(events.append))
    assert [event.step for event in events if event.kind == "advance"] == [1, 2, 3, 4]


def test_a_finished_pruning_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    first, second = toy_model("gpt2"), toy_model("gpt2")
    sparsify(first, batches(first), Pruning(by="sparsegpt"), checkpoint=Checkpoint(tmp_path, {"by": "sparsegpt"}))
    sparsify(second, (), Pruning(by="sparsegpt"), checkpoint=Checkpoint(tmp_path, {"by": "sparsegpt"}))
    assert all(torch.equal(value, second.module.state_dict()[key]) for key, value in fingerprint(first).items())
    ours, theirs = masks(first.module), masks(second.module)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name].bits, theirs[name].bits) for name in ours)


def test_refusals(tmp_path: Path) -> None:
    model = toy_model("llama")
    before = fingerprint(model)
    name = "model.layers.1.mlp.up_proj"
    with pytest.raises(ConfigError, match=r"did you mean 'model\.layers\.1\.mlp\.up_proj'"):
        sparsify(
            model, (), Pruning(by="given", masks={"model.layers.1.mlp.pu_proj": torch.ones(40, 24, dtype=torch.bool)})
        )
    with pytest.raises(ConfigError, match=r"the mask of .*up_proj has shape \[24, 40\].*\[40, 24\]"):
        sparsify(model, (), Pruning(by="given", masks={name: torch.ones(24, 40, dtype=torch.bool)}))
    with pytest.raises(ConfigError, match="multiple of 7"):
        sparsify(model, (), Pruning(by="magnitude", amount=Pattern(3, 7)))
    with pytest.raises(DataError, match="nothing to calibrate on"):
        sparsify(model, [])
    for by in ("wanda", "sparsegpt"):
        broken = toy_model("llama")
        broken.module.get_input_embeddings().weight.data[5] = torch.inf
        with pytest.raises(NumericsError, match="inputs of a layer are NaN or infinite"):
            sparsify(broken, [{"input_ids": torch.arange(3, 9)[None]}], Pruning(by=by))
    (tmp_path / "masks.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        read_masks(tmp_path / "masks.safetensors")
    whisper = toy_model("whisper")
    with pytest.raises(UnsupportedModelError, match="two chains"):
        sparsify(whisper, [toy_inputs(whisper)])
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
