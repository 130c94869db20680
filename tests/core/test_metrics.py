"""Metrics as JSON: nothing known is lost, nothing unknown is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.core.errors import ArtifactError
from lissome.core.metrics import Metric

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Metric,
        name=st.text(),
        value=FINITE,
        unit=st.text(),
        better=st.sampled_from(["lower", "higher"]),
        se=st.none() | FINITE,
        low=st.none() | FINITE,
        n=st.none() | st.integers(),
        provenance=st.sampled_from(["counted", "measured", "simulated", "predicted"]),
    )
)
def test_there_and_back_through_text(metric: Metric) -> None:
    assert Metric.from_json(json.loads(json.dumps(metric.to_json()))) == metric


def test_what_is_unknown_is_left_out() -> None:
    assert set(Metric(name="ppl", value=3.0).to_json()) == {"name", "value", "unit", "better", "provenance"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": 1.0}, "lacks 'name'"),
        ({"name": "ppl", "value": "1"}, r"metric\.value must be a finite number"),
        ({"name": "ppl", "value": True}, r"metric\.value must be a finite number"),
        ({"name": "ppl", "value": float("nan")}, "finite"),
        ({"name": "ppl", "value": 1, "n": 2.0}, "whole number"),
        ({"name": "ppl", "value": 1, "better": "bigger"}, "one of lower, higher"),
        ({"name": "ppl", "value": 1, "beter": "lower"}, "did you mean 'better'"),
        ([], "must be an object"),
    ],
)
def test_strict(fields: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Metric.from_json(fields)
