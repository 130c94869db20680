import pytest

from lissome.report.rows import cell, grid, plain
from lissome.report.table import markdown, pairs, results, terminal, verdict_lines
from tests.report import samples


def _figure(ratio, low=None, high=None, better="lower"):
    return {"value": 1.0, "better": better, "ratio": ratio, "ratio_low": low, "ratio_high": high}


@pytest.mark.parametrize(
    ("figure", "trend"),
    [
        (_figure(0.8), "better"),
        (_figure(1.2), "worse"),
        (_figure(1.2, better="higher"), "better"),
        (_figure(0.8, better="higher"), "worse"),
        (_figure(0.97, 0.9, 1.05), "same"),
        (_figure(0.97, 0.95, 0.99), "better"),
        (_figure(1.0), "same"),
        ({"value": 1.0}, ""),
    ],
)
def test_better_is_said_only_when_the_interval_allows(figure, trend):
    assert cell(figure).trend == trend


def test_the_grid_keeps_the_known_order_and_appends_tasks():
    rows = [{"name": "a", "piqa": {"value": 0.6}, "ppl": {"value": 2.0}, "params": {"value": 5, "unit": "count"}}]
    assert [line.name for line in grid(rows).lines] == ["params", "ppl", "piqa"]


def test_a_figure_that_one_model_lacks_is_a_gap():
    (line,) = [line for line in grid(samples.rows()).lines if line.name == "kl"]
    assert line.cells[0] is None
    assert line.cells[1].interval == "0.28 nats – 0.34 nats"


def test_control_characters_of_a_name_do_not_reach_the_terminal(capsys):
    rows = samples.rows(name=samples.HOSTILE)
    import sys

    terminal(sys.stdout).print(results(rows, title=samples.HOSTILE))
    terminal(sys.stdout).print(pairs({samples.HOSTILE: samples.HOSTILE}))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "</script>" in "".join(out.split())  # shown as it is, not read as markup
    assert plain("a\x1bb\n") == "a�b�"


def test_the_table_says_ratio_interval_direction_and_origin(capsys):
    import sys

    terminal(sys.stdout).print(results(samples.rows()))
    out = capsys.readouterr().out
    for text in ("83.2 % [81.0 – 85.0]", "✓", "measured, n=15", "counted", "↑", "↓"):
        assert text in out


def test_markdown_has_one_line_a_metric_and_escapes_names():
    text = markdown(samples.rows(name="a|b<i>`x`"))
    lines = text.splitlines()
    assert len(lines) == 2 + 6
    assert "a\\|b&lt;i\\>\\`x\\`" in lines[0]
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}


def test_verdicts_name_the_bound_and_the_figure():
    met, missed = verdict_lines([*samples.VERDICTS, {**samples.VERDICTS[0], "ok": False}])
    assert met.plain == "✓ met  latency<=85%: 1.09 s against 1.11 s"
    assert missed.plain.startswith("✗ not met")
