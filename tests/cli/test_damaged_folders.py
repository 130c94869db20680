"""Folders that cannot be used end every command that reads them with one line and exit code 2."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from lissome.models.artifact import save_model
from lissome.testing.toys import toy_model

LOST = "model.layers.0.mlp.down_proj.weight"


def _lose(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(LOST)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _change(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_lose, f"1 missing (first {LOST})"),
        (_change(hidden_act="nosuch"), "unknown activation 'nosuch'"),
        (_change(num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
        (_change(num_attention_heads=-6), "num_attention_heads must be"),
        (_change(rope_parameters={"rope_type": "zzz"}), "unknown kind 'zzz'"),
        (_change(hidden_size="abc"), "hidden_size must be"),
        (_change(num_key_value_heads=0), "num_key_value_heads must be"),
    ],
)
def test_one_line_and_exit_code_2(run, tmp_path, damage, words):
    folder = save_model(toy_model("llama"), tmp_path / "model")
    damage(folder)
    for command in (["inspect"], ["generate", "--prompt", "a"], ["export", "--to", "hf"]):
        result = run(command[0], str(folder), *command[1:])
        assert result.code == 2
        assert result.out == ""
        assert result.err.startswith(f"error: {folder}: ")
        assert words in result.err
        assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", ["", "a" * 5000])
def test_names_that_are_none(run, name):
    result = run("inspect", name)
    assert result.code == 2
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_tokenizer(run, tmp_path, text):
    folder = save_model(toy_model("llama"), tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    result = run("generate", str(folder), "--prompt", "x")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "could not be read (" in result.err
    assert result.err.rstrip().endswith("its files are damaged, get them again.")


def test_a_mistyped_folder_names_the_nearest(run, tmp_path, monkeypatch):
    save_model(toy_model("llama"), tmp_path / "my-llama")
    (tmp_path / "mm-llama").mkdir()  # nearer, but no model
    monkeypatch.chdir(tmp_path)
    for given, meant in (("my-lama", "my-llama"), ("./my-lama", "my-llama"), (tmp_path / "my-lama", None)):
        result = run("inspect", str(given))
        assert result.code == 2
        assert f"did you mean {str(meant or tmp_path / 'my-llama')!r}?" in result.err
    assert "did you mean the asset 'zoo-mamba'?" in run("inspect", "zoo-mammba").err


def test_the_page_of_an_unfinished_job_says_how_to_go_on(run, tmp_path):
    (tmp_path / "S" / ".run").mkdir(parents=True)
    for command in ("report", "extract", "inspect"):
        told = run(command, str(tmp_path / "S"))
        assert told.code == 2 and "belongs to a job that is not finished" in told.err
