"""SuperSAM: layers go as a whole, never the first; units sorted by worth; what a step leaves out stays as it was."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from lissome import pipeline
from lissome.core.errors import ConfigError, UnsupportedModelError
from lissome.core.manifest import read_manifest
from lissome.engine.elastic import Elastic
from lissome.engine.hooks import Task
from lissome.engine.ranking import ranking, saliency
from lissome.engine.spaces import combinations
from lissome.engine.train import TrainConfig, train
from lissome.methods.elastic.supersam import SuperSAM, Turns
from lissome.models.binding import masked, reorder
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.space import Axis, Space
from lissome.testing.conformance import difference, outputs
from lissome.testing.examples import repeated_text, striped_images, worded_texts
from lissome.testing.networks import VisionTransformer
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_inputs, toy_model, toy_module

pytestmark = pytest.mark.long

QUICK = ("steps=4", "min_width=2", "multiple=1", "batch=4", "examples=16", "tune_steps=2", "lr=0.01", "weight_decay=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("home")
    worded_texts(place / "words.jsonl", count=60)
    repeated_text(place / "text.txt")
    striped_images(place / "stripes.npz", count=80)
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64}
    Model(toy_module("bert", **sizes), toy_tokenizer()).save(place / "bert")
    Model(toy_module("vit-labels", image_size=16, num_channels=3, patch_size=4)).save(place / "vit")
    return place


@pytest.mark.parametrize(
    ("name", "data", "settings"),
    [
        ("bert", "words.jsonl", ()),
        ("vit", "stripes.npz", ("update=in_turn", "order=movement")),
        pytest.param("vit", "stripes.npz", ("layers=2", "part=blocks", "order=none"), marks=pytest.mark.slow),
    ],
)
def test_from_a_transformer_to_a_super_network(
    name: str, data: str, settings: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    report = pipeline.supernet(
        home / name, method="supersam", data=home / data, settings=(*QUICK, *settings), out=tmp_path / "S"
    )
    manifest = read_manifest(tmp_path / "S")
    space, details = Space.from_json(manifest.space), manifest.lineage[0].details
    assert not [axis for axis in space.axes if axis.name.startswith("layers.0.")], "the first layer stays whole"
    assert all({axis.split(".")[1] for axis in tie} == {tie[0].split(".")[1]} for tie in space.ties)
    assert all(len(tie) == 2 for tie in space.ties), "attention and MLP of a layer go together"
    assert {int(tie[0].split(".")[1]) for tie in space.ties} == set(details["layers"])
    if "layers=2" in settings:
        assert details["layers"] == [2] and not details["loss_without"]
    else:
        ranked = sorted(details["loss_without"], key=lambda layer: details["loss_without"][layer])
        assert set(details["layers"]) == set(map(int, ranked[: len(details["layers"])]))
        assert len(details["layers"]) == 2, "0.4 of four layers"
    assert report.log10_subnets > 1
    widths = [axis for axis in space.axes if axis.name.endswith("width")]
    assert len(widths) == 3
    found = pipeline.search(
        tmp_path / "S", out=tmp_path / "S" / "search", trials=6, sampler="ensemble", budget=("params<=95%",),
        settings=("population=3",),
    )  # fmt: skip
    assert found.evaluated == 6
    cut = pipeline.extract_for(tmp_path / "S", budget="params<=95%", out=tmp_path / "A")
    whole, small = pipeline.load(tmp_path / "S"), pipeline.load(tmp_path / "A")
    inputs = toy_inputs(whole, 0, 2, 9)
    with masked(whole, cut.subnet, space=space):
        wanted = outputs(whole.module, inputs)
    assert difference(outputs(small.module, inputs), wanted) < 1e-5


def test_a_network_of_any_class(home: Path, tmp_path: Path) -> None:
    module = VisionTransformer()
    module.head = torch.nn.Linear(16, 4)
    report = pipeline.supernet(
        load_model(module, example=(3, 16, 16)), method="supersam", data=home / "stripes.npz",
        settings=(*QUICK, "removable=0.5"), out=tmp_path / "S",
    )  # fmt: skip
    space = Space.from_json(read_manifest(tmp_path / "S").space)
    assert report.axes == 3
    assert space.ties == (("blocks.1.attention", "blocks.1.mlp"),)
    assert combinations(space) == 2 * len(space.axes[-1].choices)


def test_the_three_take_turns() -> None:
    space = Space((Axis("a", (1, 2, 3)), Axis("b", (1, 2, 3))))
    drawn = [Turns(space).draw(step, Random(step))[0] for step in range(6)]
    assert drawn[0] == drawn[3] == space.full
    assert drawn[1] == drawn[4] == space.smallest


def test_a_step_in_turn_leaves_what_it_does_not_use() -> None:
    """Layers that are left out, and units beyond the width, keep their weights: nothing is written back there."""
    model = toy_model("bert-labels")
    space = Space(
        (Axis("layers.1.attention", (0, 1)), Axis("layers.1.mlp", (0, 1)), Axis("layers.2.mlp.width", (8, 24))),
        ties=(("layers.1.attention", "layers.1.mlp"),),
    )
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    class Smallest(Turns):
        def draw(self, step: int, rng: object) -> tuple[object, ...]:
            return (self.space.smallest,)

    ids = toy_inputs(model, 0, 4, 5)["input_ids"]
    task = Task(
        module=model.module,
        loss=lambda module, batch: module(input_ids=batch.examples).logits.square().mean(1),
        data=ids,
    )
    config = TrainConfig(steps=1, lr=0.1, batch=2, precision="fp32")
    train(task, config, seed=0, hooks=Elastic(model, Smallest(space)))  # type: ignore[arg-type]
    after = model.module.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert not [name for name in changed if ".layer.1." in name and "LayerNorm" not in name]
    up = "bert.encoder.layer.2.intermediate.dense.weight"
    assert torch.equal(before[up][8:], after[up][8:]) and not torch.equal(before[up][:8], after[up][:8])


def test_sorting_by_both_layers_of_an_mlp() -> None:
    model, inputs = toy_model("bert-labels"), toy_inputs(toy_model("bert-labels"), 0, 3, 6)
    plain = outputs(model.module, inputs)
    orders = ranking(model, saliency(model, "wanda", batches=[inputs]), sides="both", axes=["layers.1.mlp.width"])
    up, down = (f"bert.encoder.layer.1.{part}.dense.weight" for part in ("intermediate", "output"))
    found = saliency(model, "wanda", batches=[inputs])
    expected = found[up].sum(1) + found[down].sum(0)
    assert torch.equal(orders["layers.1.mlp.width"][0], expected.argsort(descending=True, stable=True))
    reorder(model, orders)
    assert difference(outputs(model.module, inputs), plain) < 1e-5


def test_what_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers must be of 1, 2, 3 \(layer 0 always stays\), got 1, 7"):
        pipeline.supernet(
            home / "vit", method="supersam", data=home / "stripes.npz", settings=("layers=1,7",), out=tmp_path / "S"
        )
    with pytest.raises(ConfigError, match=r"part=vision_encoder is for segmenters, which .* is not"):
        pipeline.supernet(
            home / "vit", method="supersam", data=home / "stripes.npz", settings=("part=vision_encoder",),
            out=tmp_path / "T",
        )  # fmt: skip
    linear = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Flatten(), torch.nn.Linear(4 * 49, 4))
    model = load_model(linear.eval(), example=(3, 16, 16))
    with pytest.raises(UnsupportedModelError, match="SuperSAM makes MLPs of transformers smaller"):
        SuperSAM(SuperSAM.Config()).run(model, _context(model, home, tmp_path))


def _context(model: Model, home: Path, folder: Path) -> object:
    from lissome.core.budget import Budget
    from lissome.core.events import EventStream
    from lissome.core.method import Context
    from lissome.cost.oracle import SubnetCost
    from lissome.data.images import read_images
    from lissome.engine.pictures import image_splits

    data = image_splits(model, read_images(home / "stripes.npz")).for_methods()
    return Context(
        budget=Budget(), original={}, seed=0, events=EventStream(), folder=folder, data=data, cost=SubnetCost(model)
    )
