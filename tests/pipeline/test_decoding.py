"""A model as a folder of nested weights: made by `export`, run without torch, timed and looked at like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lissome
from lissome import pipeline
from lissome.core.errors import ArtifactError, ConfigError, DataError, UnsupportedModelError
from lissome.core.manifest import read_manifest
from lissome.cost.counted import Counter
from lissome.data.assets import assets
from lissome.engine.decode import Decoder, Session
from lissome.engine.decode.decoder import BLOCK
from lissome.models.nested.folder import NestedFolder, nested_folder
from lissome.ops.kernels import native
from lissome.ops.nested import Layout, layout_named
from lissome.testing.toys import toy_model
from tests.cli.conftest import run as run  # noqa: PLC0414  # the fixture
from tests.export.toys import model_of

needs_native = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")

PROBE = """
import json, pathlib, sys
from lissome.cli.main import main
code = main({words})
own = {{name.split(".")[0] for name in sys.modules}}
print(json.dumps([code, sorted(own & {{"torch", "transformers", "accelerate", "optuna", "peft", "sqlalchemy"}}),
                  pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]]))
"""


def in_fresh_process(*words: str) -> tuple[dict[str, Any], list[str], int]:
    """The JSON answer, the heavy libraries that were imported, and the peak of resident memory in bytes."""
    code = PROBE.format(words=[*words, "--json"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    *answer, last = done.stdout.splitlines()
    status, heavy, peak = json.loads(last)
    assert status == 0, done.stderr
    return json.loads("\n".join(answer)), heavy, 1024 * int(peak)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "toy-nested"
    report = lissome.export(model_of("llama", "widths", tokenizer=True), "nested", path)
    assert report.bytes == sum(file.stat().st_size for file in path.iterdir())
    assert sum(report.types.values()) <= (path / "nested.safetensors").stat().st_size
    return path


@needs_native
def test_generate_imports_no_torch_and_holds_weights_once(folder: Path) -> None:
    words = ("generate", str(folder), "--prompt", "hello the world", "--max-new-tokens", "20")
    answer, heavy, peak = in_fresh_process(*words)
    assert heavy == []
    opened = NestedFolder.open(folder)
    assert peak <= opened.bytes + 100e6
    ids = list(Session(Decoder(opened.file)).generate(opened.text.prompt("hello the world"), 20, stop=opened.text.ends))
    assert answer["text"] == opened.text.decode(ids)
    assert answer["tokens"] == len(ids)
    same = pipeline.generate(folder / "nested.safetensors", "hello the world", max_new_tokens=20)
    assert same.text == answer["text"]


@needs_native
@pytest.mark.slow
@pytest.mark.skipif("smollm2-135m" not in assets(), reason="needs the asset smollm2-135m")
def test_memory_of_a_real_model(tmp_path: Path) -> None:
    path = tmp_path / "smollm2"
    lissome.export("smollm2-135m", "nested", path)
    answer, heavy, peak = in_fresh_process("generate", str(path), "--prompt", "Write a sentence about dogs.")
    assert heavy == []
    assert "dog" in answer["text"]
    opened = NestedFolder.open(path)
    cache = Decoder.open(path, cells=64 + 40, resident=False).cache_bytes
    assert peak <= opened.bytes + cache + 100e6


def test_the_manifest_says_what_it_is(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.tags == ("dense", "nested")
    assert manifest.base.architecture == "llama"
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_exported_again_and_over_other_things(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "other"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not a saved model"):
        lissome.export(model_of("llama"), "nested", place)
    target = tmp_path / "again"
    first = lissome.export(model_of("llama", tokenizer=True), "nested", target, type="4+2+2/64")
    assert "4, 6, 8 bits" in first.notes[0]
    second = lissome.export(model_of("llama"), "nested", target)
    assert "no tokenizer" in second.notes[1]
    assert not (target / "tokenizer.json").exists()
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        pipeline.generate(target, "hello")


def test_of_an_artifact_the_lineage_stays(tmp_path: Path) -> None:
    model = model_of("llama", tokenizer=True)
    model.save(tmp_path / "saved")
    first = lissome.export(tmp_path / "saved", "nested", tmp_path / "nested")
    assert first.path == tmp_path / "nested"
    known = replace(read_manifest(tmp_path / "nested"), name="cut", tags=("pruned",))
    lissome.export(replace(model, manifest=known), "nested", tmp_path / "nested")
    assert read_manifest(tmp_path / "nested").tags == ("nested", "pruned")
    assert read_manifest(tmp_path / "nested").name == "cut"


def test_inspect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", lambda: None)  # what the header says needs no kernels
    found, counts = pipeline.inspect(folder), Counter(model_of("llama", "widths")).count()
    assert found.figures["params"] == counts.figures()["params"]
    assert found.figures["block_params"] == counts.figures()["block_params"]
    assert found.facts["embedding_params"] == counts.embedding_params
    assert found.facts["layers"] == model_of("llama", "widths").anatomy.layers()
    assert found.facts["precisions"] == [3, 4]
    assert found.facts["planes"] == ["3+1", "5+1"]
    assert 0 < found.facts["token_bytes"]["3"] < found.facts["token_bytes"]["4"] < found.figures["disk"]


@needs_native
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["3+1", "2+1+1/64/kmeans"])
def test_inspect_says_what_the_engine_reads(tied: bool, layout: str, tmp_path: Path) -> None:
    model = model_of("llama", head_dim=16, tie_word_embeddings=tied)
    lissome.export(model, "nested", tmp_path / "n", type=layout)
    found = pipeline.inspect(tmp_path / "n").facts
    decoder = Decoder.open(tmp_path / "n", cells=192)
    assert found["token_bytes"] == {str(bits): decoder.weight_bytes(bits) for bits in decoder.precisions}
    assert found["cache_bytes"] == decoder.cache_bytes


@needs_native
def test_levels_by_kmeans(run: Any, tmp_path: Path) -> None:
    model_of("llama", tokenizer=True).save(tmp_path / "saved")
    words = ("export", str(tmp_path / "saved"), "--to", "nested", "--out", str(tmp_path / "levels"), "--json", "--type")
    done = run(*words, "3+1/kmeans")
    assert done.code == 0
    assert json.loads(done.out)["types"]["levels"] == sum(
        place.nbytes for name, place in NestedFolder.open(tmp_path / "levels").file.places.items() if "levels" in name
    )
    assert pipeline.inspect(tmp_path / "levels").facts["planes"] == ["3+1/kmeans", "5+1/kmeans"]
    assert pipeline.generate(tmp_path / "levels", "hello", max_new_tokens=4).tokens <= 4
    refused = run(*words, "4+2+2/kmeans")
    assert refused.code == 2
    assert "at most 6 bits, got 8" in refused.err


@needs_native
def test_bench(folder: Path) -> None:
    alone = pipeline.measure(folder)
    assert [row.name for row in alone.rows] == [f"{folder} at 4 bits", f"{folder} at 3 bits"]
    assert {"params", "disk", "token_bytes", "latency", "prefill", "decode"} <= alone.rows[1].figures.keys()
    ratio = alone.rows[1].figures["decode"]
    assert ratio.ratio_low is not None
    beside = pipeline.measure(folder, against=model_of("llama"))
    assert [row.name for row in beside.rows] == ["toy-llama", f"{folder} at 4 bits", f"{folder} at 3 bits"]
    assert beside.rows[1].figures["disk"].ratio < 1
    with pytest.raises(ConfigError, match="latency table"):
        pipeline.measure(folder, save_table=folder.parent / "table.json")


@needs_native
def test_a_sparse_cache_is_one_word_away(folder: Path, run: Any) -> None:
    opened, prompt = NestedFolder.open(folder), "12345" * 20
    ids = opened.text.prompt(prompt)
    assert BLOCK < len(ids) < opened.file.spec.context - 8
    decoder = Decoder.open(folder, cells=len(ids) + 8, kv="int8", key_zeros=0.5, value_zeros=0.3)
    wanted = opened.text.decode(list(Session(decoder).generate(ids, 8, stop=opened.text.ends)))
    words = ("generate", str(folder), "--prompt", prompt, "--max-new-tokens", "8", "--json")
    assert json.loads(run(*words, "--cache", "int8:0.5,0.3").out)["text"] == wanted
    refused = run(*words, "--cache", "int9")
    assert (refused.code, "is no cache" in refused.err) == (2, True)
    with pytest.raises(ConfigError, match="run by torch"):
        pipeline.generate(model_of("llama", tokenizer=True), "hello", cache="int8")


@needs_native
def test_commands(folder: Path, run: Any) -> None:
    shown = run("inspect", str(folder))
    assert "at 3 bits" in shown.out
    assert "nested" in shown.out
    result = run("generate", str(folder), "--prompt", "hello", "--max-new-tokens", "4")
    assert (result.code, result.err) == (0, "")
    for words in (
        ("eval", str(folder), "--tasks", "piqa"),
        ("fit", str(folder)),
        ("export", str(folder), "--to", "gguf"),
    ):
        refused = run(*words)
        assert refused.code == 2
        assert "holds nested weights" in refused.err


def test_prompts_that_are_too_long(tmp_path: Path) -> None:
    model = model_of("llama", tokenizer=True, max_position_embeddings=16)
    lissome.export(model, "nested", tmp_path / "short")
    with pytest.raises(DataError, match="reads 16"):
        pipeline.generate(tmp_path / "short", "1" * 16)
    if native.module() is not None:
        assert pipeline.generate(tmp_path / "short", "1", max_new_tokens=99).tokens <= 16


def test_damage_is_seen(folder: Path, tmp_path: Path) -> None:
    for name in ("nested.safetensors", "tokenizer.json"):
        copy = tmp_path / name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        data = bytearray((copy / name).read_bytes())
        data[-5] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(ArtifactError, match="was changed"):
            pipeline.generate(copy, "hello")


@pytest.mark.parametrize(
    ("text", "layout"), [("3+1", Layout()), ("4", Layout((4,))), ("4+2+2/64", Layout((4, 2, 2), 64))]
)
def test_layouts_by_name(text: str, layout: Layout) -> None:
    assert layout_named(text) == layout


@pytest.mark.parametrize("text", ["", "Q4_0", "3+", "3,1", "9", "1+3", "3+1/48", "3+1/", "-3"])
def test_layouts_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError):
        layout_named(text)


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="the engine does not run"):
        lissome.export(toy_model("mamba"), "nested", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("target", [None, 3, "", "x" * 5000, "a\0b", ".", "no/such/folder"])
def test_what_is_no_folder_of_nested_weights(target: Any) -> None:
    assert nested_folder(target) is None
