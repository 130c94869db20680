"""Real commands on a toy model: from fit to every other verb, and faults as one line with nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lissome.core.manifest import MANIFEST, read_manifest, verify_files
from lissome.models.model import Model
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

pytestmark = pytest.mark.long

LINE = "the quick brown fox jumps over a lazy dog while five wizards box quietly at night"
ENOUGH = 800  # kilobytes for the toy job and its result
JOB = ("--budget", "block_params=75%", "--set", "width_step=8")


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    module = toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024)
    return str(Model(module, toy_tokenizer()).save(tmp_path_factory.mktemp("toy") / "toy"))


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = LINE.split()
    path.write_text("\n\n".join(" ".join(words[(i * k) % len(words)] for k in range(1, 80)) for i in range(1, 120)))
    return str(path)


def test_from_fit_to_every_other_verb(run, toy, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = run("plan", toy, "--data", text, *JOB, "--json")
    assert plan.code == 0, plan.err
    assert not any(tmp_path.iterdir())  # a plan writes nothing

    fit = run("fit", toy, "--data", text, *JOB, "--out", "small", "--json")
    assert fit.code == 0, fit.err
    result = json.loads(fit.out)
    small = result["rows"][1]
    assert small["block_params"]["ratio"] <= 0.75
    assert small["ppl"]["value"] > 0
    page = Path("small/report.html").read_text(encoding="utf-8")
    assert "block_params&lt;=75%" in page
    again = json.loads(run("fit", toy, "--data", text, *JOB, "--out", "small", "--json").out)
    assert again == result

    curve = json.loads(run("explain", "small", "--json").out)["curve"]
    step = curve[len(curve) // 2]
    assert run("explain", "small", "--extract", str(step["step"]), "--out", "middle").out == "middle\n"
    figures = json.loads(run("inspect", "middle", "--json").out)["figures"]
    assert figures["block_params"] == step["figures"]["block_params"]

    answer = json.loads(run("generate", "small", "--prompt", "the quick", "--max-new-tokens", "3", "--json").out)
    assert 1 <= answer["tokens"] <= 3
    table = json.loads(run("eval", "small", "--against", toy, "--text", text, "--json").out)["rows"]
    assert table[1]["ppl"]["ratio"] == pytest.approx(table[1]["ppl"]["value"] / table[0]["ppl"]["value"], rel=1e-6)
    export = run("export", "small", "--to", "hf", "--pad", "--out", "stock", "--json")
    assert export.code == 0, export.err
    assert json.loads(export.out)["bytes"] > 0


@pytest.fixture
def broken(toy, tmp_path):
    """Copies of the toy folder, each damaged in one way."""

    def copy(name):
        return Path(shutil.copytree(toy, tmp_path / name))

    return copy


def _refused(result, out, words):
    assert result.code not in (0, 1), result.err  # 1 would be "unexpected"
    assert result.out == ""
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.err
    assert words in errors[0]
    assert not (out / MANIFEST).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "params=1%"), "params"),
        (("--budget", "parms=50%"), "did you mean 'params'?"),
        (("--set", "splt=auto"), "did you mean 'split'?"),
        (("--set", "split=1:2"), "split"),
        (("--set", f"recover_rank={10**18}"), "is more than any layer of "),
        (("--max-memory", "1000"), "memory"),
        (("--data", "missing.txt"), "missing.txt"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(run, toy, text, tmp_path, options, words):
    out = tmp_path / "out"
    given = () if "--data" in options else ("--data", text)
    bounds = () if "--budget" in options else ("--budget", "block_params=75%")
    _refused(run("fit", toy, *given, *bounds, *options, "--out", str(out)), out, words)
    assert not out.exists()


def test_damaged_input_is_named(run, broken, text, tmp_path):
    out = tmp_path / "out"
    cut = broken("cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    _refused(run("fit", str(cut), "--data", text, *JOB, "--out", str(out)), out, "cut short")
    empty = tmp_path / "empty.txt"
    empty.touch()
    _refused(run("fit", str(broken("fine")), "--data", str(empty), *JOB, "--out", str(out)), out, "empty")
    future = broken("future")
    (future / MANIFEST).write_text('{"schema": 99}')
    _refused(run("generate", str(future), "--prompt", "a"), out, "upgrade")
    escape = broken("escape")
    record = {"bytes": 1, "sha256": "0" * 64}
    base = {"name": "x", "architecture": "llama"}
    manifest = {"schema": 1, "name": "x", "base": base, "lissome": "0", "files": {"../../etc/passwd": record}}
    (escape / MANIFEST).write_text(json.dumps(manifest))
    _refused(run("generate", str(escape), "--prompt", "a"), out, "inside the folder")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("kilobytes", [4, 16, 60, 100, ENOUGH])
def test_a_full_disk_is_one_line_and_leaves_no_artifact(toy, text, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no mounting in this container")
    try:
        command = [sys.executable, "-m", "lissome", "fit", toy, "--data", text, *JOB, "--out", str(disk / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in done.stderr
        if kilobytes < ENOUGH:
            assert done.returncode in (1, 2)
            assert len(errors) == 1
            assert re.search("disk full|no space left|make room", errors[0], re.IGNORECASE)
            assert not (disk / "out" / MANIFEST).exists()
        else:  # the model fits, its page does not: that is said, and the model is whole
            assert done.returncode == 0, done.stderr
            assert "no report.html: [Errno 28] No space left" in done.stderr
            verify_files(disk / "out", read_manifest(disk / "out"))
        assert not [path for path in disk.rglob("*") if path.name.endswith(".part")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
