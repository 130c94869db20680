"""What whoever runs a federation is told: how to go on with one that was stopped, and what stands in the way."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from lissome.cli.main import main
from lissome.pipeline.federating import federate
from lissome.pipeline.federation import FederationRecipe
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
    assert "continues after round 1 of " in capsys.readouterr().err
    assert (out / "report.html").is_file()


def test_a_damaged_private_state_is_told_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "recipe.toml").write_text(RECIPE + "moments = true\n")
    out = place / "out"
    with killed_at(1, recorded=True):
        federate(place / "recipe.toml", out=out)
    kept = sorted((out / ".run" / "clients" / "client-1").glob("*/tensors.safetensors"))[-1]
    kept.write_bytes(kept.read_bytes()[:-9])
    assert main(["federate", str(place / "recipe.toml"), "--out", str(out)]) == 0
    assert "client-1 reverted in round 2: what it kept last is damaged" in capsys.readouterr().err
    (line,) = map(json.loads, (out / "audit.jsonl").read_text().splitlines())
    assert (line["event"], line["client"], line["round"]) == ("reverted", "client-1", 2)
    assert json.loads((out / "result.json").read_text())["audit"] == {"reverted": 1}


def test_a_damaged_job_says_how_to_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = place / "out" / ".run"
    state.mkdir(parents=True)
    (state / "job.json").write_text("{")
    line = said(capsys, "federate", place / "recipe.toml", "--out", place / "out")
    assert line.endswith(f"choose another --out, or delete {state} to begin anew.")


def test_bounds_with_no_size_between_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = "block_params<=50%,block_params>=49.99%"
    (place / "recipe.toml").write_text(RECIPE.replace("block_params<=50%", budget))
    assert main(["federate", str(place / "recipe.toml"), "--dry-run"]) == 3
    line = capsys.readouterr().err.strip()
    assert line.count("block_params ") == 1 and line.endswith("widen or drop one.")


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("clients = 4", 'clients = "4"'), "recipe.toml: [partition]: the setting 'clients' must be a whole number"),
        (("rounds = 2", "round = 2"), "recipe.toml: [federation]: unknown setting 'round'; did you mean 'rounds'?"),
        (("block_params<=50%", "block_param<=50%"), "recipe.toml: [[device]] 2: unknown budget term 'block_param'"),
        (('method = "fedavg"', 'method = "multipruner"'), "recipe.toml: multipruner does not train across clients"),
        (("seed = 3", "seed = "), "recipe.toml: not valid TOML: "),
        (('source = "rows.jsonl"', ""), 'classes are learned from data; write data = "FILE"'),
        (("seed = 3", "# \xe4\xff"), "save the file as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_with_its_place(
    change: tuple[str, str], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "recipe.toml").write_bytes(RECIPE.replace(*change).encode("latin-1"))
    assert words in said(capsys, "federate", place / "recipe.toml", "--dry-run")


def test_a_recipe_may_begin_with_the_mark_that_editors_leave(place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE, encoding="utf-8-sig")
    assert FederationRecipe.read(place / "recipe.toml").seed == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("{recipe}", "--set", "lr=1"), "--set means nothing to: lissome federate RECIPE. It is for join; settings of"),
        (("{recipe}", "--port", "8443"), "--port means nothing to: .* It is for server, RECIPE --backend deployment"),
        (("{recipe}", "--client", "a"), "It is for credentials, export"),
        (
            ("server", "{recipe}", "--backend", "ray"),
            "--backend means nothing to: lissome federate server. It is for RECIPE",
        ),
        (("membership", "{out}", "--out", "{out}"), "--out means nothing to: lissome federate membership"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    words: tuple[str, ...], line: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(recipe=place / "recipe.toml", out=place / "out") for word in words]
    assert re.search(line, said(capsys, "federate", *given))
    assert not (place / "out").exists()


def test_another_job_is_told_by_the_setting_that_differs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with killed_at(1):
        federate(place / "recipe.toml", out=place / "out")
    capsys.readouterr()
    for one, other, words in (
        ("lr = 0.01", "lr = 0.02", "recipe.step.lr is 0.01 there, 0.02 here"),
        ("<=50%", "<=60%", 'recipe.device.2.budget is "block_params<=50%" there, "block_params<=60%" here'),
        ("rounds = 2", "rounds = 3", "recipe.federation.rounds is 2 there, 3 here"),
    ):
        (place / "recipe.toml").write_text(RECIPE.replace(one, other))
        line = said(capsys, "federate", place / "recipe.toml", "--out", place / "out")
        assert f"holds another job: {words}; choose another --out" in line
    (place / "recipe.toml").write_text(RECIPE)
    (place / "rows.jsonl").write_text((place / "rows.jsonl").read_text() + '\n{"text": "new", "label": "tools"}')
    assert "holds another job: data is " in said(capsys, "federate", place / "recipe.toml", "--out", place / "out")
    (place / "out" / ".run" / "job.json").write_text("[1]")
    assert "holds another job: it is [1] there" in said(
        capsys, "federate", place / "recipe.toml", "--out", place / "out"
    )


@pytest.mark.parametrize("content", [None, "{}", "[]"])
def test_a_result_that_does_not_say_of_what_is_no_other_job(
    content: str | None, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federate(place / "recipe.toml", out=place / "out")
    (place / "out" / "result.json").unlink()
    if content is not None:
        (place / "out" / "result.json").write_text(content)
    line = said(capsys, "federate", place / "recipe.toml", "--out", place / "out")
    assert "out holds an artifact, but no result.json that says of which job; choose another --out" in line


def test_folders_of_other_things_are_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((place / "model").iterdir())
    line = said(capsys, "federate", "parts", place / "recipe.toml", "--out", place / "model")
    assert "model exists and holds no parts of an earlier call" in line
    line = said(capsys, "federate", "credentials", place / "rows.jsonl", "--client", "a")
    assert "rows.jsonl is a file; name a folder" in line
    for words in (("membership", place / "model"), ("export", place / "model", "--client", "a", "--out", place / "x")):
        assert "model is not the result of a federation; give a folder that" in said(capsys, "federate", *words)
    assert sorted((place / "model").iterdir()) == before
    for _ in range(2):
        assert main(["federate", "parts", str(place / "recipe.toml"), "--out", str(place / "parts")]) == 0
