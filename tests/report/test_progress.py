import io
import math
import re

import pytest

from lissome.core.errors import ConfigError
from lissome.core.events import Event, EventStream
from lissome.report.progress import PlainLines, progress


class Screen(io.StringIO):
    def isatty(self):
        return True


def _advance(step, seconds, **more):
    return Event(kind="advance", stage="prune", step=step, total=10, time=100.0 + seconds, **more)


def test_plain_lines_are_few_and_say_the_time_left():
    out = io.StringIO()
    listener = PlainLines(out, interval=10)
    listener(Event(kind="start", stage="prune", step=2, total=10, time=100.0))
    for step in range(3, 8):
        listener(_advance(step, 4.0 * (step - 2), metrics={"ppl": 30.0 + step}, message="cut"))
    listener(Event(kind="finish", stage="prune", step=10, total=10, time=132.0))
    assert out.getvalue().splitlines() == [
        "prune: 2/10",
        "prune: 5/10, cut, 20 s left (ppl 35)",  # 3 steps in 12 s, and 5 to go: the steps done before do not count
        "prune: done in 32 s",
    ]


def test_a_stage_without_a_known_end_and_odd_numbers():
    out = io.StringIO()
    listener = PlainLines(out, interval=0)
    listener(Event(kind="start", stage="read", time=1.0))
    listener(Event(kind="advance", stage="read", step=3, time=2.0, metrics={"loss": math.nan}))
    assert out.getvalue().splitlines() == ["read", "read: 3 (loss n/a)"]


@pytest.mark.parametrize("mode", ["plain", "off", "bar"])
def test_a_stage_that_an_error_ended_can_be_opened_again(mode):
    with progress(Screen(), mode) as listener:
        stream = EventStream(listener)
        for _ in range(2):
            with pytest.raises(ValueError, match="does not go back"), stream.stage("prune", 3) as stage:
                stage.advance(-1)
        with stream.stage("prune", 3) as stage:
            stage.advance(3)


def test_a_terminal_gets_a_bar_that_leaves_one_line_behind(monkeypatch):
    monkeypatch.delenv("LISSOME_PROGRESS", raising=False)
    screen = Screen()
    with progress(screen) as listener:
        stream = EventStream(listener)
        with stream.stage("[red]prune", 4) as stage:
            stage.advance(2, message="layers.[3]")
        stream.message("a [bold]note")
    assert "✓ [red]prune in" in screen.getvalue()  # a stage's name is text, not markup
    assert "a [bold]note" in screen.getvalue()


def _after_fourteen_rounds(mode):
    """What is on the screen, without colours."""
    screen = Screen()
    with progress(screen, mode) as listener:
        listener(Event(kind="start", stage="federate", total=20, time=100.0))
        for step in range(1, 15):
            said, metrics = f"{step} of 99 clients, 0.5 MB", {"server/accuracy": step / 100}
            told = {"stage": "federate", "step": step, "total": 20, "message": said, "metrics": metrics}
            listener(Event(kind="advance", time=100.0 + step * (step + 1), **told))
        listener(Event(kind="finish", stage="federate", step=14, total=20, time=400.0))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_rounds_of_a_federation_stand_in_a_table_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    table = _after_fourteen_rounds("bar")
    rows = [line.split() for line in table[table.rindex("round ") :].splitlines()]
    assert rows[0] == ["round", "clients", "time", "server/accuracy"]
    assert rows[2] == ["3/20", "3", "of", "99", "clients,", "0.5", "MB", "6.0", "s", "0.03"], "twelve are shown"
    assert rows[13] == ["14/20", "14", "of", "99", "clients,", "0.5", "MB", "28", "s", "0.14"]
    plain = _after_fourteen_rounds("plain").splitlines()
    assert plain[0] == "federate"
    assert all(line.startswith("federate: ") for line in plain[1:]), "lines of the stage, as of any other"


def test_other_output_gets_plain_lines_and_the_environment_decides(monkeypatch):
    monkeypatch.delenv("LISSOME_PROGRESS", raising=False)
    out = io.StringIO()
    with progress(out) as listener:
        EventStream(listener).message("hello", ppl=2.5)
    assert out.getvalue() == "hello (ppl 2.5)\n"
    monkeypatch.setenv("LISSOME_PROGRESS", "off")
    with progress(out) as listener:
        EventStream(listener).message("again")
    assert out.getvalue() == "hello (ppl 2.5)\n"
    monkeypatch.setenv("LISSOME_PROGRESS", "plan")
    with pytest.raises(ConfigError, match="did you mean 'plain'"), progress(out):
        pass
