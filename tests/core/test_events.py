"""The event stream: order, continued stages, and a log that a kill cannot spoil."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from lissome.core.events import Event, EventStream, Followed, JsonLines


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


def test_events_of_another_process_are_handed_on_line_by_line(tmp_path: Path) -> None:
    file, seen = tmp_path / "run" / "events.jsonl", list[Event]()
    stream = EventStream(seen.append)
    with JsonLines(tmp_path / "old.jsonl") as lines:
        EventStream(lines).message("before")
    Followed(tmp_path / "old.jsonl").hand_on(stream)
    assert not seen, "what stood there already belongs to a former run"
    followed = Followed(file)
    followed.hand_on(stream)
    with JsonLines(file) as lines:
        source = EventStream(lines)
        with source.stage("federate", 2) as stage:
            stage.advance(message="two of two", loss=0.5, odd=math.nan)
            followed.hand_on(stream)
            assert [one.kind for one in seen] == ["start", "advance"]
            with file.open("a") as half:
                half.write('{"kind": "mess')
            followed.hand_on(stream)
            assert len(seen) == 2, "half a line waits"
    with JsonLines(file) as lines:
        EventStream(lines).message("after a kill")
    followed.hand_on(stream)
    assert seen[-1].message == "after a kill"
    assert seen[1].message == "two of two"
    assert seen[1].metrics == {"loss": 0.5}
