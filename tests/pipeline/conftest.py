"""A toy language model on disk and text that it can be calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lissome.models.model import Model
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_module


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy Llama with its tokenizer, as a folder."""
    module = toy_module("llama", vocab_size=TOY_VOCABULARY, max_position_embeddings=1024)
    return Model(module, toy_tokenizer()).save(tmp_path_factory.mktemp("toy") / "toy-llama")


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for every split of a toy job."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "while",
        "five",
        "wizards",
        "box",
        "quietly",
    ]
    documents = (" ".join(words[(i * k) % len(words)] for k in range(1, 80)) for i in range(1, 120))
    path.write_text("\n\n".join(documents))
    return path
