"""llama.cpp as a peer: figures with units and spread, and plain words when it is missing or refuses a file."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lissome.core.errors import ArtifactError, ConfigError, MissingExtraError
from lissome.cost import llama_cpp
from lissome.cost.clock import fixed_threads
from lissome.cost.llama_cpp import LlamaCpp, features, quantise, time_files
from lissome.ops.kernels.packed import PackedWeight
from tests.models.gguf_toys import write_gguf


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "toy.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", None)
    llama_cpp._library.cache_clear()
    with pytest.raises(MissingExtraError, match=r"lissome\[llama\]"):
        LlamaCpp(tmp_path / "toy.gguf")
    llama_cpp._library.cache_clear()


@pytest.mark.parametrize("counts", [{"prompt": 0}, {"new": 0}, {"repeats": 0}])
def test_counts_must_be_positive(counts):
    with pytest.raises(ConfigError, match="at least 1"):
        time_files({}, **counts)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"gone\.gguf does not exist"):
        LlamaCpp(tmp_path / "gone.gguf")


@pytest.fixture
def files(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    paths = {name: tmp_path / f"{name}.gguf" for name in ("first", "second")}
    for path in paths.values():
        write_gguf(path)
    return paths


@pytest.mark.peer
def test_files_are_timed_in_turns(files):
    result = time_files(files, prompt=16, new=4, repeats=3, threads=1)
    assert list(result) == ["first", "second"]
    for name, metrics in result.items():
        by_name = {metric.name: metric for metric in metrics}
        assert list(by_name) == ["prefill", "decode", "latency", "disk"]
        assert by_name["disk"].value == files[name].stat().st_size
        assert by_name["disk"].provenance == "counted"
        for speed in ("prefill", "decode"):
            metric = by_name[speed]
            assert (metric.unit, metric.better, metric.n) == ("tokens/s", "higher", 3)
            assert 0 < metric.low <= metric.value <= metric.high
        assert (by_name["latency"].unit, by_name["latency"].better) == ("s", "lower")


@pytest.mark.peer
def test_the_order_of_feeding_does_not_matter(files):
    ids = [3, 9, 40, 41, 7, 100]
    with LlamaCpp(files["first"], context=16, threads=1) as model:
        whole = model.logits(ids)
        model.reset()
        model.feed(ids[:4], 0)
        last = [model.feed([token], 4 + index)[0] for index, token in enumerate(ids[4:])]
        assert whole.shape == (6, model.tokens)
        with pytest.raises(ConfigError, match="do not fit into a context of 16"):
            model.feed([1] * 17, 0)
    np.testing.assert_allclose(np.stack(last), whole[4:], atol=1e-2)


@pytest.mark.peer
def test_llama_cpps_reason_is_passed_on(tmp_path, files):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(files["first"].read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"llama\.cpp cannot open .*damaged\.gguf: .*error"):
        LlamaCpp(damaged)


@pytest.mark.peer
def test_other_types_are_written_by_llama_cpp(files, tmp_path):
    target = quantise(files["first"], tmp_path / "coarse.gguf", "Q8_0", threads=1)
    with LlamaCpp(files["first"], threads=1) as whole, LlamaCpp(target, threads=1) as coarse:
        wanted, found = whole.logits([1, 2, 3]), coarse.logits([1, 2, 3])
    assert target.stat().st_size < files["first"].stat().st_size
    assert np.abs(found - wanted).max() < 0.2 * np.abs(wanted).max()
    with pytest.raises(ConfigError, match="no type 'Q9'"):
        quantise(files["first"], tmp_path / "q9.gguf", "Q9")
    (tmp_path / "torn.gguf").write_bytes(files["first"].read_bytes()[:200])
    with pytest.raises(ArtifactError, match="cannot open"):
        quantise(tmp_path / "torn.gguf", tmp_path / "no.gguf", "Q8_0")
    assert not (tmp_path / "no.gguf").exists()
    assert "=" in features()


@pytest.mark.peer
@pytest.mark.parametrize("threads", [1, 2])
def test_neither_our_kernels_nor_torch_take_its_tiles_away(files, tmp_path, threads):
    """It shapes a thread's tiles once, where there are tiles: without those shapes the next prompt ends the process."""
    path, ids = quantise(files["first"], tmp_path / "coarse.gguf", "Q8_0", threads=1), list(range(30))
    packed = PackedWeight.pack(torch.ones(64, 128))
    with LlamaCpp(path, threads=threads) as model, fixed_threads(threads):
        first = model.logits(ids)
        packed.linear(torch.ones(40, 128, dtype=torch.bfloat16), threads=threads)
        np.testing.assert_array_equal(model.logits(ids), first)
        torch.nn.Linear(256, 256).bfloat16()(torch.ones(256, 256, dtype=torch.bfloat16))
        np.testing.assert_array_equal(model.logits(ids), first)
