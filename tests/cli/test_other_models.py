"""Commands on models that write no text: they work, or say in one line why not before any stage begins."""

from __future__ import annotations

import json

import pytest

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
    table = tmp_path / "table.json"
    refused(run("bench", toys["bert"], "--save-table", str(table)), "a latency table needs a causal language model")
    assert not table.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_counts_them_and_plan_says_what_fits(run, toys, kind):
    facts = json.loads(run("inspect", toys[kind], "--json").out)
    assert facts["task"] in {"encoder", "image", "seq2seq"}
    assert facts["figures"]["macs"] > 0
    refused(run("plan", toys[kind]), "multipruner needs a model that is decoder (a language model with attention)")
    refused(run("eval", toys[kind]), "scoring text needs a causal language model")
    refused(run("generate", toys[kind], "--prompt", "a"), "continuing a prompt needs a causal language model")
