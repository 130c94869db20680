"""GGUF export of a real model: its own file again, and a cut of it, run by llama.cpp beside torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from lissome.core.errors import AssetError
from lissome.cost.llama_cpp import LlamaCpp
from lissome.data.assets import fetch
from lissome.data.sources import shipped_corpus
from lissome.export.gguf import export
from lissome.models.binding import extract
from lissome.models.load import load_model
from tests.export.toys import logits_of

pytestmark = [pytest.mark.peer, pytest.mark.slow]
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

CUT = {
    **{f"layers.{index}.attention": 0 for index in (20, 21, 27)},
    **{f"layers.{index}.mlp": 0 for index in (12, 27)},
    **{f"layers.{index}.mlp.width": 1024 for index in (5, 9)},
    "layers.8.attention.groups": 2,
}


@pytest.fixture(scope="module")
def file():
    try:
        return fetch("smollm2-135m")
    except AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(file):
    return load_model(file)


@pytest.fixture(scope="module")
def ids(model):
    return model.tokenizer(shipped_corpus().documents[3].text[:8000])["input_ids"][:384]


def run(path, ids):
    with LlamaCpp(path, context=len(ids)) as peer:
        return torch.tensor(peer.logits(ids))


def nats(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()


def divergence(got, want):
    pair = got.log_softmax(-1), want.log_softmax(-1)
    return torch.nn.functional.kl_div(*pair, log_target=True, reduction="batchmean").item()


def test_in_its_own_type_the_model_is_its_file_again(model, file, ids, tmp_path):
    report = export(model, tmp_path / "again.gguf")
    one, two = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (file, report.path))
    assert one.keys() == two.keys()
    assert all(one[name].tensor_type == two[name].tensor_type for name in one)
    assert all(np.array_equal(one[name].data, two[name].data) for name in one)
    assert abs(report.bytes / file.stat().st_size - 1) < 1e-4
    assert torch.equal(run(report.path, ids), run(file, ids))
    assert report.notes[-1].startswith("llama.cpp gives the original's token ids")


def test_other_types_lose_what_their_bits_say(model, file, ids, tmp_path):
    want = logits_of(model.module, ids)
    exact = run(export(model, tmp_path / "f16.gguf", type="F16").path, ids)
    assert divergence(exact, want) < 1e-4
    eight = run(export(model, tmp_path / "q8.gguf", type="Q8_0").path, ids)
    assert divergence(eight, want) < 0.02
    four = run(export(model, tmp_path / "q4.gguf", type="Q4_0").path, ids)
    assert nats(four, ids) - nats(run(file, ids), ids) < 0.3


def test_an_uneven_cut_runs_natively_and_is_a_smaller_file(model, file, ids, tmp_path):
    small = extract(model, {**model.space().full, **CUT})
    want = logits_of(small.module, ids)
    exact = export(small, tmp_path / "f16.gguf", type="F16")
    assert (exact.architecture, exact.blocks) == ("deci", 29)
    assert [(one.part, one.change) for one in exact.padded] == [("block 12 mlp", "absent -> width 32")]
    got = run(exact.path, ids)
    assert divergence(got, want) < 1e-4
    assert (got.argmax(-1) == want.argmax(-1)).float().mean() > 0.98
    coarse = export(small, tmp_path / "cut.gguf")  # Q4_1, as the original file
    assert coarse.bytes < 0.95 * file.stat().st_size
    assert divergence(run(coarse.path, ids), want) < 0.05
