"""EFTNAS: scores that are learnt, sizes that meet their costs, units sorted by worth, a teacher, every encoder."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lissome import pipeline
from lissome.core.errors import ArtifactError, BudgetUnmetError, ConfigError, OrderError
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.engine.boundaries import NEAR, Boundaries
from lissome.engine.hooks import Batch, Task
from lissome.engine.movement import Schedule, Scored, Scoring
from lissome.engine.ranking import saliency, unit_scores
from lissome.engine.search import Found
from lissome.engine.supermethod import Making
from lissome.methods.elastic.eftnas import EFTNAS
from lissome.models.binding import extract
from lissome.models.model import Model
from lissome.models.space import Space
from lissome.ops import importance
from lissome.testing.examples import worded_texts
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_inputs, toy_model, toy_module

pytestmark = pytest.mark.long

QUICK = ("steps=4", "score_steps=6", "tune_steps=4", "batch=4", "targets=3", "block=4", "smallest=0.5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("home")
    worded_texts(place / "words.jsonl", count=90)
    sizes = {"vocab_size": TOY_VOCABULARY, "max_position_embeddings": 64, "intermediate_size": 96}
    Model(toy_module("bert", **sizes), toy_tokenizer()).save(place / "bert")
    return place


def task(model: Model) -> Task:
    inputs = toy_inputs(model, 0, 6, 5)
    return Task(
        module=model.module,
        loss=lambda module, batch: module(input_ids=batch.examples).logits.flatten(1).square().mean(1),
        data=inputs["input_ids"],
    )


def test_a_score_gains_what_its_formula_says() -> None:
    """∂loss/∂S = Σ over the unit of ∂loss/∂(W ⊙ M) · W, whatever the mask."""
    model = toy_model("bert-labels")
    job = task(model)
    scored = Scored(job, model, block=4)
    hooks = Scoring(scored, Schedule(steps=4))
    batch = Batch(job.data[:3], torch.arange(3), None, 0)  # type: ignore[index]
    plain = copy.deepcopy(model.module)
    plain.zero_grad()
    job.loss(plain, batch).sum().backward()
    with hooks.path(0, None):  # type: ignore[arg-type]
        hooks.loss(job.loss)(scored, batch).sum().backward()
    for name, score in zip(scored.grains, scored.scores, strict=True):
        weight = plain.get_parameter(name)
        assert weight.grad is not None and score.grad is not None
        product = weight.grad * weight.detach()
        units = torch.zeros_like(score)
        rows, columns = scored.grains[name]
        for row in range(units.shape[0]):
            for column in range(units.shape[1]):
                part = product[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
                units[row, column] = part.sum()
        assert torch.allclose(score.grad, units, atol=1e-5), name
    kinds = {grain for name, grain in scored.grains.items() if "attention" in name}
    assert kinds == {(4, 4)}
    assert scored.grains["bert.encoder.layer.0.intermediate.dense.weight"] == (1, 24)
    assert scored.grains["bert.encoder.layer.0.output.dense.weight"] == (24, 1)


def test_biases_go_with_what_a_layer_makes_though_gpt2_holds_it_turned() -> None:
    model = toy_model("gpt2")
    scored = Scored(task(model), model, block=4)
    attention = "transformer.h.0.attn"
    with torch.no_grad():
        for name, score in zip(scored.grains, scored.scores, strict=True):
            score.fill_(1.0)
            if name == f"{attention}.c_proj.weight":
                score[:, 0] = -1.0  # nothing makes the first outputs
                score[1] = -1.0  # nothing reads some inputs
            elif name == f"{attention}.c_attn.weight":
                score[:, 2] = -1.0
        for layer in (f"{attention}.c_proj", f"{attention}.c_attn"):
            model.module.get_parameter(f"{layer}.bias").fill_(1.0)
    found = scored.masked(0.0)
    assert (found[f"{attention}.c_proj.bias"] == 0).nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert (found[f"{attention}.c_attn.bias"] == 0).nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_the_threshold_masks_and_the_window_opens() -> None:
    schedule = Schedule(steps=10, opens=0.4)
    grown = [schedule.grown(step) for step in range(10)]
    assert grown[:4] == [None] * 4
    rest = [value for value in grown[4:] if value is not None]
    assert rest == sorted(rest) and rest[-1] == 1.0 and rest[0] > 0
    model = toy_model("bert-labels")
    scored = Scored(task(model), model, block=4)
    with torch.no_grad():
        for score in scored.scores:
            score.copy_(torch.rand(score.shape, generator=torch.Generator().manual_seed(1)))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    found = scored.masked(0.5)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    kept = (scored.saliencies()[name] > 0.5).float()
    assert torch.equal(found[name], model.module.get_parameter(name) * kept)
    assert torch.equal(found[name.replace("weight", "bias")] != 0, kept[:, 0].bool())
    with Scoring(scored, Schedule(steps=1, opens=0.0)).path(0, None):  # type: ignore[arg-type]
        assert not isinstance(model.module.get_submodule(name.removesuffix(".weight")).weight, torch.nn.Parameter)
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    assert list(before) == list(model.module.state_dict())
    assert scored.quantile(0.001) < scored.quantile(0.5) < scored.quantile(0.999)


@pytest.mark.parametrize("family", ["bert", "llama", "qwen2", "gpt2", "opt"])
@pytest.mark.parametrize("score", ["l1", "random"])
def test_sizes_meet_their_costs(family: str, score: str) -> None:
    sizes = {{"gpt2": "n_inner", "opt": "ffn_dim"}.get(family, "intermediate_size"): 256}
    model = toy_model(family, **sizes)
    bounds = Boundaries(model, unit_scores(model, saliency(model, score, seed=1), sides="both"))
    least, most = bounds.range()
    assert most == Counter(model).count().macs
    targets = [share * most for share in (0.4, 0.7, 1.0)]
    assert least < targets[0]
    found = bounds.nested(targets)
    space = bounds.space(found)
    for one, macs in zip(found, targets, strict=True):
        assert abs(one.macs - macs) <= NEAR * macs
        subnet = bounds.subnet(space, one)
        assert Counter(extract(model, subnet, space=space)).count().macs == one.macs
    assert bounds.subnet(space, found[-1]) == space.full
    assert bounds.subnet(space, found[0]) == space.smallest, "sizes of a lower cost are nowhere larger"
    with pytest.raises(BudgetUnmetError, match="reachable is"):
        bounds.at(2 * most)
    coarse = Boundaries(model, unit_scores(model, saliency(model, score, seed=1), sides="both"), multiple=256)
    with pytest.raises(BudgetUnmetError, match=r"nearest is .* fewer targets or a smaller multiple"):
        coarse.nested([share * most for share in (0.3, 0.33, 0.36, 0.39, 0.42)])


def test_one_threshold_leaves_what_it_says() -> None:
    model = toy_model("bert", intermediate_size=32)
    worth = unit_scores(model, saliency(model, "random", seed=1), sides="both")
    tied = {name: (each / 8).round() for name, each in worth.items()}
    bounds = Boundaries(model, tied)
    levels = torch.cat([each.sort(dim=-1, descending=True).values.amax(0) for each in tied.values()]).unique()
    assert len(levels) < 12, "many units tie"
    reachable = {bounds.threshold(share * bounds.range()[1]).macs for share in torch.linspace(0, 1, 200).tolist()}
    assert len(reachable) <= len(levels) + 1, "each level goes as a whole"
    for macs in (bounds.range()[0], 0.6 * bounds.range()[1], bounds.range()[1]):
        found = bounds.threshold(macs)
        assert abs(found.macs - macs) == min(abs(each - macs) for each in reachable)
    assert {bounds.threshold(macs).macs for macs in bounds.range()} == set(bounds.range())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_sizes_find_their_layers_when_one_in_the_middle_goes_for_good(family: str) -> None:
    """A decoder loses the layer, and those behind it get other numbers; an encoder keeps its norms."""
    model = toy_model(family)
    worth = unit_scores(model, saliency(model, "l1"), sides="both")
    worth = {name: each * (1e-6 if name.startswith("layers.1.") else 1) for name, each in worth.items()}
    making = Making.__new__(Making)
    making.model = model
    costs = [share * Boundaries(model, worth).range()[1] for share in (0.2, 0.31, 0.42)]
    method = EFTNAS(EFTNAS.Config(smallest=0.2, largest=0.42, targets=3))
    space, _, between = method._space(making, worth)
    assert len(making.model.anatomy.branches) <= 6, "the second layer went as a whole"
    counter = Counter(making.model)
    for subnet, cost in zip((space.smallest, *between, space.full), costs, strict=True):
        assert counter.figures(subnet)["macs"] == pytest.approx(cost, rel=NEAR)


def test_when_all_attentions_are_worth_least_the_best_of_them_stays_at_every_cost() -> None:
    """A decoder needs one; were it another one at the lowest cost, sizes would not be nested."""
    model = toy_model("gpt2")
    worth = {
        branch.axis(dim.name): torch.full((dim.lanes, dim.size), 1.0 if branch.kind == "mlp" else 0.1 / (1 + block))
        for block, branch in ((each.block, each) for each in model.anatomy.branches)
        for dim in branch.dims
    }
    bounds = Boundaries(model, worth)
    found = bounds.nested([share * bounds.range()[1] for share in (0.2, 0.4, 0.6)])
    kept = [[one.sizes[f"layers.{block}.attention.groups"] for block in range(4)] for one in found]
    assert kept[0] == [1, 0, 0, 0], "the best one"
    for less, more in pairwise(kept):
        assert all(low <= high for low, high in zip(less, more, strict=True))


def test_units_that_are_never_learnt_go_one_by_one() -> None:
    """The published bisection on a threshold would take them all or none."""
    model = toy_model("bert", intermediate_size=256)
    worth = {name: torch.zeros_like(value) for name, value in unit_scores(model, saliency(model, "l1")).items()}
    bounds = Boundaries(model, worth)
    most = bounds.range()[1]
    assert abs(bounds.at(0.8 * most).macs - 0.8 * most) <= NEAR * most


def test_a_unit_lives_as_long_as_its_strongest_block() -> None:
    units = torch.arange(4).view(4, 1, 1)
    one, other = (
        torch.tensor([[1.0, -5.0], [0.0, 0.0], [-1.0, -1.0], [2.0, 2.0]]),
        torch.tensor([[0.5, 7.0, -9.0, 0.0]]),
    )
    worth = importance.strongest([(one, 0, units), (other, 1, units)])
    assert worth.tolist() == [[1.0, 7.0, -1.0, 2.0]]
    assert importance.total([(one, 0, units)]).tolist() == [[-4.0, 0.0, -2.0, 4.0]]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("largest=0.8", "even=1.0"),
        pytest.param(("lists=uniform", "scores=l1", "start=teacher"), marks=pytest.mark.slow),
        pytest.param(("lists=threshold", "largest=0.8"), marks=pytest.mark.slow),
        ("scores=wanda", "multiple=8", "distil=0.0", "dropout=0"),
    ],
    ids=" ".join,
)
def test_from_an_encoder_to_a_super_network(settings: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    report = pipeline.supernet(
        home / "bert", method="eftnas", data=home / "words.jsonl", settings=(*QUICK, *settings), out=tmp_path / "S"
    )
    model, manifest = pipeline.load(tmp_path / "S"), read_manifest(tmp_path / "S")
    assert manifest.space is not None
    space, whole = Space.from_json(manifest.space), Counter(pipeline.load(home / "bert")).count().macs
    counter = Counter(model)
    largest = 0.8 if "largest=0.8" in settings else 1.0
    near = 0.03 if not any(each.startswith("lists=") for each in settings) else 0.1  # the head for the classes is new
    assert counter.figures(space.full)["macs"] == pytest.approx(largest * whole, rel=near)
    assert counter.figures(space.smallest)["macs"] == pytest.approx(0.5 * whole, rel=near)
    assert set(report.points[0]["quality"]) == {"accuracy", "loss"}
    details = manifest.lineage[0].details
    assert len(details["targets"]) == 3
    (middle,) = (space.check(one) for one in details["between"])
    assert counter.figures(middle)["macs"] == pytest.approx(details["targets"][1], rel=near)
    pipeline.search(tmp_path / "S", out=tmp_path / "search", trials=3, objectives=("accuracy", "macs"))
    found = Found.load(tmp_path / "search" / "found.json")
    assert {found.subnet(at) for at in range(3)} == {space.full, space.smallest, middle}, "what was trained comes first"
    told = json.loads((tmp_path / "S" / "manifest.json").read_text())
    for other in ([{"elsewhere": 1}], [3], 3):
        told["lineage"][0]["details"]["between"] = other
        (tmp_path / "S" / "manifest.json").write_text(json.dumps(told))
        with pytest.raises(ArtifactError, match="names sub-networks that are not of its space") as error:
            pipeline.search(tmp_path / "S", out=tmp_path / "again", trials=3)
        assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="smallest must be below largest"):
        pipeline.supernet(
            home / "bert", method="eftnas", data=home / "words.jsonl", settings=["smallest=1"], out=tmp_path / "S"
        )
    with pytest.raises(BudgetUnmetError, match=r"reachable is .* choose bounds in this range \(smallest, largest\)"):
        pipeline.supernet(
            home / "bert", method="eftnas", data=home / "words.jsonl", settings=[*QUICK[:-1], "smallest=0.01"],
            out=tmp_path / "S",
        )  # fmt: skip
    with pytest.raises(ConfigError, match="no token that hides a word; leave hide at 0"):
        pipeline.supernet(
            home / "bert", method="eftnas", data=home / "words.jsonl", settings=[*QUICK, "hide=0.1"],
            out=tmp_path / "S",
        )  # fmt: skip
    from lissome.testing.networks import network_model

    with pytest.raises(OrderError, match="eftnas needs a model that is text"):
        pipeline.supernet(network_model("resnet"), method="eftnas", data="x.npz", out=tmp_path / "T")
