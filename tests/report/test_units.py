import math

import pytest

from lissome.report.units import duration, number, percent, quantity


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (134_515_008, "count", "135 M"),
        (98_362_432, "bytes", "98.4 MB"),
        (999, "bytes", "999 B"),
        (1.2345, "s", "1.23 s"),
        (0.0123, "s", "12.3 ms"),
        (0, "s", "0 s"),
        (400, "s", "6 min 40 s"),
        (34.2345, "tokens/s", "34.23 tokens/s"),
        (29.0, "", "29"),
        (-0.5, "nats", "-0.5 nats"),
        (math.nan, "bytes", "n/a"),
    ],
)
def test_quantities_read_well(value, unit, expected):
    assert quantity(value, unit) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.00012, "0.00012"), (1234567, "1,234,567"), (math.inf, "n/a")])
def test_numbers_have_no_exponent(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-1, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (45, "45 s")]
)
def test_durations_have_two_units_at_most(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize(("ratio", "expected"), [(0.8321, "83.2 %"), (12.3, "1,230 %"), (math.nan, "n/a")])
def test_percent(ratio, expected):
    assert percent(ratio) == expected
