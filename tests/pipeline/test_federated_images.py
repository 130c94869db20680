"""Federations that learn the classes of images, with a vision transformer and with a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lissome import pipeline
from lissome.core.errors import BudgetUnmetError, UnsupportedModelError
from lissome.core.events import EventStream
from lissome.engine.federate.bound import cut_model
from lissome.engine.federate.lessons import PictureClassifier
from lissome.engine.federate.norms import WHOLE, is_moment, moments_of, settle, statistics_in
from lissome.engine.federate.parcel import Parcel
from lissome.engine.federate.store import ClientStore
from lissome.engine.federate.subnets import SubnetProgram
from lissome.engine.norms import statistics
from lissome.models.convnet import ConvNetConfig, ConvNetForImageClassification
from lissome.models.labels import image_head, outputs_of
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.space import Subnet
from lissome.pipeline.federating import federate, plan_federation, serve
from lissome.pipeline.federation import FederationJob, FederationRecipe
from lissome.pipeline.own_models import client_model
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_model
from tests.engine.federate.test_hostile import Liar

pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")

RECIPE = """
model = "model"
seed = 2
[data]
source = "pictures.npz"
most = 150
[partition]
clients = 3
alpha = 1.0
[federation]
rounds = 2
[[device]]
name = "board"
[[device]]
name = "camera"
budget = "block_params<=60%"
[[step]]
"""


def network(classes: int) -> Model:
    """A small residual network."""
    torch.manual_seed(0)
    stages = [{"kind": "residual", "channels": channels, "blocks": 1, "stride": 2} for channels in (8, 16)]
    config = ConvNetConfig(image_size=12, stem=(8, 1), num_labels=classes, stages=stages)
    return Model(ConvNetForImageClassification(config))


def place(folder: Path, kind: str, classes: int = 4) -> Path:
    """Write images whose class is their brightest quarter, and a model of some number of classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    image = rng.integers(0, 90, (200, 12, 12, 3), dtype=np.uint8)
    for at, label in enumerate(labels):
        top, left = 6 * (label // 2), 6 * (label % 2)
        image[at, top : top + 6, left : left + 6] += 150
    np.savez(folder / "pictures.npz", image=image, label=labels)
    model = network(classes) if kind == "resnet" else toy_model(kind, num_hidden_layers=2)
    model.save(folder / "model")
    return folder


def require_own_statistics(folder: Path) -> None:
    """Require that a client's own model has batch norms with the statistics that it kept."""
    client_model(folder / "out", "client-0", folder / "mine")
    kept = ClientStore(folder / "out" / "clients" / "client-0").before(10**9).tensors
    means = {
        name: value for name, value in statistics(load_model(folder / "mine").module).items() if name.endswith("mean")
    }
    assert means
    for name, value in means.items():
        assert torch.equal(value, kept[f"own|norms/{name}"])
        assert (value != 0).any()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("vit", 'method = "raffm"\nlr = 0.01\nepochs = 3'), ("vit-ranks", 'method = "ffm"\nlr = 0.02\nepochs = 3'),
        ("resnet", 'method = "raffm"\nlr = 0.02\nepochs = 4\nelastic = ["width"]'),
        ("resnet", 'method = "rafl"\nlr = 0.02\nelastic = ["width"]\ntrials = 6\nknowledge = "params<=80%"'),
    ],
)  # fmt: skip
def test_clients_learn_images(kind: str, step: str, tmp_path: Path) -> None:
    kind, _, ranks = kind.partition("-")
    recipe = RECIPE.replace("block_params<=60%", "uplink<=70%") if ranks else RECIPE
    (place(tmp_path, kind) / "recipe.toml").write_text(recipe + step)
    plan = plan_federation(tmp_path / "recipe.toml")
    assert sum(one.examples for one in plan.clients) == 120, "of 150 that were drawn the server keeps a fifth"
    small = [one for one in plan.clients if one.kind == "camera"]
    assert all(one.subnet for one in small)
    report = federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    first, last = report.rounds[0]["metrics"], report.rounds[-1]["metrics"]
    assert last["server/loss"] < first["server/loss"]
    assert set(report.rounds[-1]["scores"]) == {"client-0", "client-1", "client-2"}
    assert not report.audit
    model = load_model(tmp_path / "out")
    assert model.anatomy.task == "image"
    if "rafl" in step:
        require_own_statistics(tmp_path)


def measured(job: FederationJob, model: Model, subnet: Subnet | None, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Moments of a trained model over the examples of some clients, by hand."""
    sums, total = dict[str, torch.Tensor](), 0
    for name in names:
        small = cut_model(model, subnet)
        lesson = job.silos.client(name, small)
        settle(lesson.around(small), lesson)
        for key, value in moments_of(small, WHOLE).items():
            sums[key] = sums.get(key, torch.zeros(())) + len(lesson) * value.double()
        total += len(lesson)
    return statistics_in({key: (value / total).float() for key, value in sums.items()}, WHOLE)


@pytest.mark.parametrize("merge", ["overlap", "damped"])
def test_batch_norms_have_the_statistics_of_what_was_merged(merge: str, tmp_path: Path) -> None:
    """The whole over those who hold the whole, a smaller size over those who hold that."""
    recipe = RECIPE + f'method = "raffm"\nelastic = ["width"]\nmerge = "{merge}"\nlr = 0.01\nepochs = 2'
    (place(tmp_path, "resnet") / "recipe.toml").write_text(recipe)
    federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    job = FederationJob(FederationRecipe.read(tmp_path / "recipe.toml"))
    model, program = load_model(tmp_path / "out"), job.server(tmp_path / "server")
    assert isinstance(program, SubnetProgram)
    held = {name: program.largest(job.profile(name)) for name in job.silos.names}
    big = [name for name, subnet in held.items() if program.size_of(subnet) == WHOLE]
    small = [name for name in held if name not in big]
    assert big and small
    cut = held[small[0]]
    pipeline.extract_for(tmp_path / "out", budget="block_params<=60%", out=tmp_path / "cut")
    for whose, names, subnet in ((model, big, None), (load_model(tmp_path / "cut"), small, cut)):
        found = statistics(whose.module)
        for key, value in measured(job, model, subnet, names).items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(BudgetUnmetError, match="statistics of batch norms"):
        pipeline.extract_for(tmp_path / "out", budget="block_params<=20%", out=tmp_path / "none")


def test_what_clients_judge_by_is_what_they_get(tmp_path: Path) -> None:
    (place(tmp_path, "resnet") / "recipe.toml").write_text(RECIPE + 'method = "raffm"\nelastic = ["width"]\nlr = 0.01')
    report = federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    job = FederationJob(FederationRecipe.read(tmp_path / "recipe.toml"))
    pipeline.extract_for(tmp_path / "out", budget="block_params<=60%", out=tmp_path / "cut")
    name = next(name for name, kind in job.kinds.items() if kind.name == "camera")
    cut = load_model(tmp_path / "cut")
    lesson = job.silos.client(name, cut)
    _, scores = lesson.score(lesson.around(cut).eval())
    assert scores["loss"] == pytest.approx(report.rounds[-1]["scores"][name]["loss"], rel=1e-4)


def test_a_network_is_trained_from_nothing(tmp_path: Path) -> None:
    """Its batch norms have seen nothing: with the statistics that they came with it would be no network."""
    recipe = RECIPE.replace("rounds = 2", "rounds = 4") + 'method = "fedavg"\nlr = 0.02\nepochs = 3'
    (place(tmp_path, "resnet") / "recipe.toml").write_text(recipe.replace('budget = "block_params<=60%"', ""))
    report = federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    assert report.rounds[-1]["metrics"]["server/accuracy"] > 0.6, "four classes"
    found = statistics(load_model(tmp_path / "out").module)
    assert not any(torch.equal(value, torch.zeros_like(value)) for value in found.values())


@pytest.mark.parametrize("step", ['private = ["*"]', "common = 0.5"])
def test_what_clients_have_for_themselves_has_its_own_statistics(step: str, tmp_path: Path) -> None:
    (place(tmp_path, "resnet") / "recipe.toml").write_text(RECIPE + f'method = "fedavg"\nlr = 0.02\n{step}')
    federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    require_own_statistics(tmp_path)


def test_a_window_that_moves_has_no_statistics_of_a_size(tmp_path: Path) -> None:
    recipe = RECIPE + 'method = "raffm"\nelastic = ["width"]\nwindow = "rolling"\nassign = "largest"\nfreeze = []'
    (place(tmp_path, "resnet") / "recipe.toml").write_text(recipe)
    told: list[str] = []
    report = federate(
        tmp_path / "recipe.toml", out=tmp_path / "out", events=EventStream(lambda event: told.append(event.message))
    )
    assert sum("statistics of the whole" in line for line in told) == 1
    assert not report.audit
    assert not (tmp_path / "out" / "sizes.safetensors").exists()


@pytest.mark.parametrize("step", ['merge = "mean"\nsecure = true', "bound = 1.0\nnoise = 1.0\nnoise_clients = 3"])
def test_statistics_that_must_not_travel_stay(step: str, tmp_path: Path) -> None:
    recipe = RECIPE.replace('budget = "block_params<=60%"', "") + f'method = "fedavg"\nlr = 0.001\n{step}'
    (place(tmp_path, "resnet") / "recipe.toml").write_text(recipe)
    report = federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    assert not report.audit
    given = statistics(FederationJob(FederationRecipe.read(tmp_path / "recipe.toml")).model.module)
    for name, value in statistics(load_model(tmp_path / "out").module).items():
        assert torch.equal(value, given[name])


@pytest.mark.parametrize("merge", ["trimmed", "overlap"])
def test_who_lies_about_statistics_is_trimmed_away(merge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where answers are doubted; a mean takes what one client says, as it does with weights."""
    extra = "trim = 0.34\n" if merge == "trimmed" else ""
    recipe = RECIPE.replace('budget = "block_params<=60%"', "") + 'method = "fedavg"\nlr = 0.001\n'
    (place(tmp_path, "resnet") / "recipe.toml").write_text(recipe + f'merge = "{merge}"\n{extra}')
    job = FederationJob(FederationRecipe.read(tmp_path / "recipe.toml"))
    honest = job.worker

    def worker(name: str, folder: Path, **given: Any) -> Any:
        own = honest(name, folder, **given)
        return Liar(lambda: own, _boast) if name == "client-0" else own

    monkeypatch.setattr(job, "worker", worker)
    federation = serve(job, job.local_link(tmp_path / "clients"), tmp_path / "server", EventStream())
    assert not federation.audit.lines, federation.audit.lines[0]["reason"]
    found = statistics_in(federation.program.tensors, WHOLE)
    largest = max(float(value.max()) for value in found.values())
    assert (largest < 20.0) == (merge == "trimmed")


def _boast(parcel: Parcel) -> Parcel:
    """Say that everything ever seen is large, but not so large that nobody would believe it."""
    loud = {name: torch.full_like(value, 90.0) for name, value in parcel.tensors.items() if is_moment(name)}
    return replace(parcel, tensors={**parcel.tensors, **loud})


def test_statistics_of_batch_norms_stay() -> None:
    model = network_model("resnet")
    module = PictureClassifier(model, 4).train()
    before = {name: value.clone() for name, value in model.module.named_buffers()}
    assert module(torch.randn(5, 3, 12, 12)).shape == (5, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.module.named_buffers())
    assert isinstance(PictureClassifier(model, 5).head, torch.nn.Identity), "the network has five outputs already"


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("resnet", 'trains = "all"'), ("resnet", 'trains = "head"'), ("vit-labels", 'trains = "adapters"'),
        ("vit-labels", 'recipe = "prompt"'),
    ],
)  # fmt: skip
def test_a_network_of_other_classes_gets_a_new_head(kind: str, step: str, tmp_path: Path) -> None:
    """A layer upon its logits of other classes would leave it as many features as it once had classes."""
    recipe = RECIPE.replace("block_params<=60%", "") + f'method = "ffm"\n{step}'
    (place(tmp_path, kind, classes=7) / "recipe.toml").write_text(recipe)
    before = FederationJob(FederationRecipe.read(tmp_path / "recipe.toml")).model.module.state_dict()
    report = federate(tmp_path / "recipe.toml", out=tmp_path / "out")
    model = load_model(tmp_path / "out")
    assert outputs_of(model) == 4
    assert not (tmp_path / "out" / "task.safetensors").exists(), "its head is in the model"
    after, head = model.module.state_dict(), image_head(model)
    moved = {name for name, value in after.items() if (value != before[name]).any()}
    assert f"{head}.weight" in moved, "the new head is trained, adapters or not"
    assert (moved <= {f"{head}.weight", f"{head}.bias"}) == ("head" in step)
    assert not report.audit


def test_counting_outputs_leaves_a_network_as_it_was() -> None:
    model = network_model("resnet")
    model.module.train()
    before = {name: value.clone() for name, value in model.module.named_buffers()}
    assert outputs_of(model) == 5 and model.module.training
    assert all(torch.equal(value, before[name]) for name, value in model.module.named_buffers())


def test_a_model_of_text_reads_no_images(tmp_path: Path) -> None:
    (place(tmp_path, "vit") / "recipe.toml").write_text(RECIPE + 'method = "fedavg"')
    toy_model("llama").save(tmp_path / "model2")
    text = (tmp_path / "recipe.toml").read_text().replace('"model"', '"model2"')
    job = FederationJob(FederationRecipe.from_toml(text, tmp_path))
    with pytest.raises(UnsupportedModelError, match="a model of images"):
        job.silos.server(job.model)
