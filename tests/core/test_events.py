"""The event stream: order, continued stages, and a log that a kill cannot spoil."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lissome.core.events import Event, EventStream, JsonLines


def test_every_listener_hears_everything_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    stream = EventStream(first.append)
    stream.listen(second.append)
    with stream.stage("prune", 10, done=4) as stage:
        stage.advance(ppl=31)
        stage.advance(0, message="still here")
        stream.message("aside", share=1)
        stage.advance(5)
    assert first == second
    assert [(event.kind, event.step) for event in first] == [
        ("start", 4),
        ("advance", 5),
        ("advance", 5),
        ("message", 0),
        ("advance", 10),
        ("finish", 10),
    ]
    assert {event.total for event in first if event.stage} == {10}
    assert first[1].metrics == {"ppl": 31.0}
    assert [event.time for event in first] == sorted(event.time for event in first)


def test_a_stage_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"), EventStream().stage("x") as stage:
        stage.advance(-1)


def test_a_failed_stage_has_no_finish() -> None:
    heard: list[Event] = []
    with pytest.raises(RuntimeError), EventStream(heard.append).stage("x"):
        raise RuntimeError
    assert [event.kind for event in heard] == ["start"]


def test_json_lines_are_json_even_of_nan(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    with JsonLines(path) as log:
        log(Event(kind="message", message="line\nbreak", metrics={"loss": float("nan"), "rate": 0.5}))
    (line,) = path.read_text().splitlines()
    fields = json.loads(line, parse_constant=pytest.fail)
    assert fields["metrics"] == {"loss": None, "rate": 0.5}
    assert fields["message"] == "line\nbreak"


def test_half_a_line_of_a_killed_run_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for message in ("one", "two"):
        with JsonLines(path) as log:
            log(Event(kind="message", message=message))
        if message == "one":
            path.write_text(path.read_text() + '{"kind": "mess')
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["message"] == "one"
    assert json.loads(lines[2])["message"] == "two"
    assert len(lines) == 3


def test_a_borrowed_stream_stays_open() -> None:
    stream = io.StringIO()
    with JsonLines(stream) as log:
        log(Event(kind="message", message="x"))
    assert not stream.closed
