"""Sparse weights: files hold the kept numbers alone and give every bit back; cutting and sorting keep masks right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissome.core.errors import ArtifactError, ConfigError
from lissome.cost.counted import Counter
from lissome.models.binding import extract, reorder
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.sparse import Mask, compress, expand, mask_of, masks, set_mask, sparsity
from lissome.testing.conformance import outputs
from lissome.testing.toys import FAMILIES, toy_inputs, toy_model

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def halved(family: str, seed: int = 0, share: float = 0.5) -> Model:
    """A toy of whose branches' weights about half are zero."""
    model = toy_model(family, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for branch in model.anatomy.branches:
        for name in branch.linears:
            layer = model.module.get_submodule(name)
            kept = torch.rand(layer.weight.shape, generator=generator) >= share
            layer.weight.data.masked_fill_(~kept, 0)
            set_mask(layer, kept)
    return model


@settings(deadline=None)
@given(
    kept=arrays.arrays(bool, arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=11)),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 10**6),
)
def test_bit_for_bit(kept: object, dtype: torch.dtype, seed: int) -> None:
    mask = torch.from_numpy(kept)
    whole = torch.randint(
        -(2**15), 2**15, (*mask.shape, dtype.itemsize // 2), generator=torch.Generator().manual_seed(seed)
    )
    tensor = whole.short().view(dtype).view(mask.shape)  # any bits: NaN, −0, infinities, subnormals
    tensor = torch.where(mask, tensor, torch.zeros((), dtype=dtype))
    packed = Mask.of(mask)
    assert torch.equal(packed.unpacked(), mask) and packed.kept == int(mask.sum())
    stored = compress({"a": tensor, "b": tensor}, {"a": packed})
    assert stored["b"] is tensor
    assert ("a" in stored) != packed.pays(dtype.itemsize)
    size = sum(value.nbytes for name, value in stored.items() if name != "b")
    assert size == min(packed.bytes(dtype.itemsize), tensor.nbytes)
    back, found = expand(stored, {"a": tensor.shape, "b": tensor.shape})
    assert torch.equal(back["a"].view(torch.uint8), tensor.view(torch.uint8))
    assert all(torch.equal(value.unpacked(), mask) for value in found.values())


def test_a_kept_zero_stays_kept_and_a_stale_mask_is_not_believed() -> None:
    mask = torch.tensor([[True, False, True, False, False, False, False, False]])
    tensor = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    stored = compress({"a": tensor}, {"a": Mask.of(mask)})
    assert torch.equal(stored["a.values"], torch.tensor([1.0, 0.0])), "a weight that happens to be 0 is not pruned"
    for changed in (1e-9, -0.0):
        tensor[0, 3] = changed
        assert compress({"a": tensor}, {"a": Mask.of(mask)})["a"] is tensor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_reads_back_with_its_masks(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = halved(family)
    model.module.to(dtype)
    model.save(tmp_path / "sparse")
    again = load_model(tmp_path / "sparse", dtype=None)
    stored, read = model.module.state_dict(), again.module.state_dict()
    assert stored.keys() == read.keys()
    for name, value in stored.items():
        assert torch.equal(value.contiguous().view(torch.uint8), read[name].contiguous().view(torch.uint8)), name
    ours, theirs = masks(model.module), masks(again.module)
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(ours[name].bits, theirs[name].bits) for name in ours)
    written = (tmp_path / "sparse" / "model.safetensors").stat().st_size
    counts = Counter(model).count()
    assert counts.disk == pytest.approx(written, rel=0.01)
    assert counts.disk < 0.9 * counts.dense_disk
    assert json.loads((tmp_path / "sparse" / "config.json").read_text())["storage"] == "bitmap"


_FRESH = """
import sys, torch, lissome.models.auto
from transformers import AutoModelForCausalLM
module = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(module(input_ids=torch.arange(3, 12)[None]).logits.double().sum().item().hex())
"""


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    model = halved("llama")
    model.save(tmp_path / "sparse")
    expected = outputs(model.module, {"input_ids": torch.arange(3, 12)[None]}).double().sum().item().hex()
    command = [sys.executable, "-c", _FRESH, str(tmp_path / "sparse")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1] == expected


def zeros_match(model: Model) -> None:
    """Outside of its mask every weight is zero, and inside none of these random ones is."""
    for name, mask in masks(model.module).items():
        weight = model.module.get_parameter(name)
        assert tuple(weight.shape) == mask.shape, name
        assert torch.equal(weight != 0, mask.unpacked()), name


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10**6))
def test_masks_are_cut_and_sorted_with_their_weights(family: str, seed: int) -> None:
    model, generator = halved(family), torch.Generator().manual_seed(seed)
    before = outputs(model.module, toy_inputs(model))
    orders = {
        branch.axis(dim.name): torch.stack([torch.randperm(dim.size, generator=generator) for _ in range(dim.lanes)])
        for branch in model.anatomy.branches
        for dim in branch.dims
    }
    reorder(model, orders)
    zeros_match(model)
    torch.testing.assert_close(outputs(model.module, toy_inputs(model)), before, rtol=1e-4, atol=1e-4)
    space = model.space(width=1)
    subnet = space.sample(Random(seed))
    small = extract(model, subnet)
    zeros_match(small)
    zeros_match(model)
    exact, scaled = Counter(small).count().disk, Counter(model).count(subnet).disk
    assert scaled == pytest.approx(exact, rel=0.1)


def test_shares_say_what_they_are_of() -> None:
    model = halved("llama", share=0.75)
    found = sparsity(model.module)
    assert found["sparse layers"] == pytest.approx(0.75, abs=0.02)
    assert 0.3 < found["all parameters"] < found["sparse layers"]
    assert sparsity(toy_model("llama").module) == {}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)
    with pytest.raises(ConfigError, match=r"\[3, 5\].*\[3, 4\]"):
        set_mask(layer, torch.ones(3, 5, dtype=torch.bool))
    assert mask_of(layer) is None
    halved("llama").save(tmp_path / "sparse")
    file = tmp_path / "sparse" / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"

    def damaged(**changes: Tensor) -> None:
        save_file(whole | {f"{name}.{key}": value for key, value in changes.items()}, file)
        with pytest.raises(ArtifactError, match="damaged") as caught:
            load_model(tmp_path / "sparse")
        assert "\n" not in str(caught.value)

    damaged(bitmap=whole[f"{name}.bitmap"][:-1].clone())
    damaged(bitmap=whole[f"{name}.bitmap"] | 1)
    damaged(values=whole[f"{name}.values"][:-1].clone())
    damaged(bitmap=whole[f"{name}.bitmap"].float())
