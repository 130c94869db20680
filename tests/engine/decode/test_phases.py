"""Schedules are read strictly, never rise, and are a function of the position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ArtifactError, ConfigError
from lissome.engine.decode.phases import NAME, Phases, read_schedule


@pytest.mark.parametrize(
    ("text", "phases"),
    [
        ("4", Phases(4, ((4, None),))),
        ("4:64,3", Phases(4, ((4, 64), (3, None)))),
        ("6/4:64, 3", Phases(6, ((4, 64), (3, None)))),
        ("8/8:2,6:0,4", Phases(8, ((8, 2), (6, 0), (4, None)))),
    ],
)
def test_reading(text: str, phases: Phases) -> None:
    assert Phases.parse(text) == phases
    assert Phases.parse(str(phases)) == phases


@pytest.mark.parametrize(
    "text",
    ["", "x", "4:", "4:64", "3:64,4", "3/4", "4,3", "4:64,3:2", "4:-1,3", "/4", "4/", "4//3", "4:64;3", "²",
     "4:1e3,3"],
)  # fmt: skip
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ConfigError, match="write 4"):
        Phases.parse(text)


def test_weights_must_have_the_bits() -> None:
    assert Phases.parse("4:9,3").require((3, 4)).prefill == 4
    with pytest.raises(ConfigError, match="reads 3 bits, but the weights are read at 4, 6"):
        Phases.parse("4:9,3").require((4, 6))


@given(
    bits=st.lists(st.integers(2, 8), min_size=1, max_size=4),
    counts=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    prompt=st.integers(1, 9),
)
def test_bits_never_rise(bits: list[int], counts: list[int], prompt: int) -> None:
    falling = sorted(bits, reverse=True)
    phases = Phases(falling[0], (*zip(falling[:-1], counts, strict=False), (falling[-1], None)))
    assert Phases.parse(str(phases)) == phases
    schedule = phases.after(prompt)
    found = [schedule(at) for at in range(prompt + 30)]
    assert found == sorted(found, reverse=True)
    assert found[:prompt] == [falling[0]] * prompt
    assert phases.average(20) == pytest.approx(sum(found[prompt : prompt + 20]) / 20)
    assert phases.average(0) == falling[0]


def test_beside_weights(tmp_path: Path) -> None:
    assert read_schedule(tmp_path) is None
    (tmp_path / NAME).write_text(json.dumps({"schedule": "4:9,3", "tokens": 5}))
    assert read_schedule(tmp_path) == "4:9,3"
    for wrong in ("{}", "[]", '{"schedule": 4}', "{"):
        (tmp_path / NAME).write_text(wrong)
        with pytest.raises(ArtifactError):
            read_schedule(tmp_path)
