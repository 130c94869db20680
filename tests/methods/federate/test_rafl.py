"""RaFL: architectures within budgets, what is shared, what stays, and merging by opinion."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lissome.core.budget import Budget
from lissome.core.errors import ConfigError, FederationError
from lissome.cost.counted import Counter
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.allocate import Allocator, Probe
from lissome.engine.federate.client import Worker
from lissome.engine.federate.fuse import Distilled, Fusion
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.merge import Overlap, Piece
from lissome.engine.federate.method import ClientSite, ServerSite
from lissome.engine.federate.mutual import KNOWLEDGE, _apart, bound_of
from lissome.engine.federate.norms import OWN
from lissome.engine.federate.planner import Planner
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.secure.client import SecureClient
from lissome.engine.federate.secure.masks import STEPS
from lissome.engine.federate.secure.program import SecureProgram
from lissome.engine.federate.store import ClientStore
from lissome.engine.train import TrainConfig
from lissome.methods.federate.rafl import RaFL, _space
from lissome.models.binding import extract
from lissome.models.model import Model
from tests.engine.federate.fleet import encoder, federation, lesson

BUDGETS = {"a": "", "b": "block_params<=60%", "c": "block_params<=35%"}


def run(folder: Path, rounds: int = 2, secure: bool = False, **changes: Any) -> tuple[Federation, Any, Model]:
    model = encoder()
    method = RaFL(RaFL.Config(**{"lr": 0.01, "batch": 8, "trials": 8, "epochs": 2, **changes}))
    method.prepare(model, 0)
    server: Any = method.server(
        ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=folder)
    )
    who = {}
    for index, (name, budget) in enumerate(BUDGETS.items()):
        facts = Profile(name=name, examples=0, budget=budget)
        client = method.client(ClientSite(facts=facts, model=model, lesson=lesson(index), seed=0))
        masked = SecureClient(inner=client, largest=1.0) if secure else client
        who[name] = partial(Worker, masked, ClientStore(folder / name))
    program = SecureProgram(server, largest=1.0) if secure else server
    job = federation(program, who, folder / "server", rounds=rounds, evaluate_every=1)
    job.run()
    return job, server, model


@pytest.mark.parametrize("way", ["search", "random", "largest"])
def test_architectures_are_within_budgets_and_use_them(way: Any) -> None:
    model = encoder()
    space = _space(model, RaFL.Config())
    planner = Planner(space, SubnetCost(model))
    allocator = Allocator(model, planner, way, trials=10, seed=0)
    whole = Counter(model).count().block_params
    for text in ("block_params<=70%", "block_params<=45%"):
        budget = Budget.parse(text)
        subnet = allocator.of(budget)
        small = extract(model, {**model.anatomy.space(finest=True).full, **subnet})
        independent = sum(
            value.numel() for block in small.anatomy.blocks for value in small.module.get_submodule(block).parameters()
        )
        share = float(text.partition("<=")[2].rstrip("%")) / 100
        assert 0.85 * share <= independent / whole <= share
        assert allocator.of(budget) is subnet, "equal devices share one"
    again = Allocator(model, planner, way, trials=10, seed=0)
    again.restore(json.loads(json.dumps(allocator.state())))
    assert again.of(Budget.parse("block_params<=45%")) == allocator.of(Budget.parse("block_params<=45%"))


def test_searched_architectures_are_closer_to_the_whole_than_random_ones() -> None:
    model = encoder()
    planner, probe = Planner(_space(model, RaFL.Config()), SubnetCost(model)), Probe(model, 1)
    assert probe.distance(planner.space.full) == pytest.approx(0.0, abs=1e-6)
    budget = Budget.parse("block_params<=50%")
    distance = {
        way: sum(
            probe.distance(Allocator(model, planner, way, trials=25, seed=seed).of(budget))  # type: ignore[arg-type]
            for seed in range(3)
        )
        for way in ("search", "random")
    }
    assert distance["search"] < distance["random"]


@pytest.mark.parametrize("share", ["none", "knowledge", "overlap", "both"])
def test_what_is_shared_travels_and_nothing_else(share: str, tmp_path: Path) -> None:
    job, server, model = run(tmp_path, share=share)
    small = sum(value.numel() for name, value in server.tensors.items() if name.startswith(KNOWLEDGE)) * 4
    assert bool(small) == (share in {"knowledge", "both"})
    sent = job.bytes(action="train")
    if share == "knowledge":
        assert sent.payload == 2 * 3 * 2 * small, "2·|S|·|θ| a round, whatever the clients' own models are"
    if share == "none":
        assert sent.payload == 0
    if share == "overlap":
        full = sum(value.numel() for value in server.tensors.values()) * 4
        assert 0 < sent.payload_up < 2 * 3 * full
    assert not job.audit.lines
    first, last = job.rounds[1], job.rounds[-1]
    assert set(last.scores) == set(BUDGETS)
    assert last.metrics["train/loss"] < first.metrics["train/loss"]
    for name, budget in BUDGETS.items():
        kept = ClientStore(tmp_path / name).before(10**6)
        own = {key.removeprefix(OWN): value for key, value in kept.tensors.items() if key.startswith(OWN)}
        bound = bound_of(model, kept.facts["subnet"], lesson(0))
        bound.load(own)
        assert set(own) == set(bound.trained())
        if budget:
            assert server.planner.fits(server.allocator.of(Budget.parse(budget)), Budget.parse(budget))
    if share != "none":
        assert last.metrics["server/loss"] < job.rounds[0].metrics["server/loss"]
    if small:
        assert server.outcome().anatomy.layers() == bound_of(model, server.small, lesson(0)).model.anatomy.layers()


def test_a_client_alone_trains_on_as_if_no_round_had_ended(tmp_path: Path) -> None:
    def own(folder: Path, rounds: int, steps: int, **changes: Any) -> list[dict[str, Tensor]]:
        run(folder, rounds, steps=steps, moments=True, **changes)
        return [dict(ClientStore(folder / name).before(10**6).tensors) for name in BUDGETS]

    for one, other in zip(
        own(tmp_path / "a", 1, 6, share="none"), own(tmp_path / "b", 2, 3, share="none"), strict=True
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        assert any(name.startswith("moment|") for name in one)
    for kept in own(tmp_path / "c", 2, 3, share="both"):
        names = {name.removeprefix(OWN) for name in kept if name.startswith(OWN)}
        kinds = {name.split("|")[1] for name in kept if name.startswith("moment|")}
        assert kinds
        assert kinds <= names, "of its own model alone"


def test_knowledge_goes_into_secure_sums_whatever_the_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography: pip install 'lissome[federate]'")
    # Training is another phase of the round there, so that its order would have another seed.
    monkeypatch.setattr("lissome.engine.federate.exchange.derive", lambda *_: 7)
    _, plain, _ = run(tmp_path / "plain", rounds=1, merge="mean")
    job, masked, _ = run(tmp_path / "masked", rounds=1, secure=True, merge="mean")
    assert not job.audit.lines
    assert len({str(one) for one in job.rounds[-1].subnets.values()}) == 2, "c and b have their own, a has all"
    for name, value in plain.tensors.items():
        assert float((masked.tensors[name] - value).abs().max()) <= 3 / STEPS, name
    job, _, _ = run(tmp_path / "slices", rounds=1, secure=True, merge="mean", share="both")
    refused = {line["client"]: str(line["reason"]) for line in job.audit.lines if line["event"] == "refused"}
    assert set(refused) == {"b", "c"}
    assert all("would get a sub-network" in reason for reason in refused.values())


def test_an_opinion_is_apart_from_another_by_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 3, generator=generator).log_softmax(-1) for _ in range(2))
    expected = (other.exp() * (other - one)).sum(-1)
    assert torch.allclose(_apart(one, other), expected)
    assert torch.allclose(_apart(one, one), torch.zeros(5), atol=1e-7)


def _fusion(model: Model, **changes: Any) -> Fusion:
    training = TrainConfig(steps=40, lr=3e-3, batch=16, schedule="constant", precision="fp32")
    return Fusion(
        **{"build": lambda: bound_of(model, None, lesson(0)), "public": lesson(77), "config": training, **changes}
    )


def _pieces(model: Model, seeds: tuple[int, ...]) -> tuple[dict[str, Tensor], list[Piece]]:
    bound = bound_of(model, None, lesson(0))
    base = bound.values(list(bound.trained()))
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
        found.append(Piece(client=f"c{seed}", weight=float(seed), layout=Layout.whole(base), tensors=tensors))
    return base, found


def test_an_ensemble_of_one_opinion_has_that_opinion() -> None:
    model = encoder()
    base, (piece,) = _pieces(model, (1,))
    merge = Distilled(base, _fusion(model))
    merge.add(piece)
    assert torch.allclose(merge.opinion.sum(-1), torch.ones(len(merge.opinion)))
    merge = Distilled(base, _fusion(model, config=TrainConfig(steps=1, lr=0.0, schedule="constant")))
    merge.add(piece)
    found = merge.result()
    assert all(torch.equal(found[name], piece.tensors[name]) for name in base), "the student starts from the mean"


def test_a_student_comes_nearer_to_the_mean_opinion() -> None:
    model = encoder()
    base, pieces = _pieces(model, (1, 2, 3))

    def apart(tensors: dict[str, Tensor], merge: Distilled) -> float:
        bound, wanted = bound_of(model, None, lesson(0)), merge.opinion
        bound.load(tensors)
        bound.module.eval()
        rows = lesson(77).data
        with torch.no_grad():
            found = lesson(0).outputs(bound.module, (rows.ids, rows.mask, rows.labels)).log_softmax(-1)
        return float((wanted * (wanted.log() - found)).sum(-1).mean())

    merge, mean = Distilled(base, _fusion(model)), Overlap(base)
    for piece in pieces:
        merge.add(piece)
        mean.add(piece)
    assert apart(merge.result(), merge) < 0.5 * apart(mean.result(), merge)
    half = Layout({name: {0: torch.arange(1)} for name in base})
    with pytest.raises(FederationError, match="whole models"):
        Distilled(base, _fusion(model)).add(Piece(client="x", weight=1.0, layout=half, tensors=half.cut(base)))
    with pytest.raises(ConfigError, match="public"):
        _fusion(model, public=lesson(0).some([], []))


def test_a_teacher_without_an_opinion_is_left_out() -> None:
    """Finite weights, none beyond what one number may be; its scores are not finite, and its weights spoil the mean."""
    model = encoder()
    base, pieces = _pieces(model, (1, 2, 3))
    poison = {name: 9e5 * value.sign() for name, value in pieces[1].tensors.items()}
    merge, without = Distilled(base, _fusion(model)), Distilled(base, _fusion(model))
    with pytest.raises(FederationError, match="no opinion"):
        merge.add(Piece(client="x", weight=1.0, layout=Layout.whole(base), tensors=poison))
    for piece in pieces:
        merge.add(piece)
        without.add(piece)
    assert torch.equal(merge.opinion, without.opinion)
    found, expected = merge.result(), without.result()
    assert all(torch.equal(found[name], expected[name]) for name in base)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trains": "adapters"}, "whole"), ({"proximal": 0.1}, "proximal"), ({"fuse": "distil"}, "public=FILE"),
        ({"fuse": "distil", "public": "x", "bound": 1.0}, "no norm"), ({"knowledge": "size<=3"}, "size"),
        ({"share": "none", "secure": True, "merge": "mean"}, "shares nothing"),
        ({"share": "none", "noise": 1.0, "bound": 1.0, "noise_clients": 3}, "shares nothing"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        RaFL.Config(**changes)
