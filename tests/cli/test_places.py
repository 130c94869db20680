"""Where commands write: refused in one line before any work where they cannot, or where something else stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lissome.models.gguf.header import read_header
from tests.export.toys import model_of
from tests.report import samples

COMMANDS = {
    "fit": ("fit", "{model}", "--budget", "params=50%", "--out", "{place}"),
    "export gguf": ("export", "{model}", "--to", "gguf", "--out", "{place}/x.gguf"),
    "export hf": ("export", "{model}", "--to", "hf", "--out", "{place}"),
    "extract": ("explain", "{artifact}", "--extract", "2", "--out", "{place}"),
    "report": ("report", "{artifact}", "--out", "{place}/p.html"),
    "table": ("bench", "{model}", "--save-table", "{place}/t.json"),
    "events": ("--events", "{place}/e.jsonl", "generate", "{model}", "--prompt", "a"),
    "tensorboard": ("--tensorboard", "{place}/t", "generate", "{model}", "--prompt", "a"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    toy = model_of("llama", tokenizer=True, max_position_embeddings=1024)
    return replace(toy, manifest=None).save(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture
def artifact(tmp_path):
    return samples.artifact(tmp_path / "made")


def refused(result, words=""):
    assert result.code == 2, result.err
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["/proc/xx", "file/b", "file", "n" * 300])
def test_a_place_that_cannot_be_written(run, artifact, tmp_path, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    command = COMMANDS[name]
    # The model does not exist: had there been any work, this would have been said.
    words = [word.format(model="none.gguf", artifact=artifact, place=place) for word in command]
    refused(run(*words), place[:30])
    assert (tmp_path / "file").read_text() == "mine"


def test_other_files_are_not_written_over(run, artifact, model, tmp_path):
    mine = tmp_path / "mine.gguf"
    mine.write_text("my only copy\n")
    for words in (
        ("report", str(artifact), "--out", str(mine)),
        ("export", str(model), "--to", "gguf", "--out", str(mine)),
        ("bench", str(model), "--save-table", str(mine)),
        ("--events", str(mine), "generate", str(model), "--prompt", "a"),
        ("explain", str(artifact), "--extract", "1", "--out", str(mine)),
    ):
        refused(run(*words), str(mine))
        assert mine.read_text() == "my only copy\n"


def test_what_is_ours_is_written_again(run, artifact, model, tmp_path):
    for name in ("p.html", "p.md"):
        (tmp_path / name).touch()
        for _ in range(2):
            assert run("report", str(artifact), "--out", str(tmp_path / name)).code == 0
        assert (tmp_path / name).stat().st_size
    for _ in range(2):
        assert run("export", str(model), "--to", "gguf", "--out", str(tmp_path / "x.gguf")).code == 0
        assert run("export", str(model), "--to", "hf", "--out", str(tmp_path / "hf")).code == 0


def test_a_model_is_not_exported_over_itself(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.gguf"
    assert run("export", str(model), "--to", "gguf", "--type", "F32", "--out", str(file)).code == 0
    refused(run("export", str(file), "--to", "gguf", "--type", "Q4_0", "--out", str(file)), "is the model")
    assert "lissome.version" in read_header(file).metadata
    refused(run("export", str(model), "--to", "hf", "--out", str(model)), "is the model")


def test_a_step_is_not_written_over_its_curve(run, artifact, model):
    refused(run("explain", str(artifact), "--extract", "1", "--out", str(artifact)), "the artifact itself")
    refused(run("explain", str(artifact), "--extract", "1", "--out", str(model.parent)), "holds other files")


def test_a_page_is_written_into_a_file(run, artifact, tmp_path):
    refused(run("report", str(artifact), "--out", str(tmp_path)), "is a folder")
    refused(run("report", str(artifact), "--out", "/dev/null"), "is not a file")


def test_events_go_on_after_events(run, artifact, tmp_path):
    events = tmp_path / "e.jsonl"
    events.write_text('{"kind": "message"}\n')
    run("--events", str(events), "generate", "none", "--prompt", "a")
    assert events.read_text().startswith('{"kind": "message"}\n')


def test_a_model_from_elsewhere_is_not_written_over(run, model, tmp_path):
    """What transformers saved there may be somebody's only copy; what lissome wrote there is replaced."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    model_of("llama", tokenizer=True).module.save_pretrained(theirs)
    before = {file.name: file.read_bytes() for file in theirs.iterdir()}
    refused(run("export", str(model), "--to", "hf", "--out", str(theirs)), "did not write")
    assert {file.name: file.read_bytes() for file in theirs.iterdir()} == before
    for _ in range(2):
        assert run("export", str(model), "--to", "hf", "--out", str(ours)).code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_link_to_nothing(run, artifact, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("gone")
    refused(run(*(word.format(model="none.gguf", artifact=artifact, place="link") for word in COMMANDS[name])), "link")
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "gone").exists()
