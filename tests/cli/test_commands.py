"""Each command: what it asks of the pipeline, what it prints, and the keys of its JSON."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path

import pytest

from lissome import pipeline
from lissome.core.budget import Term, Verdict
from lissome.core.metrics import Metric
from lissome.models.zoo import folder_of, zoo
from tests.report import samples

PAGE = (Path(__file__).parents[2] / "docs/reference/json.md").read_text(encoding="utf-8")


def documented(section: str, head: str = "key") -> set[str]:
    """Keys that a section of the page lists in its table with the given head."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    table = text.split(f"| {head} |")[1].split("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))


@pytest.fixture
def artifact(tmp_path):
    return samples.artifact(tmp_path / "made")


@pytest.mark.parametrize(
    ("words", "section"),
    [
        (("fit",), "fit"),
        (("plan",), "plan"),
        (("eval", "x"), "eval"),
        (("bench", "x"), "bench"),
        (("generate", "x", "--prompt", "y"), "generate"),
        (("export", "x", "--to", "gguf"), "export"),
        (("inspect", "x"), "inspect"),
        (("methods",), "methods"),
        (("assets",), "assets"),
        (("search", "x"), "search"),
    ],
)
def test_json_has_the_documented_keys_and_nothing_else_on_stdout(run, calls, words, section):
    result = run(*words, "--json")
    assert result.code == 0
    assert set(json.loads(result.out)) == documented(section)


def test_json_of_an_artifact_has_the_documented_keys(run, artifact):
    answer = json.loads(run("explain", str(artifact), "--json").out)
    assert set(answer) == documented("explain")
    assert set(answer["curve"][0]) == documented("explain", "key of a step")
    assert json.loads(run("explain", str(artifact), "--step", "3", "--json").out) == answer["curve"][3]
    assert set(json.loads(run("report", str(artifact), "--json").out)) == documented("report")


def test_json_of_a_figure_has_the_documented_keys(run, calls):
    rows = json.loads(run("eval", "x", "--json").out)["rows"]
    assert rows[1]["ppl"]["ratio_high"] == 1.09
    extra = {"ratio", "ratio_low", "ratio_high"}
    assert set(Metric.__dataclass_fields__) | extra == documented("Figure")
    assert set(rows[1]["ppl"]) <= documented("Figure")


def test_json_of_a_method_has_the_documented_keys(run):
    answer = json.loads(run("methods", "multipruner", "--json").out)
    assert set(answer) == documented("methods", "key of a method")
    split = next(one for one in answer["settings"] if one["name"] == "split")
    assert split["default"] == "auto"


def test_json_of_a_device_has_the_documented_keys(run, calls):
    assert set(json.loads(run("inspect", "--device", "--json").out)) == documented("inspect", "key of a device")


def test_json_has_no_nan(run, calls):
    report = calls.answers["generate"]
    calls.answers["generate"] = type(report)(text="", tokens=0, prefill=math.nan, decode=math.inf)
    answer = json.loads(run("generate", "x", "--prompt", "y", "--json").out)
    assert (answer["prefill"], answer["decode"]) == (None, None)


def test_people_see_the_settings_of_a_method(run):
    out = run("methods", "multipruner").out
    assert "split" in out
    assert "auto" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fit",), "is ready"),
        (("plan",), "peak memory of the job"),
        (("eval", "x"), "perplexity"),
        (("bench", "x"), "perplexity"),
        (("generate", "x", "--prompt", "y"), "Paris.\nIt is\n"),
        (("export", "x", "--to", "gguf"), "64 B of it is padding"),
        (("inspect", "x"), "1–2      groups 3, queries 3   width 96"),
        (("inspect", "--device"), "40.0 GB/s"),
        (("inspect", "--device"), "missing here: AVX512F"),
        (("assets",), "smollm2-135m"),
        (("search", "x"), "31 (106.9 %)   75.0 M (75.0 %)   perplexity 32.5   ← chosen"),
        (("search", "x"), "on the test split, which had no part in it: perplexity 33.5"),
        (("search", "x"), "1 Subnets gave no figures: the loss is NaN."),
    ],
)
def test_people_see_an_answer_and_progress_stays_off_stdout(run, calls, words, expected):
    result = run(*words)
    assert result.code == 0
    assert expected in result.out
    assert "a library says something" not in result.out


def test_a_plan_says_what_its_figures_are_worth(run, calls):
    report = calls.answers["plan"]
    more = {"original": {"params": 134.0, "disk": 5e8, "latency": 1.3, "decode": 9.0}, "at_most": ("params", "decode")}
    more |= {"predicted": {"params": 100.0, "decode": 10.8}, "reachable": {}, "provenance": {"disk": "counted"}}
    calls.answers["plan"] = type(report)(**{**vars(report), **more})
    out = run("plan").out
    for words in ("at most 100 ", "to be counted", "to be measured", "at least 10.8 tokens/s"):
        assert words in out
    fields = json.loads(run("plan", "--json").out)
    assert "134," in json.dumps(fields["original"])
    assert fields["at_most"] == ["params", "decode"]


def test_fit_asks_for_what_was_given(run, calls):
    run(
        "fit", "m", "--method", "multipruner", "--budget", "latency=70%", "--budget", "disk<=90MB", "--data", "t.txt",
        "--set", "split=100:0:0", "--set", "lazy=false", "--seed", "3", "--max-memory", "2GiB", "--out", "o",
    )  # fmt: skip
    args, options = calls.seen["fit"]
    assert args == ("m",)
    del options["events"]
    assert options == {
        "method": "multipruner",
        "recipe": None,
        "budget": ("latency=70%", "disk<=90MB"),
        "data": "t.txt",
        "settings": ("split=100:0:0", "lazy=false"),
        "seed": 3,
        "max_memory": 2 << 30,
        "out": Path("o"),
    }


def test_fit_without_arguments_is_the_demo_and_names_its_folder(run, calls):
    run("fit")
    args, options = calls.seen["fit"]
    assert args == ("smollm2-135m",)
    assert options["out"] == Path("smollm2-135m-latency-85")
    assert (Path("smollm2-135m-latency-85") / "report.html").exists()


def test_the_derived_folder_is_the_same_for_the_same_job_only(run, calls):
    folders = []
    for words in (("--seed", "1"), ("--seed", "2"), ("--set", "split=auto"), ("--seed", "1", "--max-memory", "1GiB")):
        run("fit", "/models/a b.gguf", *words)
        folders.append(calls.seen["fit"][1]["out"].name)
        samples_folder = Path(folders[-1])
        for file in samples_folder.iterdir():
            file.unlink()
        samples_folder.rmdir()
    assert folders[0] == folders[3]  # a memory limit does not change the result
    assert len(set(folders)) == 3
    assert all(name.startswith("a-b-latency-85-") for name in folders)


def test_tasks_without_a_name_are_refused(run, calls):
    for given in ("", " , "):
        result = run("eval", "x", "--tasks", given)
        assert result.code == 2
        assert "--tasks names no task" in result.err
    assert "evaluate" not in calls.seen


def test_a_budget_that_was_missed_is_shown_and_fails(run, calls):
    report = calls.answers["fit"]
    missed = Verdict(Term.parse("latency<=85%"), 1.0, 1.2)
    calls.answers["fit"] = type(report)(**{**vars(report), "verdicts": (missed,)})
    result = run("fit", "--json")
    assert result.code == 3
    assert json.loads(result.out)["ok"] is False
    assert "latency<=85% NOT met" in result.err


def test_json_of_a_point_has_the_documented_keys(run, calls):
    answer = json.loads(run("search", "x", "--json").out)
    assert set(answer["front"][0]) == set(answer["chosen"]) == documented("search", "key of a point")


def test_search_asks_for_what_was_given_and_names_its_folder(run, calls):
    run(
        "search", "a/m", "--budget", "params<=80%", "--objective", "ppl", "--objective", "macs", "--trials", "9",
        "--sampler", "tpe", "--set", "compared=3", "--workers", "2", "--check", "4", "--latency", "regression",
    )  # fmt: skip
    args, options = calls.seen["search"]
    assert args == ("a/m",)
    assert options["out"].name.startswith("m-search-params-80-")
    assert options["objectives"] == ("ppl", "macs")
    assert (options["trials"], options["workers"], options["check"]) == (9, 2, 4)
    assert (options["sampler"], options["latency"], options["settings"]) == ("tpe", "regression", ("compared=3",))
    run("search", "a/m")
    first = calls.seen["search"][1]["out"]
    run("search", "a/m", "--trials", "300", "--workers", "2")
    assert calls.seen["search"][1]["out"] == first, "more trials go on in the same folder"


def test_a_search_in_which_nothing_holds_is_shown_and_fails(run, calls):
    report = calls.answers["search"]
    calls.answers["search"] = type(report)(**{**vars(report), "front": (), "chosen": None})
    result = run("search", "x", "--budget", "params<=80M")
    assert result.code == 3
    assert "no point is chosen: none holds the bounds" in result.out
    assert "none of the 9 Subnets that were evaluated holds params<=80M" in result.err


def test_tasks_may_be_repeated_or_joined(run, calls):
    run("eval", "x", "--tasks", "piqa,boolq", "--tasks", "openbookqa", "--limit", "5")
    assert calls.seen["evaluate"][1]["tasks"] == ("piqa", "boolq", "openbookqa")
    assert calls.seen["evaluate"][1]["limit"] == 5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--to", "gguf"), "m-F16.gguf"),
        (("--to", "gguf", "--type", "Q4_0"), "m-Q4_0.gguf"),
        (("--to", "hf"), "m-hf"),
        (("--to", "hf", "--out", "z"), "z"),
    ],
)
def test_export_names_its_file(run, calls, words, expected):
    run("export", "folder/m", *words)
    assert calls.seen["export"][0] == ("folder/m", words[1], Path(expected))


def test_explain_shows_the_lineage_and_any_step(run, artifact):
    out = run("explain", str(artifact)).out
    assert "multipruner" in out
    assert "layers.3.mlp.width 1536 → 1280" in out
    assert "perplexity" in run("explain", str(artifact), "--step", "2").out
    missing = run("explain", str(artifact), "--step", "99")
    assert missing.code == 2
    assert "steps 0 to 8" in missing.err


def test_explain_extracts_a_step(run, calls, artifact):
    assert run("explain", str(artifact), "--extract", "4", "--out", "o").out == "step\n"
    args, _ = calls.seen["extract_step"]
    assert args == (artifact, 4, Path("o"))


def test_report_writes_where_it_is_told(run, artifact, tmp_path):
    assert run("report", str(artifact), "--out", str(tmp_path / "p.html")).out == f"{tmp_path / 'p.html'}\n"
    assert (tmp_path / "p.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (artifact / "report.html").exists()
    run("report", str(artifact), "--out", str(tmp_path / "t.md"))
    assert (tmp_path / "t.md").read_text(encoding="utf-8").startswith("|  | smollm2-135m | ")


def test_the_page_of_a_super_network_that_ships_is_written_here(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (name for name in zoo() if name.startswith("supernet-")):
        assert run("report", name).out == f"{name}.html\n"
        page = Path(f"{name}.html").read_text(encoding="utf-8")
        assert f"lissome extract {name} --point " in page and str(folder_of(name).parent) not in page
        assert "Before and after" not in page, "nothing of it was measured against its original"


def test_a_folder_that_is_no_artifact_is_refused(run, tmp_path):
    for command in ("report", "explain"):
        result = run(command, str(tmp_path))
        assert result.code == 2
        assert "manifest.json does not exist" in result.err


def test_events_go_to_a_file_as_json_lines(run, calls, tmp_path):
    run("--events", str(tmp_path / "e.jsonl"), "fit")
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert any("report.html" in event["message"] for event in events)


def test_the_pipeline_takes_what_the_commands_give(run, calls, artifact, monkeypatch):
    for words in (
        ("fit",), ("plan",), ("eval", "x"), ("bench", "x"), ("generate", "x", "--prompt", "y"),
        ("export", "x", "--to", "hf"), ("inspect", "x"), ("inspect", "--device"),
        ("explain", str(artifact), "--extract", "1", "--out", "o"), ("search", "x"),
    ):  # fmt: skip
        assert run(*words).code == 0
    monkeypatch.undo()
    for name, (args, options) in calls.seen.items():
        inspect.signature(getattr(pipeline, name)).bind(*args, **options)
