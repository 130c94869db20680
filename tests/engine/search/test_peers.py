"""A study in optuna-dashboard itself, and in a PostgreSQL server that is started for the test."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from lissome.core.errors import ArtifactError
from lissome.engine.search import SearchConfig, search
from lissome.engine.search.database import Database
from tests.engine.search.landscapes import problem
from tests.engine.search.workers import check_a_killed_worker

pytestmark = pytest.mark.peer


class Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_the_dashboard_shows_the_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    plain = problem(4, bound=0.5)
    found = search(plain, SearchConfig(trials=14), study=tmp_path / "study.db")
    server = make_server("127.0.0.1", 0, dashboard.wsgi(f"sqlite:///{tmp_path / 'study.db'}"), handler_class=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:

        def ask(path: str) -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{path}", timeout=30) as reply:
                return json.load(reply)

        (study,) = ask("api/studies")["study_summaries"]
        assert study["study_name"] == "search"
        detail = ask(f"api/studies/{study['study_id']}?after=0")
    finally:
        server.shutdown()
        server.server_close()
    assert detail["directions"] == ["minimize", "minimize"]
    assert len(detail["trials"]) == 14
    for trial, point in zip(detail["trials"], found.points, strict=True):
        assert trial["state"] == "Complete"
        assert trial["values"] == [point.figures["loss"], point.figures["macs"]]
        shown = {each["key"]: each["value"] for each in trial["user_attrs"]}
        assert float(shown["macs"]) == point.figures["macs"]
        assert {each["name"] for each in trial["params"]} == {axis.name for axis in plain.space.axes}
        assert trial["constraints"] == [pytest.approx(point.figures["macs"] / 0.5 - 1)]


def program(name: str) -> str:
    """A program of the server; Debian keeps them off the path."""
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    return found or pytest.skip("PostgreSQL is not installed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(
        subprocess.run(["mktemp", "-d", "/tmp/pgXXXXXX"], capture_output=True, text=True, check=True).stdout.strip()
    )
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(
            command,
            check=True,
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )

    data, options = str(folder / "data"), f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run(initdb, "-D", data, "-A", "trust", "-U", "me")
    run(pg_ctl, "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        yield f"postgresql+psycopg://me:secret@127.0.0.1:{port}/postgres"
    finally:
        run(pg_ctl, "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_a_server_holds_many_studies_and_loses_no_trial(server: str) -> None:
    plain, config = problem(4), SearchConfig(trials=12, heartbeat=1)
    found = search(plain, config, study=server)
    assert search(plain, config, study=server) == found
    other = search(plain, config, seed=1, study=server)
    assert [point.choices for point in other.points] != [point.choices for point in found.points]

    dead = Database(server, plain.space, plain.goal, {}, name="other", heartbeat=1)
    dead.add(plain.space.full, "start", {})
    taken = dead.claim()
    assert taken is not None
    dead.close()
    time.sleep(5.5)
    living = Database(server, plain.space, plain.goal, {}, name="other", heartbeat=1)
    again = living.claim()
    assert again is not None and again.subnet == taken.subnet
    living.finish(again, plain.evaluate(again.subnet), 0.0)
    assert [trial.state for trial in living.trials()] == ["done"]
    living.close()


def test_a_worker_on_a_server_that_is_killed_loses_no_trial(server: str, tmp_path: Path) -> None:
    check_a_killed_worker(tmp_path, server)


def test_a_server_that_is_not_there_does_not_tell_the_password(server: str) -> None:
    plain = problem(3)
    with pytest.raises(ArtifactError) as error:
        search(plain, SearchConfig(trials=3), study="postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
