from __future__ import annotations

from pathlib import Path

import pytest

from lissome.models.model import Model
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text and a small Llama that reads it."""
    folder = tmp_path_factory.mktemp("toy")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "box", "quietly"]
    documents = (" ".join(words[(i * k) % len(words)] for k in range(1, 80)) for i in range(1, 120))
    (folder / "text.txt").write_text("\n\n".join(documents))
    Model(toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024), toy_tokenizer()).save(
        folder / "llama"
    )
    return folder
