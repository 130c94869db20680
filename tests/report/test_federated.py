"""What `--dry-run` shows: who gets which sub-network, summed up over layers."""

from __future__ import annotations

import io
from typing import Any

from lissome.report.federated import chosen, plan, result
from lissome.report.table import terminal


def client(name: str, **subnet: int) -> dict[str, Any]:
    axes = {key.replace("_", "."): value for key, value in subnet.items()}
    figures = {"params": 100.0} if subnet else {}
    return {
        "name": name, "kind": "phone", "budget": "", "examples": 3, "down": 10, "up": 5, "memory": 7.0,
        "figures": figures, "subnet": axes,
    }  # fmt: skip


def shown(*clients: dict[str, Any]) -> str:
    out = io.StringIO()
    fields = {"clients": clients, "payload": 1, "message": 2, "server_memory": 3.0, "federation": "f"}
    for one in plan(fields):
        terminal(out).print(one)
    return out.getvalue()


def test_choices_are_summed_up_over_layers() -> None:
    subnet = {"layers.0.mlp.width": 768, "layers.11.mlp.width": 768, "layers.0.attention": 0, "2.mlp.width": 384}
    assert chosen(subnet) == "layers.mlp.width 768 ×2, layers.attention 0, mlp.width 384"
    assert chosen({}) == ""


def test_every_sub_network_stands_once_with_its_clients() -> None:
    small = {"l_0_mlp_width": 8, "l_1_mlp_width": 8}
    text = shown(client("a"), *(client(f"b{at}", **small) for at in range(8)))
    assert "the whole model" in text
    assert text.count("l.mlp.width 8 ×2") == 1
    assert "2 more" in text
    assert "Who gets which" not in shown(client("a"), client("b")), "all get the whole model"


def told(metrics: dict[str, float], scores: dict[str, dict[str, float]]) -> str:
    """What is shown of a federation of one round."""
    one = {
        "number": 1, "clients": ["a"], "answered": 1, "ok": True, "seconds": 1.0, "metrics": metrics, "scores": scores
    }  # fmt: skip
    fields = {
        "rounds": [one], "bytes": {"message_down": 1, "message_up": 1}, "subnets": {}, "audit": {}, "out": "o",
        "seconds": 1.0,
    }  # fmt: skip
    out = io.StringIO()
    for part in result(fields):
        terminal(out).print(part)
    return out.getvalue()


def test_a_series_of_numbers_does_not_fill_the_table() -> None:
    series = {f"score/loss-{index}": 0.5 for index in range(20)}
    text = told({"server/loss": 0.4, **series}, {"a": {f"slice-{index}/loss": 0.5 for index in range(20)}})
    assert "server/loss" in text
    assert "loss-1" not in text
    assert "slice-1" not in text
    assert "20, in result.json" in text
    few = told({"server/loss": 0.4, "score/loss-0": 0.5}, {})
    assert "score/loss-0" in few
    assert "in result.json" not in few


def test_clients_without_scores_have_no_table() -> None:
    assert "Clients after" not in told({"server/loss": 0.4}, {"a": {}})
    assert "Clients after" in told({"server/loss": 0.4}, {"a": {"loss": 0.5}})
