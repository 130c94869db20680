import pytest

from lissome.report.rows import cell, grids, plain
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
    assert [line.name for line in grids(rows)[0].lines] == ["params", "ppl", "piqa"]


def test_a_figure_that_one_model_lacks_is_a_gap():
    (line,) = [line for line in grids(samples.rows())[0].lines if line.name == "kl"]
    assert line.cells[0] is None
    assert line.cells[1].interval == "0.28 – 0.34"


def test_units_of_an_interval_are_said_once_unless_they_differ():
    assert cell({"value": 1.31, "unit": "s", "low": 1.28, "high": 1.35}).interval == "1.28 – 1.35"
    assert cell({"value": 1.01, "unit": "s", "low": 0.99, "high": 1.03}).interval == "990 ms – 1.03 s"
    assert cell({"value": 29.0, "low": 27.5, "high": 30.5}).interval == "27.5 – 30.5"


def test_files_in_llama_cpp_have_a_table_of_their_own():
    rows = [*samples.rows(), {"name": "llama.cpp: a.gguf", "disk": {"value": 9.0, "unit": "bytes"}}]
    main, other = grids(rows)
    assert main == grids(samples.rows())[0]
    assert (other.title, other.models) == ("In llama.cpp", ("a.gguf",))
    assert "| In llama.cpp | a.gguf |" in markdown(rows)


def test_control_characters_of_a_name_do_not_reach_the_terminal(capsys):
    rows = samples.rows(name=samples.HOSTILE)
    import sys

    terminal(sys.stdout).print(*results(rows))
    terminal(sys.stdout).print(pairs({samples.HOSTILE: samples.HOSTILE}))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "</script>" in "".join(out.split())  # shown as it is, not read as markup
    assert plain("a\x1bb\n") == "a�b�"


def test_the_table_says_ratio_interval_direction_and_origin(capsys):
    import sys

    terminal(sys.stdout).print(*results(samples.rows()))
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
