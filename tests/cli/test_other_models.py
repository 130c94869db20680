"""Commands on models that write no text: they work, or say in one line why not before any stage begins."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lissome.models.labels import with_labels
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

KINDS = ("bert", "bert-labels", "vit", "whisper")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return {kind: str(toy_model(kind).save(folder / kind)) for kind in (*KINDS, "llama")}


def refused(result, words):
    assert result.code == 2, result.err
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, "no stage began"
    assert lines[0].startswith("error: ")
    assert words in lines[0]


@pytest.mark.parametrize("kind", KINDS)
def test_bench_is_of_one_forward(run, toys, kind):
    alone = run("bench", toys[kind], "--json")
    assert alone.code == 0, alone.err
    answer = json.loads(alone.out)
    assert {"params", "disk", "macs", "latency"} <= set(answer["rows"][0])
    assert not {"prefill", "decode"} & set(answer["rows"][0])
    assert any(note.startswith("latency is of one forward of ") for note in answer["notes"])
    assert any("peak memory" in note for note in answer["notes"])
    paired = json.loads(run("bench", toys[kind], "--against", toys[kind], "--json").out)["rows"]
    assert paired[1]["disk"]["ratio"] == 1
    assert paired[1]["latency"]["ratio_low"] <= paired[1]["latency"]["ratio_high"]


def test_bench_refuses_what_has_no_common_request(run, toys, tmp_path):
    refused(run("bench", toys["vit"], "--against", toys["llama"]), "no one request suits")


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_counts_them_and_plan_says_what_fits(run, toys, kind):
    facts = json.loads(run("inspect", toys[kind], "--json").out)
    assert facts["task"] in {"encoder", "image", "seq2seq"}
    assert facts["figures"]["macs"] > 0
    refused(run("plan", toys[kind]), "multipruner needs a model that is decoder (a language model with attention)")
    judged = "give them with --data" if kind == "vit" else "scoring text needs a causal language model"
    refused(run("eval", toys[kind]), judged)
    refused(run("generate", toys[kind], "--prompt", "a"), "continuing a prompt needs a causal language model")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A BERT with two named classes, and labelled texts."""
    folder = tmp_path_factory.mktemp("taught")
    bare = replace(toy_model("bert", vocab_size=TOY_VOCABULARY), tokenizer=toy_tokenizer())
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"text {k},{'ab'[k % 2]}\n" for k in range(40)))
    (folder / "bad.csv").write_text("text,label\nfine,a\nodd,c\n")
    (folder / "bare.csv").write_text("text\nfine\n")
    bare.save(folder / "bare")
    return str(with_labels(bare, ("a", "b")).save(folder / "model")), folder


def test_eval_of_classes_from_the_command_line(run, taught):
    model, folder = taught
    result = run("eval", model, "--data", str(folder / "texts.csv"), "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert row["accuracy"]["n"] == 40
    assert row["loss"]["unit"] == "nats"
    assert "right in 50.0%" in json.loads(result.out)["notes"][0]
    assert json.loads(run("inspect", model, "--json").out)["labels"] == ["a", "b"]
    refused(run("eval", model), "give labelled texts with --data")
    refused(run("eval", model, "--data", str(folder / "bad.csv")), "bad.csv:3: unknown label 'c'")
    refused(run("eval", model, "--data", str(folder / "bare.csv")), "no columns text and label")
    refused(run("eval", model, "--data", "x", "--text", "y"), "--text and --data cannot stand together")


@pytest.mark.long
def test_fit_of_classes_from_the_command_line(run, taught, tmp_path):
    _, folder = taught
    words = ("fit", str(folder / "bare"), "--method", "shears", "--out", str(tmp_path / "out"))
    refused(run(*words), "give them with --data")
    refused(run(*words, "--data", str(folder / "bare.csv")), "no columns text and label")
    quick = ("--set", "steps=2", "--set", "windows=2", "--set", "ranks=4,2", "--json")
    result = run(*words, "--data", str(folder / "texts.csv"), *quick)
    assert result.code == 0, result.err
    assert json.loads(result.out)["rows"][1]["accuracy"]["n"] == 8
    assert run(*words, "--data", str(folder / "texts.csv"), *quick).out == result.out, "finished: the stored result"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "always saying" in page
