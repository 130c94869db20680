"""A super-network from end to end: made, searched, cut out, refused; for images, labelled texts and text."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lissome import pipeline
from lissome.cli.main import main
from lissome.core.errors import ArtifactError, BudgetUnmetError, ConfigError, DataError, LissomeError, SubnetError
from lissome.core.files import sha256_file
from lissome.core.manifest import Manifest, read_manifest, write_manifest
from lissome.cost.counted import Counter
from lissome.data.images import read_images
from lissome.engine.norms import reestimate, statistics
from lissome.engine.pictures import Pictures, image_splits
from lissome.engine.search import Found, Goal
from lissome.models.binding import extract
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.zoo import zoo
from lissome.pipeline.reports import SupernetReport
from lissome.pipeline.supernets import keep_found
from lissome.testing.conformance import outputs
from lissome.testing.examples import striped_images, worded_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module
from tools.ship_supernet import ship_supernet

pytestmark = pytest.mark.long

SMALL = ("min_width=2", "multiple=1", "examples=64", "batch=16", "tune_lr=0.01", "lr=0.01")
STAGES = [{"kind": "residual", "channels": 8 * (1 + at), "blocks": 2, "stride": 1 + at} for at in range(2)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet of seven classes, an encoder without a head, and a language model, with data for each."""
    place = tmp_path_factory.mktemp("home")
    striped_images(place / "stripes.npz")
    worded_texts(place / "words.jsonl")
    config = ConvNetConfig(image_size=16, stem=(8, 1), stages=STAGES, num_labels=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        load_model(ConvNetForImageClassification(config)).save(place / "net")
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64}
    Model(toy_module("bert", **sizes), toy_tokenizer()).save(place / "bert")
    Model(toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024), toy_tokenizer()).save(
        place / "llama"
    )
    return place


def make(home: Path, out: Path, *settings: str, **options: Any) -> SupernetReport:
    given = {"data": home / "stripes.npz", **options}
    return pipeline.supernet(home / "net", out=out, settings=(*SMALL, *settings), **given)


@pytest.fixture(scope="module")
def made(home: Path) -> Path:
    """A super-network that was searched."""
    make(home, home / "S", "steps=40", "tune_steps=40", "paths=sandwich")
    pipeline.search(home / "S", out=home / "S" / "search", trials=16, settings=("population=6",))
    return home / "S"


def test_what_was_made_says_what_it_is(home: Path, made: Path) -> None:
    report = make(home, made, "steps=40", "tune_steps=40", "paths=sandwich")
    assert [point["change"] for point in report.points] == ["given", "largest", "middle", "smallest"]
    assert report.sha256 == sha256_file(made / "model.safetensors")
    space = pipeline.load(made).manifest.space  # type: ignore[union-attr]
    assert space is not None and report.axes == len(space["axes"])
    assert report.log10_subnets > 3
    assert all(tuple(point["quality"]) == Pictures.names == ("accuracy", "loss") for point in report.points)
    sizes = [point["figures"]["macs"] for point in report.points]
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3]
    assert report.points[1]["quality"]["accuracy"] > 0.5, "stripes are learnt in no time"
    assert report.data["images"] == {"recovery": 144, "search": 24, "selection": 24, "test": 48}
    assert json.loads(json.dumps(report.to_json()))["method"] == "bootstrapnas"
    assert report.batch_norms


def test_extracted_for_a_budget_without_data(home: Path, made: Path, tmp_path: Path) -> None:
    found = Found.load(made / "found.json")
    report = pipeline.extract_for(made, budget="macs<=60%", out=tmp_path / "small")
    small = pipeline.load(tmp_path / "small")
    assert Counter(small).count().macs == report.figures["macs"] <= 0.6 * report.original["macs"]
    held = [found.points[place] for place in found.front]
    holding = [point for point in held if point.figures["macs"] <= 0.6 * report.original["macs"]]
    best = min(holding, key=lambda point: found.goal.values(point.judged))
    assert report.number == best.number
    assert small.manifest is not None and small.manifest.subnet == report.subnet
    assert {"dense"} == set(small.manifest.tags) - small.anatomy.tags
    # Its statistics are those that it was judged with: taken again over the same examples they do not change.
    data = image_splits(small, read_images(home / "stripes.npz"))
    judged = Pictures(data).figures(small, "selection")
    assert judged["accuracy"] == pytest.approx(report.figures["accuracy"], abs=1e-9)
    kept = statistics(small.module)
    reestimate(small.module, Pictures(data).batches(64))
    assert all(torch.allclose(value, kept[name], rtol=1e-4) for name, value in statistics(small.module).items())


def test_any_point_of_the_front_can_be_taken(made: Path, tmp_path: Path) -> None:
    found = Found.load(made / "found.json")
    place = found.front[-1]
    with pytest.raises(SubnetError, match=rf"of its front; give a --budget, .*\b{found.points[place].number}\b"):
        pipeline.extract_for(made, point="smallest", out=tmp_path / "none")
    report = pipeline.extract_for(made, point=found.points[place].number, out=tmp_path / "point")
    whole, cut = pipeline.load(made), pipeline.load(tmp_path / "point")
    expected = extract(whole, found.subnet(place), space=found.space)
    own = dict(cut.module.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in expected.module.named_parameters())
    assert report.subnet == found.subnet(place).to_json()


def test_a_chosen_point_off_the_front_is_extracted_with_statistics_of_its_own(
    home: Path, made: Path, tmp_path: Path
) -> None:
    """The whole network, say, when it is the best on the selection split alone."""
    place = Path(shutil.copytree(made, tmp_path / "S"))
    found, model = Found.load(place / "found.json"), pipeline.load(place)
    beaten = next(at for at in range(len(found.points)) if at not in found.front)
    data = Pictures(image_splits(model, read_images(home / "stripes.npz")))
    keep_found(place, model, replace(found, chosen=beaten), data.batches(64))
    report = pipeline.extract_for(place, out=tmp_path / "best")
    assert report.number == found.points[beaten].number
    small = pipeline.load(tmp_path / "best")
    kept = statistics(small.module)
    reestimate(small.module, data.batches(64))
    assert all(torch.allclose(value, kept[name], rtol=1e-4) for name, value in statistics(small.module).items())


def test_a_front_beats_its_own_ends(made: Path) -> None:
    found = Found.load(made / "found.json")
    values = [found.goal.values(found.points[place].figures) for place in found.front]
    assert values == sorted(values)
    assert math.prod(len(axis.choices) for axis in found.space.axes) > 100
    assert found.splits == {"search": "24 images", "selection": "24 images", "test": "48 images"}
    (kept,) = made.glob("search/found.json")
    assert Found.load(kept).to_json() == found.to_json()


@pytest.mark.parametrize(("name", "data"), [("bert", "words.jsonl"), ("llama", "text")])
def test_encoders_and_language_models(name: str, data: str, home: Path, toy_text: Path, tmp_path: Path) -> None:
    source = toy_text if data == "text" else home / data
    settings = (*SMALL, "steps=6", "tune_steps=6")
    report = pipeline.supernet(home / name, data=source, settings=settings, out=tmp_path / "S")
    quality = "ppl" if name == "llama" else "accuracy"
    assert all(quality in point["quality"] for point in report.points)
    assert not report.batch_norms
    searched = pipeline.search(tmp_path / "S", out=tmp_path / "S" / "search", trials=6)
    assert searched.objectives[0].endswith(quality)
    cut = pipeline.extract_for(tmp_path / "S", budget="block_params<=80%", out=tmp_path / "A")
    small = pipeline.load(tmp_path / "A")
    found = Found.load(tmp_path / "S" / "found.json")
    whole = extract(pipeline.load(tmp_path / "S"), cut.subnet, space=found.space)
    inputs = {"input_ids": torch.arange(4, 20).unsqueeze(0)}
    assert torch.equal(outputs(small.module, inputs), outputs(whole.module, inputs))
    assert cut.figures["block_params"] <= 0.8 * cut.original["block_params"]


class _Own(nn.Module):
    """A network of its user's own class, of the right number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1))
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(x).mean((2, 3)))}


def test_a_module_of_any_class(home: Path, tmp_path: Path) -> None:
    own = pipeline.load(nn.DataParallel(_Own()), example=(3, 16, 16))
    report = pipeline.supernet(own, data=home / "stripes.npz", settings=(*SMALL, "steps=3"), out=tmp_path / "S")
    assert report.axes == 2, "the channels of two convolutions"
    found = pipeline.search(tmp_path / "S", into=_Own(), out=tmp_path / "S" / "search", trials=5)
    assert found.evaluated == 5
    timed = pipeline.search(
        tmp_path / "S", into=_Own(), out=tmp_path / "timed", trials=3, objectives=("accuracy", "latency")
    )
    assert "latency by a regression, on " in timed.notes[0]
    pipeline.search(tmp_path / "S", into=_Own(), out=tmp_path / "S" / "search", trials=5)
    cut = pipeline.extract_for(tmp_path / "S", into=_Own(), budget="macs<=60%", out=tmp_path / "A")
    small = pipeline.load(tmp_path / "A", into=_Own())
    assert Counter(small).count().macs == cut.figures["macs"]


def test_one_that_ships_is_extracted_by_its_name(
    home: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lissome.models.zoo.ZOO", tmp_path / "zoo")
    told = ship_supernet(made, "supernet-toy", out=tmp_path / "zoo", budget="macs<=60%")
    assert told["macs_share"] <= 0.6 and 0 <= told["accuracy"] <= 1
    assert str(home) not in (tmp_path / "zoo/supernet-toy/manifest.json").read_text(encoding="utf-8")
    report = pipeline.extract_for("supernet-toy", budget="macs<=60%", out=tmp_path / "A")
    assert Counter(pipeline.load(tmp_path / "A")).count().macs == report.figures["macs"]
    with pytest.raises(ArtifactError, match="ships with lissome and stays as it is; copy"):
        pipeline.search("supernet-toy", out=tmp_path / "search")


@pytest.mark.parametrize("name", [name for name in zoo() if name.startswith("supernet-")])
def test_super_networks_that_ship_give_what_they_state(name: str, tmp_path: Path) -> None:
    budget = str(zoo()[name].training["budget"])
    small = pipeline.extract_for(name, budget=budget, out=tmp_path / "A")
    assert small.figures["macs"] / small.original["macs"] == pytest.approx(zoo()[name].quality["macs_share"])
    assert Counter(pipeline.load(tmp_path / "A")).count().macs == small.figures["macs"]


def test_a_result_is_not_replaced_by_what_is_cut_out(home: Path, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "T"
    shutil.copytree(made, other)
    with pytest.raises(ConfigError, match=r"T is the result of a job .* would be lost"):
        pipeline.extract_for(made, budget="macs<=60%", out=other)
    outer = tmp_path / "outer"
    pipeline.extract_for(made, budget="macs<=60%", out=outer)
    pipeline.extract_for(made, budget="macs<=80%", out=outer)  # what was cut out is
    shutil.move(other, outer / "T")
    with pytest.raises(ConfigError, match=r"T lies in .*outer, which would be replaced"):
        pipeline.extract_for(outer / "T", budget="macs<=60%", out=outer)
    assert (outer / "T" / "elastic.json").exists()


def test_refused_examples_leave_no_unfinished_job(home: Path, tmp_path: Path) -> None:
    """The same place is free for the examples that were mended."""
    held = dict(np.load(home / "stripes.npz"))
    wide = np.concatenate([held["image"], held["image"][..., :1]], -1)
    np.savez(tmp_path / "wide.npz", **{**held, "image": wide})
    with pytest.raises(DataError, match="channels, but the model reads"):
        make(home, tmp_path / "S", data=tmp_path / "wide.npz")
    assert not (tmp_path / "S").exists()


def test_figures_stand_beside_those_of_the_same_examples(made: Path, tmp_path: Path) -> None:
    """The original is on the search split as points are, and not on the one to choose by."""
    place = Path(shutil.copytree(made, tmp_path / "S"))
    report = pipeline.search(place, out=place / "search", trials=16, settings=("population=6",))
    found = Found.load(place / "found.json")
    (whole,) = [point for place, point in enumerate(found.points) if found.subnet(place) == found.space.full]
    assert report.original["accuracy"] == whole.figures["accuracy"]
    assert report.whole is not None and report.whole["selection"] == whole.selection
    bounded = pipeline.search(place, out=tmp_path / "b", trials=6, budget=("macs<=50%",))
    assert "accuracy" not in bounded.original, "it broke the bound, so nothing was evaluated"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("supernet {home}/net --out {tmp}/a", "a network of images: what it is to learn are labelled images"),
        ("supernet {home}/net --data {home}/stripes.npz --set widths=1 --set stages=width --out {tmp}/a",
         "the Space leaves nothing to choose: "),
        ("supernet {home}/net --data {home}/stripes.npz --set stages=wdith --out {tmp}/a", "'wdith' is no stage"),
        ("supernet {home}/net --data {home}/none.npz --out {tmp}/a", "there is no"),
        ("supernet {home}/net --data {home}/stripes.npz --method multipruner --out {tmp}/a",
         "multipruner makes one model; run it with: lissome fit"),
        ("fit {home}/llama --method bootstrapnas --out {tmp}/a", "run it with: lissome supernet"),
        ("extract {home}/net --budget macs<=50% --out {tmp}/a", "manifest.json"),
        ("extract {home}/net --out {tmp}/a", "make a super-network with: lissome supernet"),
        ("extract {home}/SS --budget macs<=50% --out {tmp}/a", "did you mean '{home}/S'?"),
        ("extract zoo-resnet --budget macs<=50% --out {tmp}/a", "with: lissome supernet zoo-resnet --out S"),
        ("extract {home}/S --point largst --out {tmp}/a", "did you mean 'largest'?"),
        ("extract {home}/S --budget energy<=50% --out {tmp}/a", "unknown figure 'energy'"),
        ("search {home}/net --out {tmp}/a", "make a super-network first, with: lissome supernet {home}/net"),
        ("extract {home}/S --budget macs<=0.1% --out {tmp}/a", "macs<=0.1% cannot be met: the bound is"),
        ("extract {home}/S --point 999 --out {tmp}/a", "there is no point 999"),
        ("extract {home}/S --budget macs<=50% --out {home}/S", "is the artifact itself"),
        ("search {home}/S --budget macs<=0.1% --out {tmp}/a", "cannot be met: reachable is"),
        ("search {home}/S --device {home}/other.npz --out {tmp}/a", "--device {home}/other.npz says where latency"),
        ("search {home}/S --latency measured --out {tmp}/a", "--latency measured says where latency comes from, but"),
        ("search {home}/S --data {home}/other.npz --out {tmp}/a", "is not what"),
        ("search {home}/S --objective latency --latency table --device {home}/other.npz --out {tmp}/a", "other.npz"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(
    line: str, error: str, home: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    striped_images(home / "other.npz", count=200)
    assert main(line.format(home=home, tmp=tmp_path).split()) in {2, 3}
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and error.format(home=home) in said


def test_before_a_search_there_is_nothing_to_extract(home: Path, tmp_path: Path) -> None:
    make(home, tmp_path / "S", "steps=1", "tune_steps=0")
    with pytest.raises(ArtifactError, match="was not searched yet; give: lissome search"):
        pipeline.extract_for(tmp_path / "S", budget="macs<=50%", out=tmp_path / "A")
    with pytest.raises(
        SubnetError, match=r"the middle of .* lacks statistics of batch norms, which only a search takes"
    ):
        pipeline.extract_for(tmp_path / "S", point="middle", out=tmp_path / "A")
    pipeline.extract_for(tmp_path / "S", point="largest", out=tmp_path / "A")
    whole, same = (pipeline.load(tmp_path / name).module.state_dict() for name in ("S", "A"))
    assert same.keys() == whole.keys() and all(torch.equal(value, whole[name]) for name, value in same.items())
    with pytest.raises(ArtifactError, match="is a super-network, not one model's curve"):
        pipeline.extract_step(tmp_path / "S", 0, tmp_path / "A")
    with pytest.raises(ConfigError, match=r"holds another job: recipe.order is \"l1\" there, \"l2\" here"):
        make(home, tmp_path / "S", "steps=1", "tune_steps=0", "order=l2")


@pytest.mark.parametrize("name", ["found.json", "statistics.safetensors", "model.safetensors", "elastic.json"])
def test_what_was_changed_afterwards_is_noticed(name: str, home: Path, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "S")
    (tmp_path / "S" / name).write_bytes((tmp_path / "S" / name).read_bytes()[:-5])
    with pytest.raises(LissomeError):
        pipeline.extract_for(tmp_path / "S", budget="macs<=60%", out=tmp_path / "A")


def test_what_a_damaged_manifest_lacks_is_named(home: Path, made: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(made, tmp_path / "S"))
    whole = json.loads((place / "manifest.json").read_text())
    for name in ("found.json", "statistics.safetensors"):  # a search that was killed while it put them in
        files = {key: value for key, value in whole["files"].items() if key != name}
        (place / "manifest.json").write_text(json.dumps({**whole, "files": files}))
        with pytest.raises(ArtifactError, match=rf"does not list {name}: a search was cut short"):
            pipeline.extract_for(place, budget="macs<=60%", out=tmp_path / "A")
    (place / "manifest.json").write_text(json.dumps({**whole, "lineage": []}))
    assert pipeline.extract_for(place, budget="macs<=60%", out=tmp_path / "A").figures
    (place / "curve.jsonl").unlink()
    with pytest.raises(SubnetError, match="unknown point 'middle'; known: none"):
        pipeline.extract_for(place, point="middle", out=tmp_path / "B")
    (place / "manifest.json").unlink()
    (place / ".run").mkdir()
    with pytest.raises(ArtifactError, match="belongs to a job that is not finished"):
        pipeline.extract_for(place, budget="macs<=60%", out=tmp_path / "B")


def test_a_search_in_which_nothing_held_leaves_nothing_to_extract(home: Path, made: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(made, tmp_path / "S"))
    found, model = Found.load(place / "found.json"), pipeline.load(place)
    none = replace(found, goal=Goal.of(found.goal.objectives, "macs<=1")).sorted()
    keep_found(place, model, none, ())
    with pytest.raises(BudgetUnmetError, match="found nothing that holds macs<=1; give one with a wider bound"):
        pipeline.extract_for(place, budget="macs<=60%", out=tmp_path / "A")


def test_two_searches_that_end_at_one_moment_leave_one_result_that_is_whole(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(made, tmp_path / "S"))
    found, model, data = Found.load(place / "found.json"), pipeline.load(place), torch.zeros(2, 3, 16, 16)
    batches = [{"pixel_values": data}]
    other = Thread(target=keep_found, args=(place, model, replace(found, seed=found.seed + 1), batches))

    def late(folder: Path, manifest: Manifest) -> None:
        """Let the other search end before this one writes down what it has written."""
        if "found.json" in manifest.files:
            monkeypatch.undo()
            other.start()
            other.join(timeout=2.0)
        write_manifest(folder, manifest)

    monkeypatch.setattr("lissome.pipeline.supernets.write_manifest", late)
    keep_found(place, model, found, batches)
    other.join()
    files = read_manifest(place).files
    assert all(files[name].sha256 == sha256_file(place / name) for name in ("found.json", "statistics.safetensors"))


def test_a_source_without_the_split_is_refused(home: Path, tmp_path: Path) -> None:

    stored = dict(np.load(home / "stripes.npz"))
    np.savez(tmp_path / "test.npz", **stored, is_train=np.zeros(len(stored["label"]), dtype=bool))
    with pytest.raises(DataError, match="has a split test, but none called train"):
        make(home, tmp_path / "S", data=tmp_path / "test.npz")


def test_without_a_budget_there_must_be_a_choice(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SubnetError, match="say what to extract, with --budget or --point"):
        pipeline.extract_for(made, out=tmp_path / "A")
    with pytest.raises(BudgetUnmetError):
        pipeline.extract_for(made, budget="params<=1", out=tmp_path / "A")


def test_data_that_lie_elsewhere_now_are_asked_for(made: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(made, tmp_path / "S"))
    told = json.loads((place / "elastic.json").read_text())
    fields = json.dumps({**told, "data": str(tmp_path / "gone.npz")}).encode()
    (place / "elastic.json").write_bytes(fields)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["elastic.json"] = {"bytes": len(fields), "sha256": sha256_file(place / "elastic.json")}
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"there is no .*S was trained on .*gone\.npz; say with --data where that lies"):
        pipeline.search(place, out=tmp_path / "found", trials=3)
