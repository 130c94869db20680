"""LoNAS: only adapters and the head learn, adapter and weight always have one shape, and merge into one dense layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lissome import pipeline
from lissome.core.errors import ConfigError, SubnetError
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.engine.search import Found
from lissome.methods.elastic.lonas import LoNAS
from lissome.models.adapters import adapters, add_lora, merged_copy
from lissome.models.binding import extract, masked
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.pipeline.reports import SupernetReport
from lissome.testing.conformance import difference, outputs
from lissome.testing.examples import repeated_text, worded_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model, toy_module

pytestmark = pytest.mark.long

QUICK = ("steps=4", "multiple=1", "min_width=2", "ranks=4,2,1", "batch=4", "lr=0.05")
IDS = torch.arange(4, 20).unsqueeze(0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("home")
    worded_texts(place / "words.jsonl", count=90)
    repeated_text(place / "text.txt")
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64}
    Model(toy_module("bert", **sizes), toy_tokenizer()).save(place / "bert")
    for name in ("llama", "qwen2"):
        module = toy_module(name, vocab_size=TOY_VOCABULARY, max_position_embeddings=1024)
        Model(module, toy_tokenizer()).save(place / name)
    return place


def make(home: Path, name: str, data: Path, out: Path, *settings: str) -> SupernetReport:
    return pipeline.supernet(home / name, method="lonas", data=data, settings=(*QUICK, *settings), out=out)


@pytest.fixture(scope="module")
def made(home: Path) -> Path:
    """A super-network of an encoder that was searched."""
    make(home, "bert", home / "words.jsonl", home / "S")
    pipeline.search(home / "S", out=home / "S" / "search", trials=8, settings=("population=4",))
    return home / "S"


def test_the_base_stays_as_it_was(home: Path, made: Path) -> None:
    base, tuned = pipeline.load(home / "bert").module, pipeline.load(made).module
    kept = dict(tuned.named_parameters())
    for name, value in base.named_parameters():
        if "pooler" not in name:  # part of the head, which learns
            assert torch.equal(value, kept[f"bert.{name}"]), name
    assert any(float(adapter.B.detach().abs().max()) > 0 for adapter in adapters(tuned).values())
    details = read_manifest(made).lineage[0].details
    heads = sum(value.numel() for name, value in kept.items() if "pooler" in name or "classifier" in name)
    added = sum(value.numel() for name, value in kept.items() if ".adapter." in name)
    assert details["trained"] == heads + added < 0.5 * details["of"]


def test_smaller_sub_networks_learn_from_the_largest(home: Path, tmp_path: Path) -> None:
    learnt = []
    for share in ("0", "1"):
        make(home, "bert", home / "words.jsonl", tmp_path / share, "paths=sandwich", f"distil={share}")
        pairs = adapters(pipeline.load(tmp_path / share).module)
        learnt.append(torch.cat([pair.B.detach().flatten() for pair in pairs.values()]))
    assert not torch.equal(*learnt)
    with pytest.raises(ConfigError, match="paths=sandwich"):
        LoNAS.Config(distil=0.5)


def test_adapters_that_a_model_has_are_merged_first(home: Path, tmp_path: Path) -> None:
    model = pipeline.load(home / "llama")
    add_lora(model, rank=2, seed=0)
    for adapter in adapters(model.module).values():
        torch.nn.init.normal_(adapter.B, std=0.1, generator=torch.Generator().manual_seed(0))
    wanted = dict(merged_copy(model).module.named_parameters())
    model.save(tmp_path / "base")
    out = tmp_path / "S"
    pipeline.supernet(tmp_path / "base", method="lonas", data=home / "text.txt", settings=QUICK, out=out)
    found = dict(pipeline.load(out).module.named_parameters())
    assert all(torch.equal(value.sum(), found[name].sum()) for name, value in wanted.items() if "norm" in name)
    place = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(found[place].norm(), wanted[place].norm())


def test_adapters_are_where_the_paper_has_them(home: Path, made: Path, tmp_path: Path) -> None:
    found = {name.rpartition(".")[2] for name in adapters(pipeline.load(made).module)}
    assert found == {"query", "value"}
    space = Space.from_json(read_manifest(made).space)
    kinds = {axis.name.rpartition(".")[2]: axis.choices for axis in space.axes}
    assert set(kinds) == {"groups", "width", "rank"}
    assert kinds["rank"] == (1, 2, 4)
    make(home, "llama", home / "text.txt", tmp_path / "S")
    model, space = pipeline.load(tmp_path / "S"), Space.from_json(read_manifest(tmp_path / "S").space)
    on = adapters(model.module)
    assert {name.rpartition(".")[2] for name in on} == {
        "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    per_layer = [axis.name for axis in space.axes if axis.name.startswith("layers.0.")]
    assert per_layer == [
        "layers.0.attention.q_proj+k_proj+v_proj.rank", "layers.0.mlp.width", "layers.0.mlp.gate_proj+up_proj.rank",
    ]  # fmt: skip
    down = on["model.layers.0.mlp.down_proj"]
    assert down.ranks == (4,), "what writes the output has one rank, as the paper's down_proj"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", ("order=wanda", "warm_steps=2")),
        ("qwen2", ()),
        pytest.param("bert", ("adapt=all",), marks=pytest.mark.slow),
        pytest.param("bert", ("paths=sandwich",), marks=pytest.mark.slow),
        pytest.param("llama", ("adapt=all", "order=l1"), marks=pytest.mark.slow),
    ],
)
def test_extracted_and_merged_is_what_was_masked(
    name: str, settings: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    data = home / "words.jsonl" if name == "bert" else home / "text.txt"
    report = make(home, name, data, tmp_path / "S", *settings)
    searched = pipeline.search(tmp_path / "S", out=tmp_path / "S" / "search", trials=5)
    assert searched.original["params"] == report.points[0]["figures"]["params"]
    point = Found.load(tmp_path / "S" / "found.json").points[1]
    cut = pipeline.extract_for(tmp_path / "S", point=point.number, out=tmp_path / "A")
    small, whole = pipeline.load(tmp_path / "A"), pipeline.load(tmp_path / "S")
    assert not adapters(small.module)
    inputs = {"input_ids": IDS}
    with masked(whole, cut.subnet, space=Space.from_json(read_manifest(tmp_path / "S").space)):
        wanted = outputs(whole.module, inputs)
    assert difference(outputs(small.module, inputs), wanted) < 1e-5
    assert Counter(small).count().macs == point.figures["macs"] == cut.figures["macs"]
    assert Counter(small).count().params == point.figures["params"]


def test_the_middle_of_every_list_is_extracted_without_a_search(home: Path, tmp_path: Path) -> None:
    report = make(home, "llama", home / "text.txt", tmp_path / "S")
    (middle,) = (point for point in report.points if point["change"] == "middle")
    cut = pipeline.extract_for(tmp_path / "S", point="middle", out=tmp_path / "A")
    space, whole = Space.from_json(read_manifest(tmp_path / "S").space), pipeline.load(tmp_path / "S")
    assert cut.subnet == {axis.name: axis.choices[::-1][(len(axis.choices) - 1) // 2] for axis in space.axes}
    assert cut.number is None and cut.figures["macs"] == middle["figures"]["macs"] < cut.original["macs"]
    assert cut.figures["ppl"] == middle["quality"]["ppl"]
    with masked(whole, cut.subnet, space=space):
        wanted = outputs(whole.module, {"input_ids": IDS})
    small = pipeline.load(tmp_path / "A")
    assert not adapters(small.module)
    assert difference(outputs(small.module, {"input_ids": IDS}), wanted) < 1e-5
    with pytest.raises(SubnetError, match="unknown point 'half'; known: largest, middle, smallest"):
        pipeline.extract_for(tmp_path / "S", point="half", out=tmp_path / "B")


def test_untrained_adapters_change_nothing(home: Path, tmp_path: Path) -> None:
    """With B = 0 the largest is the base, and every other one the base cut to its sizes."""
    model = toy_model("llama")
    LoNAS(LoNAS.Config(ranks=(4, 2))).adapt(model, seed=0)
    base = toy_model("llama")
    inputs = {"input_ids": IDS}
    assert torch.equal(outputs(model.module, inputs), outputs(base.module, inputs))
    sizes = {"layers.1.mlp.width": 16, "layers.2.mlp.width": 24}
    subnet = {**sizes, "layers.0.mlp.gate_proj+up_proj.rank": 2}
    assert (
        difference(outputs(extract(model, subnet).module, inputs), outputs(extract(base, sizes).module, inputs)) < 1e-6
    )


def test_what_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distinct, positive and descending"):
        LoNAS.Config(ranks=(2, 4))
    with pytest.raises(ConfigError, match=r"is more than any layer of .* can use; set a rank of at most 24"):
        pipeline.supernet(
            home / "bert", method="lonas", data=home / "words.jsonl", settings=(f"ranks={10**18},4", "tune_steps=9"),
            out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
