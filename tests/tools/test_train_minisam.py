"""Scenes have masks under their points; MiniSAM learns, is saved as `SamModel`, and becomes a super-network."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from lissome import pipeline
from lissome.core.errors import ConfigError, DataError
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.data.masks import holds_masks, read_masks
from lissome.engine.hooks import Batch
from lissome.engine.segments import Segments, dice, iou, segment_splits
from lissome.models.binding import masked
from lissome.models.example import example
from lissome.models.load import load_model
from lissome.models.space import Space
from lissome.testing import conformance
from tools.train_minisam import DOMAINS, POINTS, SIZE, Scenes, minisam, points_loss, scenes

pytest.importorskip("sklearn", reason="scenes are made of scikit-learn's digits and photographs")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scenes")
    for domain in DOMAINS:
        scenes(place / f"{domain}.npz", domain=domain, count=24, seed=1)
    small = minisam(hidden_size=32, num_hidden_layers=4, global_attn_indexes=[1, 3], num_pos_feats=32)
    load_model(small).save(place / "mini")
    return place


@pytest.mark.parametrize("domain", DOMAINS)
def test_points_lie_on_their_masks(domain: str, home: Path, tmp_path: Path) -> None:
    data = read_masks(home / f"{domain}.npz")
    assert len(set(data.groups.tolist())) == 24 < len(data)
    for point, mask in zip(data.points, data.masks, strict=True):
        x, y = np.floor(point).astype(int)
        assert mask[y, x] and 20 <= mask.sum() < mask.size / 3
    again = read_masks(scenes(tmp_path / "again.npz", domain=domain, count=24, seed=1))
    assert again.sha256 == data.sha256
    parts = data.parts({"recovery": 0.6, "search": 0.2, "selection": 0.2})
    owners = [{int(data.groups[at]) for at in part} for part in parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)), "a scene lies in one part"
    assert sum(map(len, parts.values())) == len(data)


def test_losses_of_known_masks() -> None:
    truth = torch.zeros(1, 4, 4)
    truth[0, :2] = 1
    right, wrong = 20 * (2 * truth - 1), -20 * (2 * truth - 1)
    offered = torch.stack([right, wrong, torch.full_like(truth, 20.0)], 1)
    assert torch.allclose(iou(offered, truth), torch.tensor([[1.0, 0.0, 0.5]]))
    assert torch.allclose(dice(offered, truth), torch.tensor([[0.0, 1 - 1 / 17, 1 - 17 / 25]]), atol=1e-4)
    assert iou(-offered[:, 2:], torch.zeros(1, 4, 4)).item() == 1


def test_the_best_mask_in_truth_is_never_worse(home: Path) -> None:
    model = load_model(home / "mini")
    objective = Segments(segment_splits(model, read_masks(home / "noisy.npz")))
    found = objective.figures(model, "test")
    assert 0 <= found["miou"] <= found["best_miou"] <= 1
    assert set(objective.splits) == {"search", "selection", "test"}
    with pytest.raises(ConfigError, match="not from a teacher"):
        objective.lesson(model, model, share=0.5, temperature=1.0)


@pytest.mark.parametrize("seed", range(4))
def test_turned_scenes_have_their_points_on_their_masks(seed: int, home: Path) -> None:
    examples = Segments(segment_splits(load_model(home / "mini"), read_masks(home / "noisy.npz"))).data.recovery
    made = Scenes(examples)
    assert len(made) == len({int(examples.data.groups[place]) for place in examples.places}) < len(examples)
    torch.manual_seed(seed)
    drawn = made[seed]
    assert drawn["points"].shape == (POINTS, 1, 2) and drawn["masks"].shape == (POINTS, SIZE, SIZE)
    for (point,), mask in zip(drawn["points"], drawn["masks"], strict=True):
        x, y = point.floor().long()
        assert mask[y, x] == 1
    known = [examples[at] for at in range(len(examples))]
    sums = {(int(each["mask"].sum()), round(float((each["pixel_values"] * each["mask"]).sum()), 1)) for each in known}
    for mask in drawn["masks"]:
        seen = (int(mask.sum()), round(float((drawn["pixel_values"] * mask).sum()), 1))
        assert seen in sums, "image and mask are turned together"


def test_nearby_points_look_alike_to_a_segmenter_that_is_drawn() -> None:
    places = minisam().shared_image_embedding(torch.tensor([[[[32.0, 32.0], [33.0, 32.0], [60.0, 5.0]]]]) / SIZE)[0, 0]
    near, far = (torch.cosine_similarity(places[0], places[other], dim=0) for other in (1, 2))
    assert near > 0.9 > 0.5 > far


def test_the_loss_is_of_every_scene_and_reaches_every_part(home: Path) -> None:
    model = load_model(home / "mini")
    objective = Segments(segment_splits(model, read_masks(home / "noisy.npz")))
    made = Scenes(objective.data.recovery)
    examples = torch.utils.data.default_collate([made[at] for at in range(3)])
    model.module.requires_grad_(True)
    found = points_loss(model.module, Batch(examples, torch.arange(3), None, 0))
    assert found.shape == (3,) and bool((found > 0).all())
    found.mean().backward()
    for part in ("vision_encoder", "mask_decoder"):
        assert any(
            float(value.grad.norm()) > 0 for value in getattr(model.module, part).parameters() if value.grad is not None
        )


def test_scenes_can_be_kept_for_tests(tmp_path: Path) -> None:
    data = read_masks(scenes(tmp_path / "x.npz", domain="noisy", count=12, tests=5))
    parts = data.parts({"recovery": 0.5, "search": 0.2, "selection": 0.3})
    assert {int(data.groups[at]) for at in parts["test"]} == set(range(12, 17))
    assert sum(map(len, parts.values())) == len(data)


def test_a_segmenter_is_judged_on_masks(home: Path) -> None:
    report = pipeline.evaluate(home / "mini", data=home / "striped.npz")
    figures = report.rows[0].figures
    assert figures["miou"].metric.n == len(read_masks(home / "striped.npz"))
    assert figures["miou"].metric.value <= figures["best_miou"].metric.value <= 1
    assert figures["miou"].metric.better == "higher" and figures["loss"].metric.better == "lower"


def test_a_segmenter_becomes_a_super_network(home: Path, tmp_path: Path) -> None:
    settings = (
        "steps=3", "batch=4", "examples=8", "min_width=8", "lr=0.001", "removable=0.75", "widths=1,0.5", "multiple=1",
    )  # fmt: skip
    report = pipeline.supernet(
        home / "mini", method="supersam", data=home / "noisy.npz", settings=settings, out=tmp_path / "S"
    )
    assert set(report.points[0]["quality"]) == {"miou", "best_miou", "loss"}
    space = Space.from_json(read_manifest(tmp_path / "S").space)
    assert all(axis.name.startswith("vision_encoder.layers.") for axis in space.axes), "prompts and decoder stay"
    assert not [axis for axis in space.axes if ".0." in axis.name or axis.name.endswith("layers.0")]
    assert len(space.ties) == 3
    found = pipeline.search(
        tmp_path / "S", out=tmp_path / "S" / "search", trials=6, sampler="ensemble", settings=("population=3",)
    )
    assert found.objectives == ("max miou", "min macs")
    cut = pipeline.extract_for(tmp_path / "S", point=1, out=tmp_path / "A")
    small, whole = pipeline.load(tmp_path / "A"), pipeline.load(tmp_path / "S")
    assert Counter(small).count().params == cut.figures["params"] < 0.9 * cut.original["params"]
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64), "input_points": torch.tensor([[[[20.0, 30.0]]]])}
    with torch.no_grad(), masked(whole, cut.subnet, space=space):
        wanted = whole.module(**inputs).pred_masks
    with torch.no_grad():
        assert torch.allclose(small.module(**inputs).pred_masks, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [((), {"vision_encoder", "mask_decoder"}), (("part=vision_encoder",), {"vision_encoder"})],
    ids=["all", "encoder"],
)
def test_prompts_are_read_as_before_whatever_is_trained(
    settings: tuple[str, ...], changed: set[str], home: Path, tmp_path: Path
) -> None:
    quick = ("steps=1", "batch=4", "lr=0.01", "min_width=8", "layers=2", "order=none", *settings)
    pipeline.supernet(home / "mini", method="supersam", data=home / "noisy.npz", settings=quick, out=tmp_path / "S")
    before, after = (dict(pipeline.load(place).module.named_parameters()) for place in (home / "mini", tmp_path / "S"))
    assert {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])} == changed


def test_layers_keep_their_kind_when_others_go(home: Path) -> None:
    """Windows stay windows: what stands at a removed layer hands on, and no index moves."""
    model = load_model(home / "mini")
    layers = model.module.vision_encoder.layers  # type: ignore[union-attr]
    kinds = [layer.window_size for layer in layers]  # type: ignore[union-attr]
    gone = ("vision_encoder.layers.1.attn", "vision_encoder.layers.1.mlp", "vision_encoder.layers.2")
    with masked(model, dict.fromkeys(gone, 0)):
        now = [getattr(layer, "window_size", None) for layer in layers]  # type: ignore[union-attr]
    assert kinds == [4, 0, 4, 0]
    assert now == [4, 0, None, 0]


@pytest.mark.slow
def test_a_hundred_subnets_of_a_segmenter(home: Path) -> None:
    model = load_model(home / "mini")
    inputs, space = example(model, batch=2), model.anatomy.space(finest=True)
    conformance.check_full(model, inputs)
    for seed in range(100):
        subnet = space.sample(Random(seed))
        conformance.check_counted(model, subnet, conformance.check_subnet(model, subnet, inputs))


@pytest.mark.parametrize("missing", ["point", "mask"])
def test_archives_that_lack_something_are_refused(missing: str, home: Path, tmp_path: Path) -> None:
    with np.load(home / "noisy.npz") as archive:
        arrays = {name: archive[name] for name in archive.files if name != missing}
    np.savez(tmp_path / "x.npz", **arrays)
    assert holds_masks(tmp_path / "x.npz") == (missing != "mask")
    with pytest.raises(DataError, match=r"give an \.npz archive with image"):
        read_masks(tmp_path / "x.npz")
