"""BootstrapNAS: stages as they are written, filters sorted once, the same weights after a kill, every kind of model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lissome import pipeline
from lissome.core.budget import Budget
from lissome.core.errors import ConfigError, SubnetError
from lissome.core.events import EventStream
from lissome.core.files import sha256_file
from lissome.core.method import Context, Outcome
from lissome.cost.oracle import SubnetCost
from lissome.data.images import read_images
from lissome.engine.pictures import image_splits
from lissome.methods.elastic import bootstrapnas
from lissome.methods.elastic.bootstrapnas import BootstrapNAS
from lissome.models.binding import masked
from lissome.models.crops import FILE as CROPS
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.testing.conformance import difference, outputs
from lissome.testing.examples import striped_images, worded_texts
from lissome.testing.networks import network_model

pytestmark = pytest.mark.long

SMALL = ("min_width=2", "multiple=1", "examples=48", "batch=8")
IMAGES = {"x": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return striped_images(tmp_path_factory.mktemp("stripes") / "x.npz", classes=5, size=15, count=120)


def run(stripes: Path, folder: Path, *settings: str, model: Model | None = None) -> tuple[Model, Outcome]:
    given = model or network_model("resnet")
    data = image_splits(given, read_images(stripes))
    context = Context(
        budget=Budget(), original={}, seed=0, events=EventStream(), folder=folder, data=data.for_methods(),
        cost=SubnetCost(given),
    )  # fmt: skip
    rate = () if any(each.startswith("lr=") for each in settings) else ("lr=0.01",)
    return given, BootstrapNAS(BootstrapNAS.Config.from_assignments((*SMALL, *rate, *settings))).run(given, context)


@pytest.mark.parametrize("text", ["depth0", "", "wdith", "depth2+", "width:x", "width2.5", "depth+width:-1"])
def test_a_stage_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no stage; write kinds of kernel, depth, width, rank"):
        BootstrapNAS.Config(stages=(text,))
    with pytest.raises(ConfigError, match="a stage at least"):
        BootstrapNAS.Config(stages=())


@pytest.mark.parametrize("settings", [("distil=0.5", "paths=random"), ("distil=0",)], ids=" ".join)
def test_the_largest_teaches_in_a_sandwich_alone(settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="set paths=sandwich and distil too"):
        BootstrapNAS.Config.from_assignments((*settings, "teacher=largest"))


def test_without_training_the_whole_is_what_was_given(stripes: Path, tmp_path: Path) -> None:
    """Sorting filters and a rate of 0 leave the function of the network, but for its statistics."""
    given, outcome = run(stripes, tmp_path, "steps=1", "lr=0.0")
    space, whole = Space.from_json(outcome.space), outcome.value
    assert whole.module is not given.module
    before, after = (dict(one.module.named_parameters()) for one in (given, whole))
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed, "filters were sorted"
    assert all(
        torch.equal(value.sort().values, after[name].sort().values)
        for name, value in before.items()
        if value.dim() == 1
    )
    with masked(whole, space.full, space=space):
        pass
    order = whole.module.get_parameter("layer1.0.conv1.weight").abs().flatten(1).sum(1)
    assert order.tolist() == sorted(order.tolist(), reverse=True)


def test_the_largest_of_a_network_without_batch_norms_is_the_network(stripes: Path, tmp_path: Path) -> None:
    from lissome.models.load import load_model
    from lissome.testing.networks import VisionTransformer

    module = VisionTransformer()
    module.head = torch.nn.Linear(16, 5)
    given = load_model(module, example=(3, 16, 16))
    _, outcome = run(stripes, tmp_path, "steps=1", "lr=0.0", model=given)
    got, wanted = outputs(outcome.value.module, IMAGES), outputs(given.module, IMAGES)
    assert difference(got, wanted) < 1e-5
    kinds = {axis["name"].rpartition(".")[2] for axis in outcome.space["axes"]}  # type: ignore[index]
    assert {"attention", "mlp"} <= kinds, "its blocks can go part by part"


def test_stages_open_more_and_more(stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, tuple[str, ...]]] = []
    plain = bootstrapnas.Making.train

    def noting(self: Any, name: str, sampler: Any, **options: Any) -> None:
        seen.append((name, options["steps"], tuple(axis.name for axis in sampler.space.axes)))
        plain(self, name, sampler, **options)

    monkeypatch.setattr(bootstrapnas.Making, "train", noting)
    _, outcome = run(stripes, tmp_path, "steps=8", "stages=kernel,depth1,depth2+width2:2", "tune_steps=0")
    assert [(name, steps) for name, steps, _ in seen] == [("stage-1", 3), ("stage-2", 5)], "it has no kernels to open"
    assert seen[0][2] == ("layer1.1", "layer2.1")
    assert {"layer1.0", "layer1.1", "layer2.1"} < set(seen[1][2])
    assert outcome.details["stages"] == ["depth", "depth width"]


def test_streams_have_shares_of_their_own(stripes: Path, tmp_path: Path) -> None:
    def widths(*settings: str) -> dict[str, tuple[int, ...]]:
        _, outcome = run(stripes, tmp_path / "-".join(settings), "steps=1", "lr=0.0", "stages=width", *settings)
        return {axis.name: axis.choices for axis in Space.from_json(outcome.space).axes}

    every, inside, few = (
        widths("widths=1,0.5"),
        widths("widths=1,0.5", "streams=1"),
        widths("widths=1", "streams=1,0.75"),
    )
    assert {name for name in every if name.startswith("stream.")}
    assert inside == {name: sizes for name, sizes in every.items() if not name.startswith("stream.")}
    assert few.keys() == every.keys() - inside.keys()
    assert all(sizes == (int(0.75 * sizes[-1]), sizes[-1]) for sizes in few.values())


def test_weights_that_read_a_filter_can_count(stripes: Path, tmp_path: Path) -> None:
    """The order of filters is another one then; the function of the whole stays either way."""
    wholes = [
        run(stripes, tmp_path / sides, "steps=1", "lr=0.0", f"sides={sides}")[1].value for sides in ("makes", "both")
    ]
    assert difference(*(outputs(whole.module, IMAGES) for whole in wholes)) < 1e-4
    makes, both = (dict(whole.module.named_parameters()) for whole in wholes)
    assert any(not torch.equal(makes[name], both[name]) for name in makes)


def test_a_kind_that_is_not_there_leaves_nothing(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(SubnetError, match="the Space leaves nothing to choose"):
        run(stripes, tmp_path, "stages=kernel")


@pytest.mark.parametrize(
    "settings",
    [
        ("paths=sandwich",),
        ("distil=0.5",),
        ("distil=1", "teacher=largest", "paths=sandwich"),
        ("order=wanda",),
        ("order=first_order", "widths=none", "width_step=3"),
    ],
    ids=" ".join,
)
def test_other_ways(settings: tuple[str, ...], stripes: Path, tmp_path: Path) -> None:
    _, outcome = run(stripes, tmp_path, "steps=2", *settings)
    assert [point.change for point in outcome.curve] == ["given", "largest", "middle", "smallest"]


def test_the_given_model_is_left_alone_and_runs_are_alike(stripes: Path, tmp_path: Path) -> None:
    given, first = run(stripes, tmp_path / "a", "steps=3", "tune_steps=2")
    fresh = network_model("resnet")
    assert all(torch.equal(value, fresh.module.state_dict()[name]) for name, value in given.module.state_dict().items())
    _, second = run(stripes, tmp_path / "b", "steps=3", "tune_steps=2")
    one, other = (made.value.module.state_dict() for made in (first, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert first.curve == second.curve


_JOB = """
import sys
from lissome import pipeline
from lissome.testing.networks import network_model
pipeline.supernet(
    network_model("resnet"), data=sys.argv[1], out=sys.argv[2], settings=sys.argv[3].split(),
)
"""


@pytest.mark.slow
def test_killed_and_continued_gives_the_same_weights(stripes: Path, tmp_path: Path) -> None:
    settings = " ".join((*SMALL, "steps=60", "tune_steps=20", "stages=depth2,depth2+width"))
    command = [sys.executable, "-c", _JOB, str(stripes)]
    subprocess.run([*command, str(tmp_path / "whole"), settings], check=True)
    for wait in ("0-bootstrapnas/tune", "0-bootstrapnas/stage-1", "0-bootstrapnas/stage-2"):
        state = tmp_path / "parts" / ".run" / wait
        process = subprocess.Popen([*command, str(tmp_path / "parts"), settings])
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "parts"), settings], check=True)
    hashes = [sha256_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "smollm2-135m", "efficientnet-lite0"])
def test_real_models(name: str, tmp_path: Path) -> None:
    """Weights of others, from the model to an extracted one; a few steps show that it runs, not what it can."""
    from lissome.core.errors import LissomeError

    settings = ["steps=2", "batch=2", "examples=8", "tune_steps=1"]
    data: Path | None = None
    if name == "minilm":
        data = worded_texts(tmp_path / "words.jsonl")
    elif name == "efficientnet-lite0":
        data = striped_images(tmp_path / "x.npz", count=40)
        settings += ["stages=kernel+depth2+width"]
    try:
        pipeline.load(name)
    except LissomeError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")
    report = pipeline.supernet(name, data=data, settings=settings, out=tmp_path / "S")
    assert report.axes > 10
    assert (tmp_path / "S" / CROPS).exists() == (name == "efficientnet-lite0"), "it alone has kernels that can shrink"
    found = pipeline.search(tmp_path / "S", out=tmp_path / "S" / "search", trials=3)
    assert found.evaluated == 3
    cut = pipeline.extract_for(tmp_path / "S", budget="block_params<=70%", out=tmp_path / "A")
    assert cut.seconds < 60
    assert cut.figures["block_params"] <= 0.7 * cut.original["block_params"]
