"""`eval` on nested weights: the engine's perplexity is that of the numbers they stand for, on the same windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome import pipeline
from lissome.core.errors import ArtifactError, DataError
from lissome.engine.decode import Decoder
from lissome.models.model import Model
from lissome.models.nested.file import open_nested
from lissome.models.nested.make import make_folder
from lissome.ops.kernels import native
from lissome.testing.conformance import dequantised
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module

pytestmark = pytest.mark.skipif(native.module() is None, reason="there are no compiled kernels")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "box", "quietly"]
    (folder / "text.txt").write_text(" ".join(words[(i * i + i // 7) % len(words)] for i in range(1200)))
    model = Model(toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024), toy_tokenizer())
    model.save(folder / "llama")
    make_folder(model, folder / "nested")
    return folder


def test_every_precision_beside_the_original(toy: Path) -> None:
    found = pipeline.evaluate(toy / "nested", against=toy / "llama", text=toy / "text.txt")
    first, four, three = found.rows
    assert [row.name.rpartition(" at ")[2] for row in (four, three)] == ["4 bits", "3 bits"]
    assert 0 < four.figures["kl"].metric.value < three.figures["kl"].metric.value
    assert four.figures["agreement"].metric.value > 0.5
    alone = pipeline.evaluate(toy / "llama", text=toy / "text.txt").rows[0].figures["ppl"].metric
    assert first.figures["ppl"].metric.value == pytest.approx(alone.value, rel=1e-4)
    ratio = four.figures["ppl"].ratio
    assert ratio is not None
    assert ratio == pytest.approx(four.figures["ppl"].metric.value / alone.value, rel=1e-4)


def test_it_is_the_perplexity_of_the_weights(toy: Path, tmp_path: Path) -> None:
    rows = pipeline.evaluate(toy / "nested", text=toy / "text.txt").rows
    assert "kl" not in rows[0].figures
    for row, bits in zip(rows, (4, 3), strict=True):
        model = Model(toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024), toy_tokenizer())
        dequantised(model, open_nested(toy / "nested"), bits).save(tmp_path / str(bits))
        wanted = pipeline.evaluate(tmp_path / str(bits), text=toy / "text.txt").rows[0].figures["ppl"].metric
        assert row.figures["ppl"].metric.value == pytest.approx(wanted.value, rel=0.01)  # activations are integers
        assert row.figures["ppl"].metric.n == wanted.n


def test_what_only_torch_can_is_refused_with_the_next_step(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="give the model that it was made from"):
        pipeline.evaluate(toy / "nested", tasks=("piqa",))
    other = Model(toy_module("llama"), None)
    make_folder(other, tmp_path / "bare")
    assert Decoder.open(tmp_path / "bare").precisions == (3, 4)
    with pytest.raises(DataError, match="tokenizer"):
        pipeline.evaluate(tmp_path / "bare", text=toy / "text.txt")
