"""Weights on a grid: files hold their integers and give every bit back; what was changed since is no longer on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lissome.core.errors import ArtifactError
from lissome.cost.counted import Counter
from lissome.engine.sparsify import Pruning, prunable, sparsify
from lissome.models.adapters.layers import quantise
from lissome.models.binding import extract
from lissome.models.integers import grid_of_layer, grids, pack, set_grid, stored_sizes, unpack
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.sparse import masks
from lissome.testing.conformance import outputs
from lissome.testing.toys import FAMILIES, toy_inputs, toy_model

NAME = "model.layers.0.mlp.up_proj.weight"


def on_grids(family: str = "llama", bits: int = 4, *, zeros: bool = True) -> Model:
    """A toy of whose branches' weights half are zero and all lie on grids."""
    model = toy_model(family)
    if zeros:
        sparsify(model, (), Pruning(by="magnitude"))
    for name in prunable(model):
        quantise(model.module.get_submodule(name), bits, 8)
    return model


@settings(deadline=None)
@given(bits=st.integers(2, 8), count=st.integers(0, 70), seed=st.integers(0, 999))
def test_packed_and_unpacked(bits: int, count: int, seed: int) -> None:
    integers = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(integers, bits)
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), integers)
    digits = "".join(f"{value:0{bits}b}" for value in integers.tolist())
    assert "".join(f"{value:08b}" for value in packed.tolist())[: len(digits)] == digits


def test_many_are_packed_in_pieces() -> None:
    integers = torch.randint(0, 8, ((1 << 20) + 13,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(unpack(pack(integers, 3), 3, len(integers)), integers)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bits", "dtype", "zeros"), [(4, torch.float32, True), (3, torch.bfloat16, False)])
def test_a_saved_model_reads_back_bit_for_bit(
    family: str, bits: int, dtype: torch.dtype, zeros: bool, tmp_path: Path
) -> None:
    model = on_grids(family, bits, zeros=zeros)
    model.module.to(dtype)
    model.save(tmp_path / "a")
    again = load_model(tmp_path / "a", dtype=None)
    stored, read = model.module.state_dict(), again.module.state_dict()
    assert stored.keys() == read.keys()
    for name, value in stored.items():
        assert value.dtype == read[name].dtype, name
        assert torch.equal(value.contiguous().view(torch.uint8), read[name].contiguous().view(torch.uint8)), name
    assert grids(again.module).keys() == grids(model.module).keys()
    assert masks(again.module).keys() == masks(model.module).keys()
    file = load_file(tmp_path / "a" / "model.safetensors")
    names = [f"{name}.weight" for name in prunable(model)]
    assert not [name for name in names if name in file or f"{name}.values" in file]
    for name in names:
        grid, mask = grids(model.module)[name], masks(model.module).get(name)
        size = model.module.get_parameter(name).numel()
        expected = stored_sizes(size, mask.kept if mask else size, grid.scale.numel(), bits, masked=mask is not None)
        assert {key.removeprefix(name): value.nbytes for key, value in file.items() if key.startswith(f"{name}.")} == (
            expected
        )
    assert Counter(model).count().disk == pytest.approx((tmp_path / "a" / "model.safetensors").stat().st_size, rel=0.02)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["storage"] == "integers"
    again.save(tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


_FRESH = """
import sys, torch, lissome
module = lissome.load(sys.argv[1]).module
print(module(input_ids=torch.arange(3, 12)[None]).logits.double().sum().item().hex())
"""


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    model = on_grids()
    model.save(tmp_path / "whole")
    expected = outputs(model.module, {"input_ids": torch.arange(3, 12)[None]}).double().sum().item().hex()
    command = [sys.executable, "-c", _FRESH, str(tmp_path / "whole")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1] == expected


def test_a_weight_that_left_its_grid_is_written_as_it_is(tmp_path: Path) -> None:
    model = on_grids()
    weight = model.module.get_parameter(NAME)
    weight.data[0, 0] += 1e-3
    model.save(tmp_path / "moved")
    file = load_file(tmp_path / "moved" / "model.safetensors")
    assert not [key for key in file if key.startswith(f"{NAME}.int")]
    assert torch.equal(load_model(tmp_path / "moved").module.get_parameter(NAME), weight)
    layer = model.module.get_submodule(NAME.removesuffix(".weight"))
    grid = grid_of_layer(layer)
    assert not set_grid(layer, grid) and grid_of_layer(layer) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cutting_a_weight_forgets_its_grid_alone(family: str) -> None:
    model = on_grids(family)
    axis = next(axis for axis in model.space(width=1).axes if axis.name.endswith("0.mlp.width"))
    subnet = {**model.space(width=1).full, axis.name: axis.choices[0]}
    small = extract(model, subnet, space=model.space(width=1))
    gone = grids(model.module).keys() - grids(small.module).keys()
    assert gone and all(".0.mlp." in name for name in gone)
    assert Counter(model).count(subnet).disk == pytest.approx(Counter(small).count().disk, rel=0.1)
    outputs(small.module, toy_inputs(small))


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    on_grids().save(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    whole = load_file(file)
    layer: nn.Linear = toy_model().module.get_submodule(NAME.removesuffix(".weight"))
    assert f"{NAME}.int4" in whole

    def refused(words: str = "damaged", **changes: Tensor | None) -> None:
        tensors = whole | {f"{NAME}.{key}": value for key, value in changes.items()}
        save_file({name: value for name, value in tensors.items() if value is not None}, file)
        with pytest.raises(ArtifactError, match=words) as caught:
            load_model(tmp_path / "a")
        assert "\n" not in str(caught.value)

    integers, scale, zero = (whole[f"{NAME}.{key}"] for key in ("int4", "scale", "zero"))
    refused(int4=integers[:-1].clone())
    refused(int4=torch.cat([integers, integers]))
    refused(int4=integers.float())
    refused(int4=integers[None])
    refused(scale=scale[:-1].clone())
    refused(scale=scale[:, :-1].clone())
    refused(scale=scale.flatten())
    refused(scale=scale.double())
    refused(scale=-scale)
    refused(scale=scale * float("nan"))
    refused(scale=torch.zeros(layer.weight.shape[0], 0))
    refused(scale=None)
    refused(zero=zero[:-1].clone())
    refused(zero=None)
    refused(bitmap=whole[f"{NAME}.bitmap"][:-1].clone())
    refused(bitmap=whole[f"{NAME}.bitmap"] & 0)
    refused(bitmap=None)
    refused(int5=integers.clone())
    refused("unknown", values=scale.clone())
    save_file(whole | {NAME: layer.weight.data}, file)
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(tmp_path / "a")
    save_file(whole | {"model.norm.weight.int4": integers.clone()}, file)
    with pytest.raises(ArtifactError, match=r"model\.norm\.weight are damaged"):
        load_model(tmp_path / "a")
