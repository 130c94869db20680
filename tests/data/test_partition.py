"""Dealing data out: everything once, the same for one seed, saved and checked, and refused with a reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.core.errors import ArtifactError, DataError
from lissome.data.labelled import Labelled, read_labelled
from lissome.data.partition import Partition, PartitionConfig, deal, partition

pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")


def rows(count: int = 120, classes: int = 4, owners: int = 0) -> Labelled:
    names = tuple(f"class {index}" for index in range(classes))
    whose = tuple(f"site {index % owners}" for index in range(count)) if owners else ()
    texts = tuple(f"text {index}" for index in range(count))
    return Labelled("rows", texts, tuple(index % classes for index in range(count)), names, whose)


@settings(max_examples=20)
@given(st.sampled_from(["iid", "dirichlet", "pathological", "natural"]), st.integers(1, 6), st.integers(0, 99))
def test_everything_is_dealt_once_and_alike_for_one_seed(scheme: str, clients: int, seed: int) -> None:
    data = rows(owners=5)
    config = PartitionConfig.from_mapping({"scheme": scheme, "clients": clients, "least": 1, "classes": 4})
    dealt = deal(data, config, seed=seed)
    places = sorted(place for part in dealt.parts.values() for place in part)
    assert places == list(range(len(data)))
    assert len(dealt.parts) == (5 if scheme == "natural" else clients)
    assert deal(data, config, seed=seed) == dealt
    assert dealt.data == data.sha256


def test_schemes_do_what_they_say() -> None:
    data = rows(400, owners=7)

    def classes_of(dealt: Partition) -> list[Counter[int]]:
        return [Counter(data.labels[place] for place in part) for part in dealt.parts.values()]

    even = classes_of(deal(data, PartitionConfig(scheme="iid", clients=4)))
    assert all(15 <= count <= 36 for one in even for count in one.values())
    assert all(len(one) == 4 for one in even), "the rows lie in turns, yet nobody gets one class alone"
    few = classes_of(deal(data, PartitionConfig(scheme="pathological", clients=4, classes=2)))
    assert all(len(one) == 2 for one in few)
    skewed = classes_of(deal(data, PartitionConfig(scheme="dirichlet", clients=4, alpha=0.1), seed=1))
    flat = classes_of(deal(data, PartitionConfig(scheme="dirichlet", clients=4, alpha=1000.0), seed=1))
    spread = [max(one.values()) / sum(one.values()) for one in skewed]
    assert max(spread) > 0.6 > max(max(one.values()) / sum(one.values()) for one in flat)
    own = deal(data, PartitionConfig(scheme="natural"))
    assert list(own.parts) == [f"site-{index}" for index in range(7)]
    for name, part in own.parts.items():
        assert {data.owners[place] for place in part} == {name.replace("-", " ")}


def test_clients_have_folders_where_cases_are_not_told_apart() -> None:
    owners = ["Ann", "ann", "ANN", "ann-3", "b/c", "B c"] * 3
    dealt = partition([], owners, PartitionConfig(scheme="natural"), data="x")
    assert len({name.casefold() for name in dealt.parts}) == len(set(owners))
    whose = {name: {owners[place] for place in part} for name, part in dealt.parts.items()}
    assert all(len(one) == 1 for one in whose.values())


def test_saved_and_read_again(tmp_path: Path) -> None:
    dealt = deal(rows(), PartitionConfig(clients=3))
    dealt.save(tmp_path / "p.json")
    assert Partition.load(tmp_path / "p.json") == dealt
    fields = json.loads((tmp_path / "p.json").read_text())
    fields["parts"]["client-0"] = fields["parts"]["client-0"][1:]
    (tmp_path / "p.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="changed after it was written"):
        Partition.load(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("config", "classes", "owners", "words"),
    [
        ({"scheme": "dirichlet"}, [], ["a"] * 20, "deals by class"),
        ({"scheme": "dirichlet", "clients": 3, "least": 7}, [0, 1] * 10, [], "20 examples cannot give each of 3 .* 7"),
        (
            {"scheme": "dirichlet", "alpha": 1e-3, "clients": 8, "least": 0}, [0, 1] * 10, [],
            "fewer clients, or raise least or alpha",
        ),
        ({"scheme": "natural"}, [0, 1] * 10, [], "deals by owner"),
        ({"scheme": "natural"}, [0, 1] * 10, ["a", ""] * 10, "not every row"),
        ({"scheme": "iid", "clients": 30}, [0, 1] * 10, [], "20 examples cannot be dealt out to 30"),
        ({"scheme": "pathological", "classes": 5, "clients": 2}, [0, 1] * 10, [], "there are 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_dealt(config: dict[str, object], classes: list[int], owners: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        partition(classes, owners, PartitionConfig.from_mapping(config), data="x")


def test_owners_of_like_names_are_different_clients() -> None:
    owners = [owner for owner in ("x-2", "x", "x!", "x?", "-") for _ in range(2)]
    dealt = partition([], owners, PartitionConfig(scheme="natural"), data="d")
    assert sorted(at for places in dealt.parts.values() for at in places) == list(range(10))
    assert len(dealt.parts) == 5


def test_owners_are_read_from_rows(tmp_path: Path) -> None:
    records = [{"text": f"t{k}", "label": k % 2, "client": "ab"[k % 2]} for k in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    data = read_labelled(tmp_path / "a.jsonl")
    assert data.owners == ("a", "b") * 3
    assert data.some([0, 3]).owners == ("a", "b")
    assert read_labelled(tmp_path / "a.jsonl", classes=("0", "1", "2")).classes == ("0", "1", "2")
    with pytest.raises(DataError, match="unknown label '1'"):
        read_labelled(tmp_path / "a.jsonl", classes=("0", "x"))
