"""What whoever runs a federation is told: how to go on with one that was stopped, and what stands in the way."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lissome.cli.main import main
from lissome.pipeline.federating import federate
from tests.engine.federate.fleet import killed_at
from tests.pipeline.federated import RECIPE, make_place

pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that is refused."""
    assert main([str(word) for word in words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("arm", ["federated", "centralised", "local", "zero-shot"])
def test_an_unfinished_federation_names_the_command_that_continues_it(
    arm: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "recipe.toml").write_text(RECIPE.replace("seed = 3", f'seed = 3\narm = "{arm}"'))
    out = place / "out of it"
    with killed_at(1, recorded=True):
        federate(place / "recipe.toml", out=out)
    capsys.readouterr()
    command = f"lissome federate {shlex.quote(f'{out}/.run/recipe.toml')} --out {shlex.quote(str(out))}"
    asked = (
        ("report", out), ("federate", "membership", out), ("extract", out, "--out", place / "small"),
        ("federate", "export", out, "--client", "client-0", "--out", place / "mine"),
    )  # fmt: skip
    for words in asked:
        assert said(capsys, *words).endswith(f"not finished; continue it with: {command}")
    assert main(shlex.split(command)[1:]) == 0
    assert (out / "report.html").is_file()


def test_a_server_that_was_stopped_is_a_server_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = place / "out" / ".run"
    (state / "app").mkdir(parents=True)
    (state / "recipe.toml").write_text(RECIPE)
    line = said(capsys, "report", place / "out")
    assert f"lissome federate server {state}/recipe.toml --out {place / 'out'} (and its --credentials" in line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", "each class dealt out by itself, test = 0.2 leaves none for the server; give more rows, or set test = 0"),
        ("test = 0.5", ""),
        ("test = 0.9", "test = 0.9 leaves none for the clients; give more rows, or set test = 0.5 in [data]."),
        ("most = 1", "most = 1 draws none of them; set most = 2 or more in [data]."),
        ('learn = "tokens"\nmost = 1', "has 4 documents, of which most = 1 draws 1: test = 0.2 keeps all for the"),
    ],
)  # fmt: skip
def test_whom_too_few_rows_leave_without_any(
    settings: str, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"{word} {label}", "label": label} for label in "ab" for word in ("fox", "hen")]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = RECIPE.replace("length = 16", settings or "length = 16").replace(
        "clients = 4", 'scheme = "iid"\nclients = 1'
    )
    (place / "recipe.toml").write_text(recipe)
    command = ["federate", str(place / "recipe.toml"), "--dry-run"]
    if words:
        assert words in said(capsys, *command)
    else:
        assert main(command) == 0


def test_why_nobody_joined_is_said_with_where_it_stands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lissome.pipeline.federation.FederationJob.worker", refuse)
        line = said(capsys, "federate", place / "recipe.toml", "--out", place / "out")
    audit = place / "out" / ".run" / "server" / "audit.jsonl"
    assert f"0 of 4 clients joined within 300 s; mend why others were refused (see {audit}), or lower" in line
    assert "the disk is gone" in audit.read_text()
