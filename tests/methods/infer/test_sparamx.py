"""SparAMX from end to end: zeros made or taken, kernels that compute the same, an artifact that runs on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lissome
from lissome import pipeline
from lissome.core.errors import ArtifactError, ConfigError
from lissome.cost.device import last_cache
from lissome.cost.measured import Request, compare
from lissome.cost.sparsity import losing_shapes
from lissome.engine.decode.packed import accelerated
from lissome.models.model import Model
from lissome.models.packed import KERNELS, kernels_of
from lissome.models.sparse import sparsity
from lissome.ops.kernels.linear import SparseLinear
from lissome.testing.toys import toy_model, toy_module

SETTINGS = ("windows=2",)


@pytest.fixture(scope="module")
def half(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "half"
    report = pipeline.fit(toy / "llama", method="sparamx", data=toy / "text.txt", settings=SETTINGS, out=out)
    assert any("with kernels for zeros" in note for note in report.notes)
    return out


@pytest.mark.long
def test_fit_prunes_and_the_folder_runs_on_kernels(toy: Path, half: Path) -> None:
    assert json.loads((half / KERNELS).read_text()) == {"weights": "bf16", "head": "int8"}
    plain = lissome.load(half)
    assert sparsity(plain.module)["sparse layers"] == pytest.approx(0.5, abs=0.02)
    assert kernels_of(plain) == {"weights": "bf16", "head": "int8"}
    assert kernels_of(lissome.load(toy / "llama")) is None
    said = pipeline.generate(half, "the quick", max_new_tokens=4)
    assert said.tokens <= 4
    assert said.bits is None
    rows = pipeline.measure(half, against=toy / "llama")
    assert any("with kernels for zeros runs it (bf16, head int8)" in note for note in rows.notes)
    assert pipeline.evaluate(half, text=toy / "text.txt").rows[0].figures["ppl"].metric.value > 1  # as it is stored


@pytest.mark.long
def test_zeros_that_are_there_are_taken(toy: Path, half: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [*SETTINGS, "sparsity=0.9", "weights=int8", "head=keep"]
    pipeline.fit(half, method="sparamx", data=toy / "text.txt", settings=settings, out=out)
    first, second = (lissome.load(folder).module.state_dict() for folder in (half, out))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((out / KERNELS).read_text()) == {"weights": "int8", "head": "keep"}
    with pytest.raises(ConfigError, match="no zeros"):
        pipeline.fit(
            toy / "llama", method="sparamx", data=toy / "text.txt", settings=["sparsity=0"], out=tmp_path / "none"
        )


@pytest.mark.long
def test_the_plan_predicts_the_file_and_warns(toy: Path, half: Path) -> None:
    plan = pipeline.plan(toy / "llama", method="sparamx", data=toy / "text.txt", settings=SETTINGS)
    size = (half / "model.safetensors").stat().st_size
    assert plan.predicted["disk"] == pytest.approx(size, rel=0.05)
    if last_cache():
        assert any("fit the last cache" in note for note in plan.notes)  # a toy fits any
    few = pipeline.plan(toy / "llama", method="sparamx", data=toy / "text.txt", settings=["sparsity=0.1"])
    assert any("10% zeros save" in note for note in few.notes)


def test_torch_runs_what_the_engine_does_not() -> None:
    model = toy_model("opt")
    for part in model.module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data[:, ::2] = 0
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        wanted = model.module(ids).logits
        target, what = accelerated(model, {"weights": "bf16", "head": "int8"})
        assert isinstance(target, Model)
        assert "kernels for zeros run" in what
        assert any(isinstance(part, SparseLinear) for part in target.module.modules())
        assert not any(isinstance(part, SparseLinear) for part in model.module.modules())
        assert (target.module(ids).logits - wanted).norm() < 0.05 * wanted.norm()
    timed = compare(toy_model("opt"), target, Request(prompt=4, new=3), rounds=1)
    assert timed.ratios["decode"].value > 0


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    model = Model(toy_module("llama"), None)
    model.save(tmp_path / "toy")
    for text in ("[]", '{"weights": "bf16"}', '{"weights": "int4", "head": "int8"}', '{"weights": [], "head": "int8"}'):
        (tmp_path / "toy" / KERNELS).write_text(text)
        with pytest.raises(ArtifactError, match="does not say how"):
            kernels_of(lissome.load(tmp_path / "toy"))


def test_what_loses_is_named() -> None:
    big = {f"layer {at}": (4096, 4096) for at in range(8)}
    assert losing_shapes(big, 0.5, "bf16", 32 << 20) == ()
    assert "save 4% of the bytes" in losing_shapes(big, 0.1, "bf16", 0)[0]
    assert "save 0% of the bytes" in losing_shapes(big, 0.1, "int8", 0)[0]
    (note,) = losing_shapes({"only": (2048, 2048)}, 0.5, "int8", 32 << 20)
    assert "slower than dense ones" in note
    (note,) = losing_shapes({**big, "gate": (8, 4096)}, 0.5, "bf16", 1 << 20)
    assert note.startswith("1 of 9 layers")
    assert losing_shapes({}, None, "bf16", 1 << 20) == ()
