"""The check for membership: its figure against pairs one by one, and on models that tell and that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lissome.cli.main import main
from lissome.core.errors import DataError
from lissome.pipeline.federating import federate
from lissome.pipeline.membership import area, membership, standard_error
from tests.cli.test_commands import documented
from tests.pipeline.federated import RECIPE, make_place

_BY_HEART = RECIPE.replace("epochs = 2", "epochs = 40").replace("clients = 4", "clients = 2").replace("<=50%", "<=100%")
_LOSSES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(_LOSSES, _LOSSES)
def test_the_figure_counts_pairs(members: list[float], others: list[float]) -> None:
    pairs = [(one < other) + 0.5 * (one == other) for one in members for other in others]
    found = area(members, others)
    assert found == pytest.approx(sum(pairs) / len(pairs))
    assert area(others, members) == pytest.approx(1 - found)
    assert standard_error(found, len(members), len(others)) <= 0.5


def test_its_error_is_what_repeated_draws_show() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [area(torch.randn(40, generator=generator) - 0.5, torch.randn(60, generator=generator)) for _ in range(300)]
    mean = sum(drawn) / len(drawn)
    spread = (sum((one - mean) ** 2 for one in drawn) / len(drawn)) ** 0.5
    assert standard_error(mean, 40, 60) == pytest.approx(spread, rel=0.2)


@pytest.mark.long
def test_what_was_learned_by_heart_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")
    place = make_place(tmp_path)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):  # labels that say nothing can only be learned by heart
        row["label"] = ("animals", "colours", "tools")[hash_of(index) % 3]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "recipe.toml").write_text(_BY_HEART)
    federate(place / "recipe.toml", out=place / "heart")
    told = membership(place / "heart")
    assert told.auc > 0.6
    assert told.members > told.others > 10
    assert set(told.clients) == {f"client-{index}" for index in range(2)}
    (place / "recipe.toml").write_text(RECIPE.replace("lr = 0.01", "lr = 0.0"))
    federate(place / "recipe.toml", out=place / "nothing")
    assert main(["federate", "membership", str(place / "nothing"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == documented("federate", "key of a check")
    assert abs(found["auc"] - 0.5) < 4 * found["se"], "who learned nothing tells nothing"
    assert main(["federate", "membership", str(place / "heart")]) == 0
    assert "50 % is guessing" in capsys.readouterr().out
    assert main(["federate", "membership", str(place / "model")]) == 2
    assert main(["federate", "membership"]) == 2


def test_other_data_than_it_was_trained_on_tell_nothing(tmp_path: Path) -> None:
    pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")
    place = make_place(tmp_path)
    (place / "recipe.toml").write_text(RECIPE.replace("epochs = 2", "steps = 1").replace("rounds = 2", "rounds = 1"))
    federate(place / "recipe.toml", out=place / "out")
    rows = (place / "rows.jsonl").read_text().splitlines()
    (place / "rows.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(DataError, match=r"is not what .* was trained on"):
        membership(place / "out")


def hash_of(index: int) -> int:
    return (index * 2654435761) >> 7
