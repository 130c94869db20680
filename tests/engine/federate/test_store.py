"""What clients keep: undone when an order is repeated, and whole or absent."""

from __future__ import annotations

from pathlib import Path

import torch

from lissome.engine.federate.store import ClientStore, Kept


def kept(value: float) -> Kept:
    return Kept({"w": torch.full((2,), value)}, {"value": value})


def test_a_repeated_order_starts_from_what_was_before_it(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "c")
    assert store.before(100).facts == {}
    for tick in (100, 200, 300):
        store.keep(tick, kept(float(tick)))
    assert store.before(400).facts == {"value": 300.0}
    assert store.before(300).facts == {"value": 200.0}
    assert torch.equal(store.before(300).tensors["w"], torch.full((2,), 200.0))
    assert store.before(200).facts == {}, "two states are kept"
    store.keep(300, kept(3.0))
    assert store.before(301).facts == {"value": 3.0}


def test_a_round_of_many_orders_can_be_repeated_whole(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "c")
    for tick in (100, 101, 200, 201, 202, 203):
        store.keep(tick, kept(float(tick)))
    assert store.before(200).facts == {"value": 101.0}, "what the round began with"
    assert store.before(203).facts == {"value": 202.0}
    store.keep(200, kept(2.0))
    assert store.before(201).facts == {"value": 2.0}
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_server_that_went_back_further_is_followed(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "c")
    for tick in (100, 200):
        store.keep(tick, kept(float(tick)))
    store.keep(150, kept(1.5))
    assert store.before(10_000).facts == {"value": 1.5}


def test_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "c")
    for tick in (100, 200):
        store.keep(tick, kept(float(tick)))
    (tmp_path / "c" / "00000200" / "tensors.safetensors").write_bytes(b"\0" * 9)
    found = store.before(300)
    assert found.facts == {"value": 100.0} and [path.name for path in found.damaged] == ["00000200"]
    assert not store.before(200).damaged, "nobody asked for it"
    (tmp_path / "c" / "00000100" / "facts.json").unlink()
    assert store.before(300).facts == {} and len(store.before(300).damaged) == 2


def test_static_tensors_have_a_tag(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "c")
    assert store.static("v1") is None
    store.keep_static("v1", {"w": torch.ones(2)})
    store.keep_static("v2", {"w": torch.zeros(2)})
    assert store.static("v1") is None
    found = store.static("v2")
    assert found is not None
    assert found["w"].tolist() == [0.0, 0.0]
    (tmp_path / "c" / "static" / "v2.safetensors").write_bytes(b"short")
    assert store.static("v2") is None
