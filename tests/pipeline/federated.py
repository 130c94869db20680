"""What tests of whole federations share: a toy encoder, rows of three classes, and a recipe of two kinds of device."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model

WORDS = {"animals": ["fox", "dog", "hen"], "colours": ["red", "blue", "pink"], "tools": ["saw", "axe", "drill"]}
RECIPE = """
model = "model"
seed = 3
[data]
source = "rows.jsonl"
length = 16
[partition]
clients = 4
alpha = 0.5
[federation]
rounds = 2
[[device]]
name = "laptop"
[[device]]
name = "phone"
budget = "block_params<=50%"
[[step]]
method = "fedavg"
lr = 0.01
epochs = 2
"""


def make_place(folder: Path) -> Path:
    """Write ``model``, ``rows.jsonl`` and ``recipe.toml`` into a folder."""
    model = replace(toy_model("bert", vocab_size=TOY_VOCABULARY, num_hidden_layers=2), tokenizer=toy_tokenizer())
    model.save(folder / "model")
    rng = random.Random(0)
    rows = [
        {"text": f"{rng.choice(words)} {rng.choice(words)} {index}", "label": label}
        for label, words in WORDS.items()
        for index in range(40)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder
