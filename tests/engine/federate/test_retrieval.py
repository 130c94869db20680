"""Search over clients' documents: the central index's list when all answer, and what is left when some do not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from lissome.core.errors import ConfigError, FederationError
from lissome.cost.oracle import SubnetCost
from lissome.engine.federate.client import Worker
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.lessons import Tokens
from lissome.engine.federate.local import Device
from lissome.engine.federate.merge import Piece
from lissome.engine.federate.method import ClientSite, ServerSite
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.retrieval import (
    ANSWER,
    CLASSES,
    OWNERS,
    PLACES,
    SCORES,
    Best,
    embed,
    judged,
    labels_in,
    ranked,
)
from lissome.engine.federate.store import ClientStore
from lissome.engine.images import examples, features
from lissome.methods.federate.ffm import FFM
from lissome.models.labels import image_head
from lissome.testing.networks import network_model
from lissome.testing.toys import toy_model
from tests.engine.federate.fleet import encoder, federation, lesson, pictures, seen


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_merged_lists_are_those_of_a_central_index(seed: int, sizes: list[int], count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = normalize(torch.randn(4, 3, generator=generator), dim=-1)
    parts = [normalize(torch.randn(size, 3, generator=generator), dim=-1) for size in sizes]
    labels = [torch.randint(0, 3, (size,), generator=generator) for size in sizes]
    central = ranked(queries, torch.cat(parts), torch.cat(labels), count)
    names: list[str] = []
    merge = Best(central, names)
    for number, (part, own) in enumerate(zip(parts, labels, strict=True)):
        lists = ranked(queries, part, own, count)
        merge.add(Piece(client=f"c{number}", weight=1.0, layout=Layout.whole(ANSWER), tensors=lists))
    found = merge.result()
    assert torch.allclose(found[SCORES], central[SCORES], atol=1e-6)
    assert torch.equal(found[CLASSES], central[CLASSES])
    starts = torch.tensor([sum(sizes[:number]) for number in range(len(sizes))])
    real = found[PLACES] >= 0
    assert torch.equal((starts[found[OWNERS]] + found[PLACES])[real], central[PLACES][real])


def test_a_score_that_is_no_cosine_is_refused() -> None:
    """It would stand above all others."""
    base = {SCORES: torch.full((1, 2), -2.0)}
    lists = {SCORES: torch.tensor([[9.0, 0.5]]), PLACES: torch.tensor([[0, 1]]), CLASSES: torch.tensor([[1, 1]])}
    merge = Best(base, names := [])
    with pytest.raises(FederationError, match="no cosine"):
        merge.add(Piece(client="c", weight=1.0, layout=Layout.whole(ANSWER), tensors=lists))
    assert (names, merge.result()) == ([], {})
    honest = Piece(client="c", weight=1.0, layout=Layout.whole(ANSWER), tensors={**lists, SCORES: torch.ones(1, 2)})
    merge.add(honest)
    with pytest.raises(FederationError, match="already"):
        merge.add(honest)
    assert names == ["c"]


def run(folder: Path, dropout: float = 0.0, *, train: bool = True) -> tuple[Any, Any]:
    model = encoder()
    method = FFM(FFM.Config(recipe="retrieve", results=3))
    method.prepare(model, 0)
    server = method.server(ServerSite(model=model, lesson=lesson(9), cost=SubnetCost(model), seed=0, folder=folder))
    who = {}
    for index, name in enumerate("abc"):
        client = method.client(
            ClientSite(facts=Profile(name=name, examples=0), model=model, lesson=lesson(index), seed=0)
        )
        who[name] = partial(Worker, client, ClientStore(folder / name))
    devices = {"c": Device(dropout=dropout)}
    job = federation(server, who, folder / "s", rounds=1, evaluate_every=1, devices=devices, deadline=5.0, train=train)
    job.run()
    return job, server


def test_all_answer_or_one_is_down(tmp_path: Path) -> None:
    model, asked = encoder(), lesson(9).held_out
    whole, server = run(tmp_path / "all")
    texts = [lesson(index).data for index in range(3)]
    central = ranked(
        embed(model, asked), torch.cat([embed(model, one) for one in texts]),
        torch.cat([one.labels for one in texts]), 3,
    )  # fmt: skip
    assert torch.allclose(server.tensors[SCORES], central[SCORES], atol=1e-6)
    assert server.evaluate(1) == judged(central[CLASSES], asked.labels)
    assert server.owners == ["a", "b", "c"]
    assert set(whole.rounds[-1].scores) == {"a", "b", "c"}
    part, fewer = run(tmp_path / "down", dropout=1.0)
    assert part.rounds[-1].ok
    assert fewer.owners == ["a", "b"]
    nobody, _ = run(tmp_path / "zero-shot", train=False)
    assert not any(name.startswith("server/") for name in nobody.rounds[-1].metrics), "nothing was looked for"
    assert bool((fewer.tensors[SCORES] <= server.tensors[SCORES]).all())
    assert not any("embeddings" in name for name in server.tensors)
    sent = whole.bytes(action="search")
    assert sent.payload_down == 3 * 12 * 24 * 4, "embeddings of the queries"
    assert sent.payload_up == 3 * 12 * 3 * (4 + 8 + 8), "a score, a place and a class for each document of a list"


@pytest.mark.parametrize("name", ["vit", "vit-labels", "resnet", "mobilenet"])
def test_images_are_found_as_in_one_index(name: str, tmp_path: Path) -> None:
    model = toy_model(name) if name.startswith("vit") else network_model(name)
    own = partial(seen, model, count=8)
    method = FFM(FFM.Config(recipe="retrieve", results=3))
    method.prepare(model, 0)
    server = method.server(ServerSite(model=model, lesson=own(9), cost=SubnetCost(model), seed=0, folder=tmp_path))
    who = {}
    for index, client in enumerate("abc"):
        site = ClientSite(facts=Profile(name=client, examples=0), model=model, lesson=own(index), seed=0)
        who[client] = partial(Worker, method.client(site), ClientStore(tmp_path / client))
    job = federation(server, who, tmp_path / "s", rounds=1, evaluate_every=1, devices={})
    job.run()
    lessons = [own(index) for index in range(3)]
    central = ranked(
        embed(model, own(9).held_out), torch.cat([embed(model, one.data) for one in lessons]),
        torch.cat([labels_in(one.data) for one in lessons]), 3,
    )  # fmt: skip
    assert torch.allclose(server.tensors[SCORES], central[SCORES], atol=1e-5)
    assert server.evaluate(1) == judged(central[CLASSES], labels_in(own(9).held_out))
    assert central[SCORES].shape == (12, 3) and set(job.rounds[-1].scores) == {"a", "b", "c"}


def test_features_of_a_network_are_what_its_last_layer_reads() -> None:
    model, given = network_model("resnet"), pictures(5, seed=1)
    data = examples(model, given)
    layer: Any = model.module.get_submodule(image_head(model))
    ((pixels, _),) = data.batches(64)
    with torch.no_grad():
        assert torch.allclose(layer(features(model, data)), model.module(pixels), atol=1e-5)
    assert not layer._forward_pre_hooks
    assert features(model, data.some([])).shape == (0, 0)


def test_texts_without_classes_cannot_judge(tmp_path: Path) -> None:
    windows = Tokens(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ConfigError, match="labelled"):
        FFM(FFM.Config(recipe="retrieve")).server(
            ServerSite(model=encoder(), lesson=windows, cost=SubnetCost(encoder()), seed=0, folder=tmp_path)
        )
