"""FFM: how adapters are merged, by identities; what travels; arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lissome.core.errors import ConfigError, FederationError
from lissome.cost.oracle import SubnetCost
from lissome.data.images import write_images
from lissome.engine.federate.blackbox import Projection, PromptSearch, prompt_name
from lissome.engine.federate.client import Work, Worker
from lissome.engine.federate.continual import chunk, summary
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.lessons import Classes, Pictures, Tokens
from lissome.engine.federate.lora import Fold, Products
from lissome.engine.federate.merge import Overlap, Piece
from lissome.engine.federate.method import ClientSite, FederatedMethod, ServerSite
from lissome.engine.federate.mutual import bound_of
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Report
from lissome.engine.federate.rounds import Federation
from lissome.engine.federate.store import ClientStore
from lissome.methods.federate.fedavg import FedAvg
from lissome.methods.federate.ffm import FFM
from lissome.models.adapters.prompts import add_prompt
from lissome.models.model import Model
from lissome.testing.toys import toy_model
from tests.engine.federate.fleet import encoder, federation, killed_at, lesson, pictures, rows, seen

A, B = "x.adapter.A", "x.adapter.B"


def run(folder: Path, *, model: Model | None = None, count: int = 3, **changes: Any) -> tuple[Federation, Any]:
    """A federation of FFM in this process, to its end."""
    loop = {name: changes.pop(name) for name in ("rounds", "evaluate_every", "quorum") if name in changes}
    budgets = changes.pop("budgets", [""] * count)
    config = FFM.Config(**{"lr": 0.02, "batch": 8, "rank": 4, **changes})
    whole = model or encoder()
    method = FFM(config)
    method.prepare(whole, 0)
    server: Any = method.server(
        ServerSite(model=whole, lesson=lesson(9), cost=SubnetCost(whole), seed=0, folder=folder)
    )
    who = {}
    for index in range(count):
        facts = Profile(name=f"c{index}", examples=0, budget=budgets[index])
        client = method.client(ClientSite(facts=facts, model=whole, lesson=lesson(index), seed=0))
        who[facts.name] = partial(Worker, client, ClientStore(folder / facts.name))
    job = federation(server, who, folder / "server", **loop)
    job.run()
    return job, server


def pair(seed: int, rank: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {A: torch.randn(rank, 7, generator=generator), B: torch.randn(9, rank, generator=generator)}


def piece(name: str, weight: float, tensors: dict[str, Tensor], rank: int) -> Piece:
    kept = torch.arange(rank)
    return Piece(client=name, weight=weight, layout=Layout({A: {0: kept}, B: {1: kept}}), tensors=tensors)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 50)), min_size=1, max_size=5))
def test_products_are_averaged_as_well_as_the_rank_allows(seed: int, clients: list[tuple[int, int]]) -> None:
    base = {**pair(0, 4), "w": torch.zeros(9, 7)}
    given_pairs = [(weight, rank, pair(seed + index, rank)) for index, (rank, weight) in enumerate(clients)]
    total = sum(weight for weight, _, _ in given_pairs)
    mean = sum(weight * one[B].double() @ one[A].double() for weight, _, one in given_pairs) / total
    merge, fold = Products(base), Products(base, {"x": Fold("w", 0.5, transposed=False)})
    for index, (weight, rank, one) in enumerate(given_pairs):
        merge.add(piece(f"c{index}", float(weight), one, rank))
        fold.add(piece(f"c{index}", float(weight), one, rank))
    found = merge.result()
    assert found[A].shape == (4, 7)
    assert found[B].shape == (9, 4)
    left, values, right = torch.linalg.svd(mean)
    best = left[:, :4] * values[:4] @ right[:4]
    assert torch.allclose(found[B].double() @ found[A].double(), best, atol=1e-4)
    assert torch.allclose(fold.result()["w"].double(), 0.5 * mean, atol=1e-5), "folding loses nothing"
    assert bool((found[A].norm(dim=1) > 0.99).all()), "what is zero in B can still be trained"


def test_ranks_beyond_the_sides_of_a_matrix_keep_their_size() -> None:
    base, rank = {A: torch.randn(12, 7), B: torch.zeros(9, 12)}, 12
    merge, given_pair = Products(base), pair(1, rank)
    merge.add(piece("c", 1.0, given_pair, rank))
    found = merge.result()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in base.items()}
    assert torch.allclose(found[B] @ found[A], given_pair[B] @ given_pair[A], atol=1e-4)
    assert bool((found[A].norm(dim=1) > 0).all()), "what is zero in B can still be trained"


def test_the_mean_of_factors_is_another_thing() -> None:
    one, other = {A: torch.ones(1, 7), B: torch.ones(9, 1)}, {A: -torch.ones(1, 7), B: -torch.ones(9, 1)}
    results = {}
    for merger in (Overlap, Products):
        merge = merger({A: torch.zeros(1, 7), B: torch.zeros(9, 1)})
        for name, tensors in (("a", one), ("b", other)):
            merge.add(piece(name, 1.0, tensors, 1))
        found = merge.result()
        results[merger] = found[B] @ found[A]
    assert torch.allclose(results[Products], torch.ones(9, 7)), "both clients have this product"
    assert not results[Overlap].any(), "and their factors cancel"


def test_products_need_both_factors_of_whole_layers() -> None:
    merge = Products(pair(0, 4))
    for layout in (Layout({A: {}}), Layout({A: {1: torch.arange(3)}, B: {}}), Layout({A: {}, B: {0: torch.arange(3)}})):
        with pytest.raises(FederationError, match="whole layers"):
            merge.add(Piece(client="a", weight=1.0, layout=layout, tensors=layout.cut(pair(1, 4))))


@pytest.mark.parametrize("lora", ["factors", "product", "freeze-a", "stack"])
def test_every_merge_of_adapters_learns_and_sends_little(lora: str, tmp_path: Path) -> None:
    job, server = run(tmp_path, lora=lora, rounds=3, epochs=3)
    assert job.rounds[-1].metrics["server/loss"] < job.rounds[0].metrics["server/loss"] - 0.05
    sent = {name for name in server.tensors if name.endswith(".adapter.A")}
    assert bool(sent) == (lora != "freeze-a")
    up = job.bytes(action="train").payload_up
    whole = sum(value.numel() for value in encoder().module.parameters()) * 4
    assert up < 3 * 3 * whole / 3
    if lora == "stack":
        start = dict(encoder().module.named_parameters())
        name = "encoder.layer.0.attention.self.query.weight"
        assert not torch.equal(server.tensors[name], start[name].detach()), "products are in the weights"
        assert not any(value.any() for key, value in server.tensors.items() if key.endswith(".adapter.B"))


def test_ranks_fit_devices(tmp_path: Path) -> None:
    job, _ = run(tmp_path, lora="product", rounds=2, budgets=["", "uplink<=60%", "uplink<=60%"])
    chosen = job.rounds[-1].subnets
    assert set(chosen) == {"c1", "c2"}
    assert all(name.endswith(".rank") and 0 < value <= 4 for one in chosen.values() for name, value in one.items())
    assert not job.audit.lines


def test_pretraining_from_nothing(tmp_path: Path) -> None:
    one, other, third = (toy_model("llama", seed=seed) for seed in (0, 1, 1))
    for model, seed in ((one, 5), (other, 5), (third, 6)):
        FFM(FFM.Config(recipe="pretrain", trains="all", fresh=True, freeze=())).prepare(model, seed)
    weights = [dict(model.module.named_parameters()) for model in (one, other, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": "product", "trains": "all"}, "trains=adapters"),
        ({"lora": "stack", "merge": "mean"}, "merges products"), ({"lora": "stack", "up": "delta+int8"}, "no delta"),
        ({"lora": "product", "outer": "momentum"}, "anew"), ({"lora": "product", "moments": True}, "anew"),
        ({"lora": "product", "common": 0.5}, "anew"), ({"lora": "product", "up": "delta+top=5%+feedback"}, "anew"),
        ({"lora": "product", "recipe": "continual", "protect": "ewc"}, "anew"),
        ({"fresh": True}, "pretrain"), ({"trigger": "drift"}, "continual"),
        ({"public": "x", "lora": "stack"}, "stack"), ({"public": "x", "recipe": "prompt"}, "finetune"),
        ({"proximal": 0.1, "recipe": "retrieve"}, "proximal"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FFM.Config(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": "prompt-search", "dimensions": 4097}, "'dimensions' must be at most 4096, got 4097"),
        ({"recipe": "prompt", "tokens": 10**18}, "'tokens' must be at most 4096"),
        ({"recipe": "continual", "slices": 31}, "'slices' must be at most 30"),
    ],
)
def test_sizes_that_nothing_holds(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FFM.Config(**changes)


@pytest.mark.parametrize("kind", [FFM, FedAvg])
def test_a_rank_that_no_layer_has(kind: type[FederatedMethod]) -> None:
    method = kind(kind.Config(trains="adapters", rank=10**18))
    with pytest.raises(ConfigError, match=r"rank 1000000000000000000 is more than any layer of .* at most 24"):
        method.prepare(encoder(), 0)


def speaker(**changes: Any) -> Model:
    return toy_model("llama", num_hidden_layers=2, **changes)


def spoken(seed: int) -> Tokens:
    """Windows that repeat two tokens, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 7, (20, 1), generator=generator).expand(-1, 10) + torch.arange(10) % 2
    return Tokens(rows[:16].contiguous(), rows[16:].contiguous())


@pytest.mark.parametrize("recipe", ["prompt", "prompt-search"])
def test_virtual_tokens_alone_travel(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.lesson", spoken)
    model = speaker()
    frozen = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    settings = {"tokens": 5, "candidates": 8, "dimensions": 6, "lr": 0.05, "epochs": 4}
    job, _ = run(tmp_path, model=model, recipe=recipe, rounds=6, **settings)
    rounds, clients, width = 6, 3, model.anatomy.hidden
    if recipe == "prompt":
        assert job.bytes(action="train").payload == 5 * width * 4 * 2 * clients * rounds, "m·d·4·2·|S|·R"
    else:
        assert job.bytes(action="score").payload == 8 * 6 * 4 * clients * rounds, "candidates down, losses up"
    assert {one.answered for one in job.rounds[1:]} == {clients}, "whether they sent tensors or numbers"
    assert job.rounds[-1].metrics["server/loss"] < job.rounds[0].metrics["server/loss"] - 0.05
    for name, value in frozen.items():
        assert torch.equal(model.module.get_parameter(name), value), name


@pytest.mark.parametrize("recipe", ["prompt", "prompt-search"])
def test_virtual_tokens_beside_patches_travel_and_learn(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("vit-labels")
    monkeypatch.setattr(f"{__name__}.lesson", partial(seen, model))
    settings = {"tokens": 5, "candidates": 8, "dimensions": 6, "lr": 0.1, "epochs": 6}
    job, server = run(tmp_path, model=model, recipe=recipe, rounds=6, **settings)
    width = model.anatomy.hidden
    if recipe == "prompt":
        head = {"classifier.weight": 3 * width, "classifier.bias": 3}
        assert set(server.tensors) == {"vit.embeddings.prompt.tokens", *head}, "a head for classes learns with them"
        assert job.bytes(action="train").payload == (5 * width + sum(head.values())) * 4 * 2 * 3 * 6
    else:
        assert job.bytes(action="score").payload == 8 * 6 * 4 * 3 * 6, "candidates down, losses up"
    assert job.rounds[-1].metrics["server/loss"] < job.rounds[0].metrics["server/loss"] - 0.02


def test_a_vision_transformer_remembers_with_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slices of time, the second without the first's classes."""
    lost = {}

    def ordered(seed: int) -> Pictures:
        made = seen(toy_model("vit-labels"), seed, 48)
        place = sorted(range(48), key=lambda at: made.data.images.labels[at])
        held = sorted(range(12), key=lambda at: made.held_out.images.labels[at])
        return made.some(place, held)

    monkeypatch.setattr(f"{__name__}.lesson", ordered)
    for protect in ("none", "replay"):
        job, _ = run(
            tmp_path / protect, model=toy_model("vit-labels"), recipe="continual", trains="all", slices=2, period=2,
            protect=protect, rounds=4, lr=0.003, epochs=8, evaluate_every=2, count=2,
        )  # fmt: skip
        lost[protect] = summary(_matrix(job, 2))
    assert lost["none"]["forgetting"] > lost["replay"]["forgetting"] + 0.05
    assert lost["replay"]["average"] > lost["none"]["average"]


def test_a_vision_transformer_learns_from_nothing_and_from_public_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("vit-labels")
    monkeypatch.setattr(f"{__name__}.lesson", partial(seen, model))
    public = str(write_images(pictures(16, seed=77), tmp_path / "public.npz"))
    job, _ = run(
        tmp_path, model=model, recipe="pretrain", trains="all", fresh=True, freeze=(), rounds=4, lr=0.003, epochs=4,
        public=public,
    )  # fmt: skip
    assert "train/public" in job.rounds[-1].metrics
    assert job.rounds[-1].metrics["server/loss"] < job.rounds[0].metrics["server/loss"] - 0.1


def test_who_leaves_candidates_out_has_no_say() -> None:
    """Without a loss for every candidate an answer would make the others' worth nothing."""
    model = speaker()
    add_prompt(model, 3, seed=0)

    def told(*reports: Report) -> tuple[Mapping[str, float], Tensor]:
        program = PromptSearch(model, {})
        program.begin(Projection.of(model, 4, 0), 4, 0)
        (phase,) = program.phases(1)
        return program.conclude(phase, 1, {}, reports), program.tensors[prompt_name(model)]

    honest = Report(client="a", weight=3.0, metrics={f"loss-{index}": 1.0 + index for index in range(4)})
    lazy, none = replace(honest, client="b", metrics={"loss-1": -9.0}), replace(honest, client="c", weight=0.0)
    found, tokens = told(honest, lazy, none)
    expected, same = told(honest)
    assert found == expected == {"best": 1.0}
    assert torch.equal(tokens, same)
    assert told(lazy, none)[0] == {}


def test_a_search_for_tokens_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.lesson", spoken)
    settings = {"recipe": "prompt-search", "tokens": 3, "candidates": 6, "dimensions": 4, "rounds": 4}
    _, whole = run(tmp_path / "one", model=speaker(), **settings)
    with killed_at(2, recorded=True):
        run(tmp_path / "two", model=speaker(), **settings)
    job, again = run(tmp_path / "two", model=speaker(), **settings)
    assert [one.number for one in job.rounds] == [0, 1, 2, 3, 4]
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)


def shifted(seed: int) -> Classes:
    """Two slices of time: first classes 0 and 1, then 1 and 2."""
    data = rows(48, seed)
    order = data.labels.argsort(stable=True).tolist()
    held = rows(30, 500 + seed)
    return Classes(data.some(order), held.some(held.labels.argsort(stable=True).tolist()), 3)


def _matrix(job: Federation, slices: int) -> list[list[float]]:
    ends = [one for one in job.rounds if one.number and one.number % 2 == 0]
    return [[one.metrics[f"evaluate/slice-{index + 1}/accuracy"] for index in range(slices)] for one in ends]


def test_what_keeps_from_forgetting_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.lesson", shifted)
    lost = {}
    for protect in ("none", "replay", "ewc", "distil"):
        job, _ = run(
            tmp_path / protect, recipe="continual", trains="all", slices=2, period=2, protect=protect, rounds=4,
            lr=0.003, epochs=8, evaluate_every=2, count=2,
        )  # fmt: skip
        lost[protect] = summary(_matrix(job, 2))
        kept = sorted((tmp_path / protect / "c0").glob("0*/facts.json"))
        assert bool(kept) == (protect in {"ewc", "distil"}), "what is kept stays with the client"
    assert lost["none"]["forgetting"] > 0.3
    for protect in ("replay", "ewc", "distil"):
        assert lost[protect]["forgetting"] < lost["none"]["forgetting"] - 0.05, lost[protect]
    assert lost["replay"]["average"] > lost["none"]["average"], lost


def test_as_many_slices_as_an_answer_has_room_for(tmp_path: Path) -> None:
    """Clients with fewer examples have none in some slices, and say so."""
    job, _ = run(tmp_path, recipe="continual", trains="head", slices=30, steps=1, rounds=2, evaluate_every=1, quorum=0)
    assert {str(line["reason"]) for line in job.audit.lines} == {"slice 1 has none of its 24 examples; lower slices"}
    assert job.rounds[-1].answered == 3
    assert any(name.startswith("evaluate/slice-30/") for name in job.rounds[-1].metrics)


def test_what_replay_remembers_is_drawn_by_the_seed() -> None:
    def remembered(seed: int) -> list[int]:
        model = encoder()
        method = FFM(FFM.Config(recipe="continual", trains="all", slices=2, memory=4))
        facts = Profile(name="a", examples=0)
        client: Any = method.client(ClientSite(facts=facts, model=model, lesson=shifted(0), seed=seed))
        work = Work(head=OrderHead(action="train", ticket="x", round=2, tick=1, seed=5))
        data: Any = client.task_for(work, bound_of(model, None, client.lesson), {}).data
        kept = {tuple(row) for row in data.ids.tolist()}
        return [at for at, row in enumerate(shifted(0).data.ids.tolist()[:24]) if tuple(row) in kept]

    assert len(remembered(0)) == 4
    assert remembered(0) == remembered(0)
    assert len({tuple(remembered(seed)) for seed in range(4)}) > 1


def test_slices_are_all_of_the_rows_once() -> None:
    for count, parts in ((0, 3), (2, 3), (10, 3), (11, 4)):
        assert [place for index in range(parts) for place in chunk(count, index, parts)] == list(range(count))
    assert summary([[0.9, 0.2], [0.5, 0.8]]) == {"average": 0.65, "forgetting": 0.4, "forward": 0.2}
    assert summary([[0.9]]) == {"average": 0.9}
